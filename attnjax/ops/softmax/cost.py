"""What a call costs: blocks, FLOPs, bytes and temporaries, from its shapes and its mask."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from attnjax.masks import EMPTY, FULL, Mask
from attnjax.numerics import matmul_dtype
from attnjax.ops.schedule import tile_kinds
from attnjax.ops.softmax import tpu_tiling
from attnjax.ops.softmax.problem import Problem
from attnjax.ops.softmax.tiling import make_tiling
from attnjax.ops.tiles import Tiling
from attnjax.typing import is_concrete


class Blocks(NamedTuple):
    """How many blocks of one head are visited, summed over the batch.

    Attributes:
      visited: visited at all; None if that depends on arrays that are not known yet.
      full: visited without applying the mask; None likewise.
      total: all blocks.
    """

    visited: int | None
    full: int | None
    total: int


class Cost(NamedTuple):
    """What a call costs.

    Attributes:
      blocks: blocks visited.
      flops_forward: floating-point operations of the matrix products.
      flops_backward: the same for the gradients of q, k and v.
      bytes_moved: bytes of q, k, v and the output: the least that a forward pass moves.
      temporaries_forward: estimated bytes of temporaries.
      temporaries_backward: estimated bytes of temporaries of a forward and backward pass.
    """

    blocks: Blocks
    flops_forward: int
    flops_backward: int
    bytes_moved: int
    temporaries_forward: int
    temporaries_backward: int


def count_blocks(mask: Mask, tiling: Tiling) -> Blocks:
    """Counts the blocks that an implementation visits.

    Args:
      mask: the caller's own mask, whose arrays may be known although those of the problem are not.
      tiling: the implementation's tiles.

    Returns:
      The counts.
    """
    t = tiling
    batches, _, nq, nk = t.counts
    total = batches * nq * nk
    if not is_concrete(*mask.leaves()):
        return Blocks(None, None, total)
    kinds: Any = np.broadcast_to(tile_kinds(mask, t, host=True), (batches, nq, nk))
    return Blocks(int((kinds != EMPTY).sum()), int((kinds == FULL).sum()), total)


def blockwise_cost(problem: Problem, blocks: Blocks) -> Cost:
    """Costs of `blockwise`; where the blocks are not known, of visiting all of them."""
    t, size = make_tiling(problem), problem.sizes
    tile = t.streams * math.prod(t.score_shape)
    visited = blocks.total if blocks.visited is None else blocks.visited
    products = 2 * visited * t.block_b * t.N * t.block_q * t.block_k
    wide = problem.accumulation_dtype.itemsize
    narrow = matmul_dtype(problem.q.dtype).itemsize
    rows, keys = size["B"] * size["N"] * size["T"], size["B"] * size["K"] * size["S"]
    finite = narrow * (rows * size["H"] + keys * (size["H"] + size["D"]))
    columns = narrow * rows * (size["H"] + 2 * size["D"])
    sums = 0 if problem.q.dtype == problem.accumulation_dtype else finite * wide // narrow
    return Cost(
        blocks,
        products * (size["H"] + size["D"]),
        products * (3 * size["H"] + 2 * size["D"]),
        bytes_moved(problem),
        finite + 3 * tile * wide,
        finite + columns + sums + 6 * tile * wide,
    )


def tpu_cost(problem: Problem, blocks: Blocks) -> Cost:
    """Costs of the TPU kernels; where the blocks are not known, of visiting all of them."""
    size, tiling = problem.sizes, tpu_tiling.tiling(problem)
    visited = blocks.total if blocks.visited is None else blocks.visited
    products = 2 * visited * size["N"] * tiling.block_q * tiling.block_k
    rows, keys = size["B"] * size["N"] * size["T"], size["B"] * size["K"] * size["S"]
    width = problem.q.dtype.itemsize
    finite = width * (rows * size["H"] + keys * (size["H"] + size["D"]))
    # Outputs before they are moved to [B, T, N, D], and eight numbers per row.
    out = width * rows * size["D"] + 32 * rows
    return Cost(
        blocks,
        products * (size["H"] + size["D"]),
        products * (4 * size["H"] + 3 * size["D"]),
        bytes_moved(problem),
        finite + out,
        2 * (finite + out),
    )


def reference_cost(problem: Problem, blocks: Blocks) -> Cost:
    """Costs of `reference`, which computes every score."""
    size = problem.sizes
    scores = size["B"] * size["N"] * size["T"] * size["S"]
    wide = problem.accumulation_dtype.itemsize
    return Cost(
        blocks._replace(visited=blocks.total, full=0),
        2 * scores * (size["H"] + size["D"]),
        2 * scores * 2 * (size["H"] + size["D"]),
        bytes_moved(problem),
        3 * scores * wide,
        6 * scores * wide,
    )


def bytes_moved(problem: Problem) -> int:
    """Returns the bytes of q, k, v and the output."""
    size = problem.sizes
    out = size["B"] * size["T"] * size["N"] * size["D"] * jnp.dtype(problem.v.dtype).itemsize
    arrays = (problem.q, problem.k, problem.v)
    return out + sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in arrays)
