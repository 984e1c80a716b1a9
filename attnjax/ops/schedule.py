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
      order: block numbers along the other axis, FULL ones first, then PARTIAL, then EMPTY.
      num_full: how many are FULL.
      num_visited: how many are FULL or PARTIAL.
    """

    order: Int[Array, "b rows blocks"]
    num_full: Int[Array, "b rows"]
    num_visited: Int[Array, "b rows"]


def block_kinds(mask: Mask, T: int, S: int, block_q: int, block_k: int, *, host: bool) -> Array:
    """Classifies blocks for all heads together, and ragged last blocks as PARTIAL.

    Returns:
      int8 `[B|1, nq, nk]`: EMPTY where every head is, FULL where every head is.
    """
    grid = Grid(T, S, block_q, block_k, host=host)
    kinds = classify(mask, grid)
    kinds = union(kinds, axis=1)
    nq, nk = grid.shape
    ragged = (grid.xp.arange(nq)[:, None] == nq - 1) & bool(T % block_q)
    ragged = ragged | ((grid.xp.arange(nk) == nk - 1) & bool(S % block_k))
    return grid.xp.where(ragged & (kinds != EMPTY), grid.xp.int8(PARTIAL), kinds)


def union(kinds: Array, axis: int) -> Array:
    """Returns the kinds of blocks visited together along an axis: EMPTY or FULL where all are."""
    lowest, highest = kinds.min(axis=axis), kinds.max(axis=axis)
    mixed = (highest != EMPTY) & (lowest != FULL)
    return highest - mixed * (highest - PARTIAL)


def make_schedules(mask: Mask, tiling: Tiling) -> tuple[Schedule, Schedule]:
    """Returns the schedule of each query block over keys, and of each key block over queries."""
    kinds = block_kinds(mask, tiling.T, tiling.S, tiling.block_q, tiling.block_k, host=False)
    if tiling.counts[0] == 1:
        kinds = union(kinds, axis=0)[None]
    return _order(kinds), _order(jnp.swapaxes(kinds, 1, 2))


def _order(kinds: Array) -> Schedule:
    def count(chosen: Array) -> Array:
        return jnp.sum(chosen, axis=-1, dtype=jnp.int32)

    order = jnp.argsort(-kinds, axis=-1, stable=True).astype(jnp.int32)
    return Schedule(order, count(kinds == FULL), count(kinds != EMPTY))
