"""Masks and score_mods for queries that do not start at position 0, as in a decoding step.

`attnjax.attention` counts queries from 0. With a cache the first query stands at position `offset`
of the sequence, so that masks and score_mods must see `q_idx + offset`. Arrays that a mask or a
score_mod declares per query still belong to the queries at hand, those per key to the cache.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from attnjax.masks import And, Causal, Dense, Full, Mask, Not, Or, Prefix, Segments, Window, as_mask
from attnjax.masks.blocks import Bounds, Grid
from attnjax.operands import Operand
from attnjax.scores import ScoreMod
from attnjax.typing import Index, ScoreFn


def shift_mask(mask: Mask | Array | None, offset: Int[Array, "*B"]) -> Mask:
    """Returns a mask whose queries start at a position of their own.

    Args:
      mask: a Mask over positions of the whole sequence, a bool array broadcastable to
        `[B, N, T, S]` for the T queries at hand, or None for no restriction.
      offset: position of the first query, int32 `[]` or `[B]`; may be traced.

    Returns:
      A mask that answers for query `t` as `mask` does for `t + offset`.
    """
    mask = as_mask(mask)
    match mask:
        case And():
            return shift_mask(mask.left, offset) & shift_mask(mask.right, offset)
        case Or():
            return shift_mask(mask.left, offset) | shift_mask(mask.right, offset)
        case Not():
            return ~shift_mask(mask.inner, offset)
        case Full() | Dense() | Prefix() | Segments():
            return mask
        case Causal():
            return Causal(mask.offset + offset)
        case Window():
            left = None if mask.left is None else mask.left - offset
            right = None if mask.right is None else mask.right + offset
            return Window(left, right)
    return _ShiftedMask(mask, offset)


def shift_score_mod(mod: ScoreMod | ScoreFn, offset: Int[Array, "*B"]) -> ScoreMod | ScoreFn:
    """Returns a score_mod whose queries start at a position of their own.

    Args:
      mod: a score_mod over positions of the whole sequence.
      offset: position of the first query, int32 `[]` or `[B]`; may be traced.

    Returns:
      A score_mod that treats query `t` as `mod` treats `t + offset`.
    """
    if isinstance(mod, ScoreMod):
        return _ShiftedScoreMod(mod, offset)

    def shifted(score: Array, b: Array, h: Array, q_idx: Array, k_idx: Array) -> Array:
        return mod(score, b, h, q_idx + (offset[b] if offset.ndim else offset), k_idx)

    return shifted


class _ShiftedMask(Mask):
    """A leaf whose queries start at `offset`."""

    _fields = ("inner", "offset")
    inner: Mask
    offset: Array

    def __init__(self, inner: Mask, offset: Array) -> None:
        self._set(inner=inner, offset=offset)

    def operands(self) -> tuple[Operand, ...]:
        return (_offset_operand(self.offset), *self.inner.operands())

    def allowed(self, index: Index, *tiles: Array) -> Array:
        return self.inner.allowed(index._replace(q=index.q + tiles[0]), *tiles[1:])

    def bounds(self, grid: Grid) -> Bounds:
        offset, shifted = grid.value(self.offset), copy.copy(grid)
        shifted.q_lo, shifted.q_hi = grid.q_lo + offset, grid.q_hi + offset
        return self.inner.bounds(shifted)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _ShiftedScoreMod(ScoreMod):
    """A score_mod whose queries start at `offset`."""

    mod: ScoreMod
    offset: Array

    def operands(self, sizes: Mapping[str, int]) -> tuple[Operand, ...]:
        # The keys start at position 0 and the queries lie among them, so a table by relative
        # position for S queries holds every distance; the T queries at hand need a window of it.
        T, S = sizes["T"], sizes["S"]
        found = self.mod.operands({**sizes, "T": S})
        start = S - T - self.offset
        return (_offset_operand(self.offset), *(_window(o, start, T + S - 1) for o in found))

    def apply(self, score: Array, index: Index, *tiles: Array) -> Array:
        return self.mod.apply(score, index._replace(q=index.q + tiles[0]), *tiles[1:])

    def __call__(self, score: Array, b: Array, h: Array, q_idx: Array, k_idx: Array) -> Array:
        offset = self.offset[b] if self.offset.ndim else self.offset
        return self.mod(score, b, h, q_idx + offset, k_idx)


def _window(operand: Operand, start: Array, size: int) -> Operand:
    """Cuts `size` entries from `start` on, `[]` or `[B]`, out of an operand along R."""
    if not operand.relative or operand.size("R") == 1:
        return operand

    def cut(array: Array, start: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(array, start, size, axis=-1)

    if not start.ndim:
        return dataclasses.replace(operand, array=cut(operand.array, start))
    per_example = "B" in operand.axes and operand.size("B") != 1
    array = operand.array if "B" in operand.axes else operand.array[None]
    array = jax.vmap(cut, in_axes=(0 if per_example else None, 0))(
        array if per_example else array[0], start
    )
    return Operand(operand.name, array, "B" + operand.axes.replace("B", ""))


def _offset_operand(offset: Array) -> Operand:
    return Operand("offset", jnp.asarray(offset), "B" if offset.ndim else "")
