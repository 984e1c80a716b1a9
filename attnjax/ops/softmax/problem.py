"""One attention call, validated: what every implementation is handed."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attnjax.dropout import Dropout
from attnjax.masks import Mask
from attnjax.numerics import accumulation_dtype, default_precision
from attnjax.ops.choosing import user_functions
from attnjax.scores import ScoreFn, ScoreMod


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Problem:
    """A validated call of `attnjax.attention`.

    Attributes:
      q: queries.
      k: keys.
      v: values.
      mask: which query may see which key.
      score_mods: applied from left to right to the scaled scores.
      scale: factor of the dot products, a scalar.
      sinks: learned logits that join the softmax denominator, or None.
      dropout: dropout on the weights, or None.
      precision: matmul precision as asked for, or None.
      stats: whether statistics are wanted.
    """

    q: Float[Array, "B T N H"]
    k: Float[Array, "B S K H"]
    v: Float[Array, "B S K D"]
    mask: Mask
    score_mods: tuple[ScoreMod | ScoreFn, ...]
    scale: Array
    sinks: Float[Array, "N"] | None
    dropout: Dropout | None
    precision: Any = dataclasses.field(metadata={"static": True})
    stats: bool = dataclasses.field(metadata={"static": True})

    @property
    def sizes(self) -> dict[str, int]:
        """Axis sizes by letter."""
        (B, T, N, H), (_, S, K, D) = self.q.shape, self.v.shape
        return {"B": B, "T": T, "S": S, "N": N, "K": K, "H": H, "D": D}

    @property
    def accumulation_dtype(self) -> jnp.dtype:
        """The dtype of scores and sums."""
        return accumulation_dtype(self.q.dtype, self.k.dtype, self.v.dtype)

    @property
    def matmul_precision(self) -> Any:
        """The precision of matrix products."""
        return default_precision(jnp.result_type(self.q, self.k, self.v), self.precision)

    @property
    def user_functions(self) -> bool:
        """Whether functions of the caller take part, whose closures no cache can compare."""
        return user_functions(self.mask, self.score_mods)
