"""One attention call, validated: what every implementation is handed."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from attnjax.dropout import Dropout
from attnjax.masks import Mask
from attnjax.numerics import accumulation_dtype, default_precision
from attnjax.ops.choosing import user_functions
from attnjax.scores import ScoreFn, ScoreMod


class Known(NamedTuple):
    """What a whole call gave, for the derivatives of one of its parts.

    Attributes:
      out: the output over all keys.
      logsumexp: over all keys.
      entropy: over all keys; None without statistics.
    """

    out: Float[Array, "B T N D"]
    logsumexp: Float[Array, "B N T"]
    entropy: Float[Array, "B N T"] | None

    def results(self) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Returns outputs and residuals of a forward pass that has nothing to compute."""
        kept = tuple(x for x in self if x is not None)
        # Of the statistics, only these have derivatives.
        others = () if self.entropy is None else (jnp.zeros_like(self.logsumexp),) * 3
        return (*kept, *others), kept


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
      origin: for a part of a larger call: the positions, along B, N, T and S, of its first element
        in the whole. Masks, score_mods, dropout and statistics see positions in the whole; arrays
        that they look up by position are those of the part. A part tells its logsumexp even if no
        statistics are wanted. None is the whole call.
      known: for a part by keys: what the whole call gave. Nothing is computed then, the result is
        this, and its derivatives are what the part adds to those of the whole.
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
    origin: Int[Array, "4"] | None = None
    known: Known | None = None

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
