"""The order in which blocks are visited: for each row of blocks, first FULL, then PARTIAL ones.

One format for every implementation, made in O(blocks) inside the trace.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from attnjax.masks import EMPTY, FULL, PARTIAL, Mask
from attnjax.masks.blocks import Grid, classify
from attnjax.ops.tiles import Tiling


class Schedule(NamedTuple):
    """Which blocks to visit, for each row of blocks (or column, in a transposed schedule).

    Attributes:
      order: block numbers along the other axis, FULL ones first, then PARTIAL, then EMPTY; the
        first axis is 1 where batch tiles do not differ.
      num_full: how many are FULL.
      num_visited: how many are FULL or PARTIAL.
    """

    order: Int[Array, "b rows blocks"]
    num_full: Int[Array, "b rows"]
    num_visited: Int[Array, "b rows"]

    def counts(self, b: Array, row: Array) -> tuple[Array, Array]:
        """Returns how many blocks of a row are FULL, and how many are visited."""
        at = (self._batch(b), row)
        return self.num_full[at], self.num_visited[at]

    def block(self, b: Array, row: Array, n: Array) -> Array:
        """Returns the number of the n-th block that a row visits."""
        return self.order[self._batch(b), row, n]

    def _batch(self, b: Array) -> Array | int:
        return b if self.order.shape[0] > 1 else 0


def tile_kinds(
    mask: Mask, tiling: Tiling, *, host: bool, apart: bool = False, origin: Array | None = None
) -> Array:
    """Classifies blocks for all that is visited together, and ragged last blocks as PARTIAL.

    Args:
      mask: the mask.
      tiling: the tiles.
      host: whether to compute with NumPy.
      apart: whether a block must have all its keys on one side of all its queries to be FULL.
      origin: as in `Problem`.

    Returns:
      int8 `[B / block_b|1, nq, nk]`: EMPTY where all heads and batch elements of the tile are, FULL
      where all are.
    """
    t = tiling
    first = (0, 0) if origin is None else (origin[2], origin[3])
    grid = Grid(t.T, t.S, t.block_q, t.block_k, host=host, first=first)
    kinds = _union(classify(mask, grid), axis=1)
    if kinds.shape[0] > 1:
        kinds = _union(kinds.reshape(-1, t.block_b, *grid.shape), axis=1)
    nq, nk = grid.shape
    cut = (grid.xp.arange(nq)[:, None] == nq - 1) & bool(t.T % t.block_q)
    cut = cut | ((grid.xp.arange(nk) == nk - 1) & bool(t.S % t.block_k))
    if apart:
        q_lo, k_lo = grid.q_lo[0, 0], grid.k_lo[0, 0]
        cut = cut | ((q_lo < k_lo + t.block_k - 1) & (k_lo < q_lo + t.block_q - 1))
    return grid.xp.where(cut & (kinds != EMPTY), grid.xp.int8(PARTIAL), kinds)


def _union(kinds: Array, axis: int) -> Array:
    """Returns the kinds of blocks visited together along an axis: EMPTY or FULL where all are."""
    lowest, highest = kinds.min(axis=axis), kinds.max(axis=axis)
    mixed = (highest != EMPTY) & (lowest != FULL)
    return highest - mixed * (highest - PARTIAL)


def make_schedules(
    mask: Mask, tiling: Tiling, *, apart: bool, origin: Array | None = None
) -> tuple[Schedule, Schedule]:
    """Returns the schedule of each query block over keys, and of each key block over queries.

    Args:
      mask: the mask.
      tiling: the tiles.
      apart: whether FULL blocks of the first schedule have all keys on one side of all queries.
      origin: as in `Problem`.
    """
    by_query = _order(tile_kinds(mask, tiling, host=False, apart=apart, origin=origin))
    kinds = tile_kinds(mask, tiling, host=False, origin=origin)
    return by_query, _order(jnp.swapaxes(kinds, 1, 2))


def _order(kinds: Array) -> Schedule:
    def count(chosen: Array) -> Array:
        return jnp.sum(chosen, axis=-1, dtype=jnp.int32)

    order = jnp.argsort(-kinds, axis=-1, stable=True).astype(jnp.int32)
    return Schedule(order, count(kinds == FULL), count(kinds != EMPTY))
