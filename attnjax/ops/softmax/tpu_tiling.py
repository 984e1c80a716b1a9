"""Chooses the tiles of the TPU kernels, their schedules and their precision."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax.numpy as jnp

from attnjax.masks import Segments, walk
from attnjax.ops import tuning
from attnjax.ops.kernels.programs import LANES, Tile
from attnjax.ops.kernels.steps import Steps, make_steps
from attnjax.ops.softmax.problem import Problem
from attnjax.ops.tiles import Tiling
from attnjax.scores import ScoreMod

# By static cycles on v5e and v6e, T=8192, H=128, bfloat16. Smaller blocks waste less where much of
# the mask is empty: with documents, whose number is not known here, and with narrow windows.
_BLOCK, _SPARSE_BLOCK = 1024, 512
_NARROW = 2048


def precision_of(problem: Problem) -> Any:
    """Returns the precision of the kernels' matrix products."""
    wide = jnp.float32 in (problem.q.dtype, problem.k.dtype, problem.v.dtype)
    # Products of bfloat16 numbers are exact in float32 as they are.
    return problem.matmul_precision if wide else None


def tile_of(problem: Problem, block_q: int | None = None, block_k: int | None = None) -> Tile:
    """Returns the tiles of a call: of the sizes given, or those that were measured to be best."""
    size, best, usual = problem.sizes, tuning.options("tpu", problem), _usual_block(problem)
    tile = Tile(
        size["B"],
        size["N"],
        size["T"],
        size["S"],
        _block(size["T"], best.get("block_q", usual)) if block_q is None else block_q,
        _block(size["S"], best.get("block_k", usual)) if block_k is None else block_k,
    )
    if None not in (block_q, block_k) or not _relative(problem, tile):
        return tile
    # Windows of relative positions line up where one block size is a multiple of the other.
    return dataclasses.replace(
        tile,
        block_q=_doubled(tile.block_q) if block_q is None else block_q,
        block_k=_doubled(tile.block_k) if block_k is None else block_k,
    )


def _relative(problem: Problem, tile: Tile) -> bool:
    mods = (m for m in problem.score_mods if isinstance(m, ScoreMod))
    return any(o.relative for m in mods for o in m.operands(tile.sizes))


def _doubled(block: int) -> int:
    """Returns the power of two times LANES that is not smaller than a block."""
    return LANES << (-(-block // LANES) - 1).bit_length()


def _usual_block(problem: Problem) -> int:
    lowest, highest = problem.mask.offsets()
    sparse = any(isinstance(leaf, Segments) for leaf in walk(problem.mask))
    return _SPARSE_BLOCK if sparse or highest - lowest < _NARROW else _BLOCK


def _block(length: int, block: int) -> int:
    return min(block, -(-max(length, 1) // LANES) * LANES)


def candidates(problem: Problem) -> list[dict[str, int]]:
    """Returns blocks of the forward pass that are worth measuring, the default first."""
    return _candidates(problem, "block_q", "block_k")


def candidates_backward(problem: Problem) -> list[dict[str, int]]:
    """Returns blocks of the backward pass that are worth measuring, the default first."""
    return _candidates(problem, "block_q_backward", "block_k_backward")


def _candidates(problem: Problem, *names: str) -> list[dict[str, int]]:
    size, usual = problem.sizes, _usual_block(problem)
    found = {
        (_block(size["T"], block_q), _block(size["S"], block_k)): None
        for block_q, block_k in ((usual, usual), *itertools.product((256, 512, 1024), repeat=2))
    }
    return [dict(zip(names, blocks, strict=True)) for blocks in found]


def tiling(problem: Problem) -> Tiling:
    """Returns the tiles of a call's forward pass, as schedules take them."""
    return _tiling(problem, tile_of(problem))


def _tiling(problem: Problem, tile: Tile) -> Tiling:
    K = problem.sizes["K"]
    return Tiling(tile.B, tile.T, tile.S, tile.N, K, 1, tile.N, tile.block_q, tile.block_k)


def steps_of(problem: Problem, tile: Tile, by: str, *, apart: bool = False) -> Steps:
    """Returns the schedule of a kernel on these tiles; see `make_steps`."""
    tiles, origin = _tiling(problem, tile), problem.origin
    return make_steps(problem.mask, tiles, by=by, apart=apart, origin=origin)
