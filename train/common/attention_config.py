"""`AttentionConfig`: every position scheme and option of attention, from a command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from attnjax.nn import (
    Alibi,
    AttentionOptions,
    LearnedPositions,
    Positions,
    RelativeBias,
    Rotary,
    SinusoidalPositions,
)


@dataclass(frozen=True)
class AttentionConfig:
    """How the layers of a Transformer attend.

    Raises:
        ValueError: a number is out of range.
    """

    positions: Literal["sinusoidal", "rotary", "alibi", "relative", "t5", "learned", "none"] = (
        "rotary"
    )
    """How it knows where a token stands: sines or a table added to the inputs, queries and keys
    turned, or scores changed by the distance (relative: clipped distances, t5: buckets of them)."""
    reach: int = 32
    """Largest distance that `relative` tells apart."""
    qk_norm: Literal["none", "rms", "layer"] = "none"
    """Normalise queries and keys."""
    soft_cap: float | None = None
    """Bound of the scores."""
    sinks: bool = False
    """A learned logit per head that takes part of the weight."""
    window: int | None = None
    """Tokens to each side that a token sees; None for all."""
    kv_heads: int | None = None
    """Heads of keys and values; None for as many as queries have."""
    dropout: float = 0.0
    """Dropout on the attention weights."""
    bias: bool = True
    """Biases of the query, value and output projections."""
    sigma_reparam: bool = False
    """Divide the kernels of all projections by their spectral norm, times a learned number."""

    def __post_init__(self) -> None:
        """Rejects what no layer can be built from."""
        if not 0 <= self.dropout < 1:
            raise ValueError(f"attention dropout must lie in [0, 1), got {self.dropout}")
        for name in ("reach", "window", "kv_heads", "soft_cap"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")

    @property
    def added(self) -> bool:
        """Whether positions are added to the embeddings."""
        return self.positions in ("sinusoidal", "learned")

    def options(self, *, longest: int, bidirectional: bool) -> AttentionOptions:
        """What `TransformerConfig.attention` takes.

        Args:
            longest: the longest sequence; the size of the table of learned positions.
            bidirectional: whether tokens see what comes after them; False in a decoder.
        """
        return AttentionOptions(
            position=self._scheme(longest, bidirectional),
            qk_norm=None if self.qk_norm == "none" else self.qk_norm,
            soft_cap=self.soft_cap,
            sinks=self.sinks,
            window=None if self.window is None else (self.window, self.window),
            dropout_rate=self.dropout,
            use_bias=self.bias,
            sigma_reparam=self.sigma_reparam,
        )

    def _scheme(self, longest: int, bidirectional: bool) -> Positions | None:
        match self.positions:
            case "sinusoidal":
                return SinusoidalPositions()
            case "rotary":
                return Rotary()
            case "alibi":
                return Alibi()
            case "relative":
                return RelativeBias(reach=self.reach)
            case "t5":
                return RelativeBias(kind="t5", bidirectional=bidirectional)
            case "learned":
                return LearnedPositions(max_length=longest)
        return None
