"""What an attention layer does, apart from its sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array

from attnjax.nn.norms import NORMS, NormKind
from attnjax.nn.positions import Positions
from attnjax.sharding.partition import Partition, check_partition

# One object for all, because modules whose initialisers differ do not share compiled programs.
KERNEL_INIT = nnx.initializers.lecun_normal()


@dataclasses.dataclass(frozen=True)
class AttentionOptions:
    """What an attention layer does, apart from its sizes.

    Attributes:
      position: a position scheme (`Rotary`, `Alibi`, `RelativeBias`, `LearnedPositions`,
        `SinusoidalPositions`), or None. Those that are added to inputs are added before the
        projections of queries, keys and values.
      qk_norm: normalise queries and keys over the head width before positions: `rms`,
        `rms_offset` (times `1 + scale`), `layer` (without bias, as Flax's `normalize_qk`) or None.
      qk_norm_epsilon: what these add to the variance.
      scale: factor of the dot products; None is `1 / sqrt(H)`.
      soft_cap: bound of the scores, `cap * tanh(score / cap)`, before position biases; None: none.
      temperature: divide the dot products by a learned temperature per head, which starts at 1 and
        whose logarithm is the parameter; before soft cap and position biases.
      sinks: learned logits, one per head, that join the softmax denominator only.
      window: keys to the left and to the right that a query sees, None leaving a side open; None
        for all. It joins the mask of the call.
      dropout_rate: dropout on the attention weights.
      use_bias: biases of the query, value and output projections.
      key_bias: a bias of the key projection. It shifts all scores of a query alike, so its true
        gradient is 0 and an adaptive optimiser makes noise of it; there to load others' weights.
      out_bias: a bias of the output projection; None follows `use_bias`.
      sigma_reparam: divide the kernel of each projection by its spectral norm, and multiply it by a
        learned number that starts at 1, as `SigmaLinearGeneral` does. For other layers, or models
        that are built already, see `attnjax.focus.steady.sigma_reparam`.
      kernel_init: initialiser of the projections.
      precision: precision of all products, as in `jax.lax.dot_general`.
      implementation: as in `attnjax.attention`; a name holds for steps with a cache, too, which
        None gives to `attnjax.decode`.
      partition: axes of the mesh in context to spread attention over, as in `attnjax.attention`;
        steps with a cache leave it to `jax.jit`.
    """

    position: Positions | None = None
    qk_norm: NormKind | None = None
    qk_norm_epsilon: float = 1e-6
    scale: float | None = None
    soft_cap: float | None = None
    temperature: bool = False
    sinks: bool = False
    window: tuple[int | None, int | None] | None = None
    dropout_rate: float = 0.0
    use_bias: bool = True
    key_bias: bool = False
    out_bias: bool | None = None
    sigma_reparam: bool = False
    kernel_init: Callable[..., Array] = KERNEL_INIT
    precision: Any = None
    implementation: str | None = None
    partition: Partition | None = None

    def __post_init__(self) -> None:
        if self.position is not None and not isinstance(self.position, Positions):
            raise ValueError(
                "AttentionOptions.position: expected a position scheme such as Rotary(), or None; "
                f"got {self.position!r}."
            )
        if self.partition is not None:
            check_partition(self.partition)
        if self.qk_norm is not None and self.qk_norm not in NORMS:
            raise ValueError(
                f"AttentionOptions.qk_norm: expected None or one of {', '.join(NORMS)}; got "
                f"{self.qk_norm!r}."
            )
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(
                f"AttentionOptions.dropout_rate: expected a number in [0, 1), got "
                f"{self.dropout_rate!r}."
            )
