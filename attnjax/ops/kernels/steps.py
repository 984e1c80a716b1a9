"""The order in which a kernel visits blocks: a list of steps that fits a kernel's scalar memory.

A step is one visit of a block, as one 32-bit number. The list holds only blocks that the mask does
not exclude, and one empty step for a row of blocks without any, so that its result is written. If
the list would not fit the budget, each row's first and last visited block are listed instead, and
the kernel walks through all between them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from attnjax.masks import EMPTY, FULL, PARTIAL, Mask
from attnjax.ops.kernels import positional
from attnjax.ops.schedule import tile_kinds
from attnjax.ops.tiles import Tiling
from attnjax.typing import is_concrete

# Of the 1 MiB of scalar memory of a TPU core; a step takes 4 bytes, a row of ranges 8.
BUDGET = 512 * 1024
# A FULL block whose keys come after its queries, where a schedule tells them apart.
FULL_AFTER = FULL + 1
# A PARTIAL block on which the part of the mask that follows from positions decides alone: see
# `attnjax.ops.kernels.positional`. A list tells it from others, ranges do not.
POSITIONAL = FULL_AFTER + 1
_POSITION_BITS = 13
MOST_BLOCKS = 2**_POSITION_BITS

_KIND, _FIRST, _LAST = 0, 3, 4
_COLUMN, _ROW = 5, 5 + _POSITION_BITS


class Step(NamedTuple):
    """One visit of a block, int32 scalars.

    Attributes:
      row: the block whose sums are being made.
      column: the other block.
      kind: EMPTY (nothing to compute), PARTIAL (apply the mask), POSITIONAL (apply a part of it),
        FULL or FULL_AFTER.
      first: whether it is the row's first step.
      last: whether it is the row's last step.
    """

    row: Array
    column: Array
    kind: Array
    first: Array
    last: Array


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is static of a schedule.

    Attributes:
      count: number of steps per batch element and head.
      kinds: the kinds that a step may be of, but for EMPTY.
      width: 0 for a list of steps; for ranges, the number of steps of each row.
      batched: whether batch elements have schedules of their own.
      alone: whether a row may have a single step.
      traced: whether the number of steps is known only when the kernel runs; `count` is the most.
      apart: for a schedule that tells FULL_AFTER from FULL, the block sizes of rows and columns.
    """

    count: int
    kinds: tuple[int, ...]
    width: int
    batched: bool
    apart: tuple[int, int] | None = None
    alone: bool = True
    traced: bool = False


class Steps(NamedTuple):
    """A schedule.

    Attributes:
      words: steps, `[B|1, count]`; for ranges two words for each row, `[B|1, rows * 2]`.
      shape: what is static of it.
    """

    words: Int[Array, "b count"]
    shape: Shape


def read(shape: Shape, words: Any, b: Array, s: Array) -> Step:
    """Reads step `s` of batch element `b` from the words of a schedule."""
    b = b if shape.batched else jnp.int32(0)
    if not shape.width:
        word = words[b, s]
        low = (1 << _POSITION_BITS) - 1
        return Step(
            (word >> _ROW) & low,
            (word >> _COLUMN) & low,
            (word >> _KIND) & 7,
            (word >> _FIRST) & 1,
            (word >> _LAST) & 1,
        )
    row, n = s // shape.width, s % shape.width
    visited, full = words[b, 2 * row], words[b, 2 * row + 1]
    low = (1 << 15) - 1
    start, count = visited >> 15, visited & low
    column = start + jnp.minimum(n, jnp.maximum(count - 1, 0))
    inside = (column >= full >> 15) & (column < (full >> 15) + (full & low))
    kind = jnp.where(n < count, jnp.where(inside, FULL, PARTIAL), EMPTY)
    if shape.apart is not None:
        after = (kind == FULL) & (column * shape.apart[1] > row * shape.apart[0])
        kind = jnp.where(after, FULL_AFTER, kind)
    return Step(row, column, kind, jnp.where(n == 0, 1, 0), jnp.where(n == shape.width - 1, 1, 0))


