"""What happens to embeddings before the first layer of a stack."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax.nn.checks import check_explicit
from attnjax.nn.config import TransformerConfig
from attnjax.nn.positions import Positions
from attnjax.scores import ScoreMod


class InputPositions(nnx.Module):
    """Adds learned or sinusoidal positions to a stack's input, may normalise it, then drops out.

    It also holds the position table that all layers share, if they share one.

    Args:
      config: sizes and choices; other position schemes leave the input as it is.
      rngs: for the parameters, and the stream `dropout`.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs) -> None:
        scheme = config.attention.position
        own = scheme is not None and (scheme.absolute or config.shared_position)
        self.scheme = scheme if own and scheme is not None else Positions()
        self.features, self.num_heads = config.features, config.num_heads
        self.scheme.check(
            features=config.features, num_heads=config.num_heads, head_dim=config.features
        )
        table = self.scheme.init(
            rngs.params(),
            features=config.features,
            num_heads=config.num_heads,
            dtype=config.param_dtype,
        )
        self.table = None if table is None else nnx.Param(table)
        self.norm = config.build_norm(rngs=rngs) if config.input_norm else None
        self.dropout = nnx.Dropout(config.dropout_rate, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T F"], positions: Int[Array, "*B T"] | None
    ) -> Float[Array, "B T F"]:
        """Adds the positions.

        Args:
          x: the sequence.
          positions: integers `[T]` or `[B, T]`; None counts from 0.

        Returns:
          An array of the same shape.

        Raises:
          ValueError: if `x` has another width or rank.
        """
        if x.ndim != 3 or x.shape[-1] != self.features:
            raise ValueError(
                f"x: expected an array [batch, time, {self.features}], got shape {x.shape}."
            )
        at: Any = positions
        if at is None:
            at = np.arange(x.shape[1], dtype=np.int32)  # known inside a trace, too
        x = self.scheme.embed(x, at, self._table())
        return self.dropout(x if self.norm is None else self.norm(x))

    def for_layers(self, positions: Array | None) -> Array | None:
        """Returns the positions that the layers still need to be told.

        Raises:
          ValueError: if there are positions that the scheme does not take.
        """
        if positions is not None:
            check_explicit("positions", self.scheme)
        return None if self.scheme.absolute else positions

    def score_mods(self) -> tuple[ScoreMod, ...]:
        """Returns what a shared table does to the scores of every layer."""
        return self.scheme.score_mods(self.num_heads, self._table())

    def _table(self) -> Array | None:
        return None if self.table is None else self.table[...]
