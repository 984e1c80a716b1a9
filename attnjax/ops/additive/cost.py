"""What a call of additive attention costs, from its shapes and its mask."""

from __future__ import annotations

import math

from attnjax.ops.additive.blockwise import BLOCK
from attnjax.ops.additive.problem import AdditiveProblem
from attnjax.ops.softmax import cost
from attnjax.ops.softmax.cost import Blocks, Cost
from attnjax.ops.softmax.tiling import make_tiling
from attnjax.ops.tiles import Tiling


def tiling(problem: AdditiveProblem) -> Tiling:
    """Returns the tiles of `blockwise`."""
    return make_tiling(problem.softmax, BLOCK, BLOCK)


def blockwise_cost(problem: AdditiveProblem, blocks: Blocks) -> Cost:
    """Costs of `blockwise`; where the blocks are not known, of visiting all of them."""
    if not blocks.total:
        return _cost(problem, blocks, 0, 0, 0)
    t, size = tiling(problem), problem.softmax.sizes
    visited = blocks.total if blocks.visited is None else blocks.visited
    pairs = visited * t.block_b * t.N * t.block_q * t.block_k
    wide = problem.softmax.accumulation_dtype.itemsize
    rows, keys = size["B"] * size["N"] * size["T"], size["B"] * size["K"] * size["S"]
    finite = wide * (2 * (rows + keys) * size["H"] + keys * size["D"])
    tile = t.streams * math.prod(t.score_shape) * wide
    return _cost(problem, blocks, pairs, finite + 3 * tile, 3 * finite + 8 * tile)


def reference_cost(problem: AdditiveProblem, blocks: Blocks) -> Cost:
    """Costs of `reference`, which computes every hidden layer at once."""
    size = problem.softmax.sizes
    pairs = size["B"] * size["N"] * size["T"] * size["S"]
    hidden = pairs * size["H"] * problem.softmax.accumulation_dtype.itemsize
    return _cost(problem, blocks._replace(visited=blocks.total, full=0), pairs, hidden, 3 * hidden)


def _cost(
    problem: AdditiveProblem, blocks: Blocks, pairs: int, forward: int, backward: int
) -> Cost:
    """Counts for each pair and unit a sum, a tanh, a product and a sum, and again in reverse."""
    H, D = (problem.softmax.sizes[a] for a in "HD")
    return Cost(
        blocks,
        pairs * (4 * H + 2 * D),
        pairs * (12 * H + 6 * D),
        cost.bytes_moved(problem.softmax),
        forward,
        backward,
    )