def length(shape: Shape, words: Array) -> int | Array:
    """Returns how many steps a kernel takes for each batch element and head."""
    if not shape.traced:
        return shape.count
    # What fills a shorter list up has nothing to compute and begins no row.
    begins, computes = (words >> _FIRST) & 1 == 1, (words >> _KIND) & 7 != EMPTY
    return jnp.max(jnp.sum(begins | computes, axis=1, dtype=jnp.int32))


def make_steps(
    mask: Mask,
    tiling: Tiling,
    *,
    by: str,
    apart: bool = False,
    origin: Array | None = None,
    budget: int = BUDGET,
) -> Steps:
    """Lists the steps of a kernel, for static masks on the host, for others in the trace.

    Args:
      mask: the mask.
      tiling: the tiles, of one batch element.
      by: `T` if rows are blocks of queries, `S` if they are blocks of keys.
      apart: whether a FULL block must have all its keys on one side of all its queries, and which
        side is told; for `by="T"`.
      origin: as in `Problem`.
      budget: most bytes of scalar memory that the schedule may take.

    Returns:
      The schedule.

    Raises:
      NotImplementedError: if there are more blocks than a kernel can number.
    """
    assert tiling.block_b == 1, "kernels visit one batch element at a time"
    host = is_concrete(*mask.leaves()) and origin is None
    kinds: Any = tile_kinds(mask, tiling, host=host, apart=apart, origin=origin)
    blocks = (tiling.block_q, tiling.block_k) if apart else None
    if by == "S":
        kinds = kinds.swapaxes(1, 2)
    batch, rows, columns = kinds.shape
    if max(rows, columns) > MOST_BLOCKS:
        raise NotImplementedError(
            f"there are {rows} by {columns} blocks, and a kernel numbers at most {MOST_BLOCKS} "
            "along an axis. Use larger blocks, or shard the sequence."
        )
    if host:
        visits = np.maximum((kinds != EMPTY).sum(axis=2), 1)
        count, alone = int(visits.sum(axis=1).max()), bool((visits == 1).any())
    else:
        count, alone = rows * columns, True
    if batch * count * 4 <= budget:
        possible = [PARTIAL, FULL]
        if apart:
            kinds = _tell_side(kinds, tiling, origin, host=host)
            possible.append(FULL_AFTER)
        if (parts := positional.split(mask)) is not None:
            rest: Any = tile_kinds(parts[1], tiling, host=host, origin=origin)
            rest = rest if by == "T" else rest.swapaxes(1, 2)
            xp: Any = np if host else jnp
            kinds = xp.where((kinds == PARTIAL) & (rest == FULL), xp.int8(POSITIONAL), kinds)
            possible.append(POSITIONAL)
        if host:
            possible = [kind for kind in possible if (kinds == kind).any()]
        words = _list(kinds, count) if host else _list_in_trace(kinds, count)
        shape = Shape(count, tuple(possible), 0, batch > 1, blocks, alone, not host)
        return Steps(jnp.asarray(words), shape)
    if batch * rows * 8 > budget:
        raise NotImplementedError(
            f"a schedule of {batch} x {rows} rows of blocks takes more than {budget} bytes of "
            "scalar memory. Use larger blocks, or shard the batch."
        )
    if apart and origin is not None:
        # Ranges tell sides by block numbers, which are those of the part.
        kinds = jnp.where(kinds == FULL, jnp.int8(PARTIAL), kinds)
    words, width = _ranges(kinds)
    possible = [PARTIAL, FULL, FULL_AFTER] if apart else [PARTIAL, FULL]
    shape = Shape(rows * width, tuple(possible), width, batch > 1, blocks, width == 1)
    return Steps(jnp.asarray(words), shape)


