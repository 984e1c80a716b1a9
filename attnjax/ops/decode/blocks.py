"""Which blocks of a cache a kernel reads, and in what order."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from attnjax.masks import EMPTY
from attnjax.masks.blocks import Grid, classify
from attnjax.ops.decode.flat import Flat, check_integers
from attnjax.ops.decode.layout import Paged
from attnjax.ops.decode.problem import DecodeProblem

_EIGHT_BITS = (jnp.int8, jnp.float8_e4m3fn, jnp.float8_e5m2)
# Widest head, and most rows, whose tiles fit the vector memory.
_WIDEST, _MOST_ROWS = 256, 512
# Most scores in a tile, and numbers in a block of keys.
_SCORES, _NUMBERS = 128 * 1024, 4096 * 128
_MOST_PIECES = 16
# Of the 1 MiB of scalar memory of a TPU core.
_BUDGET = 512 * 1024


class Visits(NamedTuple):
    """The blocks that are visited, for each example.

    Attributes:
      order: block numbers, those visited first.
      total: how many are visited.
      length: positions in the cache.
      pages: the page of each piece of each block, for a paged cache; else one 0.
    """

    order: Int[Array, "B blocks"]
    total: Int[Array, "B"]
    length: Int[Array, "B"]
    pages: Int[Array, "B pieces"]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How a cache is cut.

    Attributes:
      slots: slots of a block.
      count: number of blocks.
      pieces: pages of a block; 1 where there are none.
      paged: whether a piece is a page.
    """

    slots: int
    count: int
    pieces: int
    paged: bool

    def visited(
        self, visits: Visits, splits: int, b: Array, p: Array, s: Array
    ) -> tuple[Array, Array]:
        """Returns the block of step `s` of split `p`, and whether there is something to do."""
        count = visits.total[b]
        share = (count + (splits - 1)) // splits
        n = p * share + s
        active = (s < share) & (n < count)
        # Where there is nothing to do, the block that is there already, so that nothing is read.
        last = jnp.minimum(p * share + jnp.maximum(share, 1), jnp.maximum(count, 1)) - 1
        return visits.order[b, jnp.minimum(n, last)], active

    def piece(self, visits: Visits, b: Array, j: Array, n: int) -> tuple[Array, Array]:
        """Returns where piece `n` of block `j` lies in the array of the cache, in pieces."""
        if not self.paged:
            return b, j
        return visits.pages[b, j * self.pieces + n], jnp.int32(0)


