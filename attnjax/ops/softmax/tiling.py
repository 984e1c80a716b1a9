"""Chooses the tiles of blockwise attention, for the caches and threads of a CPU."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from attnjax.ops import tuning
from attnjax.ops.softmax.problem import Problem
from attnjax.ops.tiles import Tiling

# Measured on 4 cores: tiles of 2 heads of 512 x 512 scores, 4 of them side by side.
_BATCH_SCORES = 2 * 512 * 512
_VISIT_SCORES = 8 * 512 * 512
_ALONE_SCORES = 512 * 512
_BLOCK, _STREAMS = 512, 4


def make_tiling(
    problem: Problem,
    block_q: int | None = None,
    block_k: int | None = None,
    block_n: int | None = None,
    streams: int | None = None,
) -> Tiling:
    """Chooses the tiles of a call.

    One batch element is a tile of its own, so that its blocks are skipped by its own mask, unless
    the sequences are so short that there is little to skip; then as many are as fit a cache. Tiles
    of different heads are computed side by side: XLA:CPU runs operations that do not depend on each
    other at the same time, where all its threads would wait after every operation for the slowest.

    Args:
      problem: the call; no axis may be empty.
      block_q: queries in a block. None takes what a table in use says (`attnjax.ops.tuning`), or
        512; so do the next and the last.
      block_k: keys in a block.
      block_n: query heads in a tile, a divisor of N that is a multiple or a divisor of N // K, or
        None.
      streams: most tiles side by side.

    Returns:
      The tiles.
    """
    size, best = problem.sizes, tuning.options("blockwise", problem)
    block_q = best.get("block_q", _BLOCK) if block_q is None else block_q
    block_k = best.get("block_k", _BLOCK) if block_k is None else block_k
    streams = best.get("streams", _STREAMS) if streams is None else streams
    B, N, groups = size["B"], size["N"], size["N"] // size["K"]
    block_q, block_k = max(1, min(block_q, size["T"])), max(1, min(block_k, size["S"]))
    short = -(-size["T"] // block_q) * -(-size["S"] // block_k) < 4
    block_b = _nearest(_divisors(B), _BATCH_SCORES / (block_q * block_k)) if short else 1
    scores = block_b * block_q * block_k
    if block_n is None:
        block_n, streams = _heads(N, groups, scores, streams)
    else:
        streams = max(s for s in _divisors(N // block_n) if s <= streams)
    return Tiling(
        B, size["T"], size["S"], N, size["K"], block_b, block_n, block_q, block_k, streams
    )


def candidates(problem: Problem) -> list[dict[str, int]]:
    """Returns blocks that are worth measuring, the default first."""
    size = problem.sizes
    sizes = ((_BLOCK, _BLOCK), *itertools.product((256, 512, 1024), repeat=2))
    found = {(min(q, size["T"]), min(k, size["S"])): None for q, k in sizes}
    return [{"block_q": q, "block_k": k} for q, k in found]


def _heads(N: int, groups: int, scores: int, streams: int) -> tuple[int, int]:
    """Chooses the heads of a tile and how many tiles are side by side.

    A tile of a single head is avoided: XLA:CPU multiplies single matrices more slowly.
    """
    if N == 1 or N * scores <= _ALONE_SCORES:
        return N, 1
    whole = [n for n in _divisors(N) if n > 1 and (n % groups == 0 or groups % n == 0)]
    choices = [(n, s) for n in whole for s in _divisors(N // n) if s <= streams]
    wanted = _nearest((n * s for n, s in choices), max(8.0, _VISIT_SCORES / scores))
    return max((c for c in choices if c[0] * c[1] == wanted), key=lambda c: c[1])


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _nearest(numbers: Iterable[int], target: float) -> int:
    return min(numbers, key=lambda n: abs(math.log(n / target)))