def _tell_side(kinds: Any, tiling: Tiling, origin: Array | None, *, host: bool) -> Any:
    xp: Any = np if host else jnp
    rows, columns = kinds.shape[1:]
    q, k = xp.arange(rows)[:, None] * tiling.block_q, xp.arange(columns) * tiling.block_k
    if origin is not None:
        q, k = q + origin[2], k + origin[3]
    return xp.where((kinds == FULL) & (k > q), xp.int8(FULL_AFTER), kinds)


def _list(kinds: np.ndarray, count: int) -> np.ndarray:
    words = np.zeros((kinds.shape[0], count), np.int32)
    for b, table in enumerate(kinds):
        visited = table != EMPTY
        visited[:, 0] |= ~visited.any(axis=1)
        row, column = np.nonzero(visited)
        change = np.diff(row) > 0
        ends = np.ones((2, len(row)), np.int32)
        ends[0, 1:], ends[1, :-1] = change, change
        found = _pack(row, column, table[row, column].astype(np.int32), *ends)
        # A shorter list goes on at the last block, which is there already, and computes nothing.
        rest = _pack(row[-1], column[-1], np.int32(EMPTY), np.int32(0), np.int32(0))
        words[b] = np.concatenate([found, np.full(count - len(row), rest, np.int32)])
    return words


def _list_in_trace(kinds: Array, count: int) -> Array:
    batch, rows, columns = kinds.shape
    visited = kinds != EMPTY
    empty_row = ~visited.any(axis=2, keepdims=True)
    visited |= empty_row & (jnp.arange(columns) == 0)
    number = jnp.cumsum(visited, axis=2)
    row, column = jnp.arange(rows)[:, None], jnp.arange(columns)
    words = _pack(
        row,
        column,
        kinds.astype(jnp.int32),
        (number == 1).astype(jnp.int32),
        (number == number[..., -1:]).astype(jnp.int32),
    ).reshape(batch, -1)
    flat = visited.reshape(batch, -1)
    place = jnp.where(flat, jnp.cumsum(flat, axis=1) - 1, count)
    final = jnp.max(jnp.where(flat, words, 0), axis=1, keepdims=True)
    rest = final & ~((1 << _COLUMN) - 1)
    result = jnp.broadcast_to(rest, (batch, count)).astype(jnp.int32)
    return result.at[jnp.arange(batch)[:, None], place].set(words, mode="drop")


def _pack(row: Any, column: Any, kind: Any, first: Any, last: Any) -> Any:
    word = (row << _ROW) | (column << _COLUMN)
    return (word | (kind << _KIND) | (first << _FIRST) | (last << _LAST)).astype(np.int32)


def _ranges(kinds: Any) -> tuple[Any, int]:
    """Returns for each row the visited range and the longest run of FULL blocks inside it."""
    host = isinstance(kinds, np.ndarray)
    xp: Any = np if host else jnp
    _, rows, columns = kinds.shape
    place = xp.arange(columns, dtype=np.int32)

    def extent(chosen: Any) -> tuple[Any, Any]:
        start = xp.where(chosen, place, columns).min(axis=2)
        end = xp.where(chosen, place + 1, 0).max(axis=2)
        return xp.where(end > 0, start, 0), xp.maximum(end - start, 0) * (end > 0)

    start, count = extent(kinds != EMPTY)
    other = xp.where(kinds != FULL, place, -1)
    since = place - (np.maximum.accumulate(other, 2) if host else jax.lax.cummax(other, axis=2))
    best = since.argmax(axis=2)
    length = since.max(axis=2)
    full_start = xp.where(length > 0, best - length + 1, 0)
    # At most 2**13 blocks: 15 bits are enough.
    words = xp.stack([(start << 15) | count, (full_start << 15) | length], axis=-1)
    width = max(1, int(count.max())) if host else columns
    return words.reshape(kinds.shape[0], rows * 2).astype(np.int32), width
