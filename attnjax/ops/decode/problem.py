"""One decoding call, validated."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from attnjax.masks import Mask
from attnjax.ops.choosing import user_functions
from attnjax.ops.decode.layout import Contiguous
from attnjax.scores import ScoreFn, ScoreMod


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeProblem:
    """A validated call of `attnjax.decode`.

    Attributes:
      q: queries of the last T positions.
      k: cache of keys, as the layout says.
      v: cache of values.
      k_scale: factor of each key, as the keys without their last axis, or None.
      v_scale: factor of each value.
      length: positions in the cache, `[1]` or `[B]`.
      layout: where the cache keeps them.
      mask: which query may see which key, by their positions in the sequence.
      score_mods: applied from left to right to the scaled scores.
      scale: factor of the dot products, a scalar.
      sinks: learned logits that join the softmax denominator, or None.
      precision: matmul precision, or None.
      stats: whether statistics are wanted.
    """

    q: Float[Array, "B T N H"]
    k: Array
    v: Array
    k_scale: Array | None
    v_scale: Array | None
    length: Int[Array, "b"]
    layout: Contiguous
    mask: Mask
    score_mods: tuple[ScoreMod | ScoreFn, ...]
    scale: Array
    sinks: Float[Array, "N"] | None
    precision: Any = dataclasses.field(metadata={"static": True})
    stats: bool = dataclasses.field(metadata={"static": True})

    @property
    def sizes(self) -> dict[str, int]:
        """Axis sizes by letter, of the whole sequence: T and S are the cache's capacity."""
        capacity = self.layout.capacity(self.k)
        return {"B": self.q.shape[0], "N": self.q.shape[2], "T": capacity, "S": capacity}

    @property
    def user_functions(self) -> bool:
        """Whether functions of the caller take part, whose closures no cache can compare."""
        return user_functions(self.mask, self.score_mods)