def blocks_of(problem: DecodeProblem, flat: Flat, most: int | None) -> Blocks:
    """Chooses how the cache of a call is cut.

    Args:
      problem: the call.
      flat: how its rows and columns are numbered.
      most: most slots in a block, or None.

    Raises:
      NotImplementedError: with the reason, if a kernel can't take this call.
    """
    B, T, N, H = problem.q.shape
    (_, _, K, D), capacity = problem.v.shape, problem.layout.capacity(problem.k)
    _check(problem, N * T, max(H, D))
    if most is None:
        width = K * max(H, D) if flat.turned else max(H, D, 128)
        columns = min(_SCORES // max(N * T, 16), _NUMBERS // width)
        most = max(128, columns // flat.columns)
    if isinstance(problem.layout, Paged):
        size = problem.k.shape[1]
        pieces = max(1, min(most // size, _MOST_PIECES))
        slots = size * pieces
        step = 128 // math.gcd(128, size * K)  # so many pages are whole lanes
        pieces = -(-pieces // step) * step
        if (size * K) % 32 or pieces > _MOST_PIECES:
            raise NotImplementedError(
                f"pages of {size} slots and {K} key heads do not fill a TPU's registers, which "
                "takes a product that is a multiple of 32. Use larger pages, or "
                "implementation='xla'."
            )
        slots, paged = size * pieces, True
    else:
        slots, pieces, paged = _slots(capacity, flat.columns, most), 1, False
    count = -(-capacity // slots)
    if B * count * (1 + pieces * paged) * 4 > _BUDGET:
        raise NotImplementedError(
            f"{B} examples of {count} blocks and {count * pieces * paged} pages do not fit the "
            "scalar memory of a TPU. Use larger pages, shard the batch, or implementation='xla'."
        )
    return Blocks(slots, count, pieces, paged)


def _slots(capacity: int, columns: int, most: int) -> int:
    """Returns how many slots a block has: a divisor of the capacity, if there is a good one."""
    if capacity <= most:
        return capacity
    unit = 128 // math.gcd(128, columns)
    for slots in range(most // unit * unit, most // 4, -unit):
        if slots and capacity % slots == 0:
            return slots
    return max(most // unit, 1) * unit


def _check(problem: DecodeProblem, rows: int, width: int) -> None:
    wanted = (jnp.float32, jnp.bfloat16)
    if problem.q.dtype not in wanted:
        raise NotImplementedError(
            f"a TPU multiplies float32 and bfloat16 matrices, and q is of dtype {problem.q.dtype}. "
            "Pass q.astype('bfloat16'), or implementation='xla'."
        )
    for name, x in (("k", problem.k), ("v", problem.v)):
        if x.dtype not in (*wanted, *_EIGHT_BITS):
            known = ", ".join(jnp.dtype(d).name for d in _EIGHT_BITS)
            raise NotImplementedError(
                f"{name} is of dtype {x.dtype}, and of eight bits the kernel takes {known}. "
                "Quantise to one of these, or use implementation='xla'."
            )
    if rows > _MOST_ROWS:
        raise NotImplementedError(
            f"{rows} rows (queries times heads) are more than the {_MOST_ROWS} whose tiles fit the "
            "vector memory. Pass fewer queries at a time, shard the heads, or use "
            "implementation='xla'; a prompt is what attnjax.attention is for."
        )
    if width > _WIDEST:
        raise NotImplementedError(
            f"a head is {width} wide, and a kernel's tiles hold at most {_WIDEST}. Use more and "
            "narrower heads, or implementation='xla'."
        )
    check_integers(problem)


def visits_of(problem: DecodeProblem, blocks: Blocks) -> Visits:
    """Lists the blocks that a call visits: those within the length that the mask may allow."""
    B = problem.q.shape[0]
    layout, capacity = problem.layout, problem.layout.capacity(problem.k)
    length = jnp.broadcast_to(problem.length, (B,)).astype(jnp.int32)
    first = jnp.arange(blocks.count, dtype=jnp.int32) * blocks.slots
    some = first < jnp.minimum(length, capacity)[:, None]
    some &= _allowed(problem, blocks, length)
    order = jnp.argsort(~some, axis=1, stable=True).astype(jnp.int32)
    pages = jnp.zeros((B, 1), jnp.int32)
    if isinstance(layout, Paged):
        size, (_, M) = problem.k.shape[1], layout.table.shape
        last = jnp.clip((length - 1) // size, 0, M - 1)
        # Entries beyond an example's length may be anything.
        n = jnp.minimum(jnp.arange(blocks.count * blocks.pieces), last[:, None])
        pages = jnp.take_along_axis(layout.table.astype(jnp.int32), n, axis=1)
        pages = jnp.clip(pages, 0, problem.k.shape[0] - 1)
    return Visits(order, jnp.sum(some, axis=1, dtype=jnp.int32), length, pages)


def _allowed(problem: DecodeProblem, blocks: Blocks, length: Array) -> Array:
    """Returns which blocks the mask may allow to any query, bool `[B|1, blocks]`."""
    T, capacity = problem.q.shape[1], problem.layout.capacity(problem.k)
    everything = jnp.ones((1, blocks.count), bool)
    if problem.layout.endless or any(o.size("T") not in (1, T) for o in problem.mask.operands()):
        return everything
    grid: Any = Grid(T, capacity, T, blocks.slots, host=False)
    grid.q_lo = (length - T).reshape(-1, 1, 1, 1)
    grid.q_hi = grid.q_lo + (T - 1)
    return jnp.any(classify(problem.mask, grid)[:, :, 0] != EMPTY, axis=1)
