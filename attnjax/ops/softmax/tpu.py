"""Attention on a TPU in Pallas kernels: any mask and score_mod, block-sparse, with statistics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.ops import tuning
from attnjax.ops.kernels.programs import Part, lower_mask, lower_scores, part
from attnjax.ops.kernels.refusals import need_precision
from attnjax.ops.softmax.problem import Problem
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.ops.softmax.tpu_tiling import steps_of, tile_of
from attnjax.platform import need_tpu
from attnjax.scores import ScoreMod

_WIDEST = 256


def check(problem: Problem) -> None:
    """Refuses what these kernels can't compute.

    Raises:
      NotImplementedError: with the reason and the remedy.
    """
    need_tpu("blockwise")
    for name in ("q", "k", "v"):
        dtype = getattr(problem, name).dtype
        if dtype not in (jnp.float32, jnp.bfloat16):
            raise NotImplementedError(
                f"a TPU multiplies float32 and bfloat16 matrices, and {name} is of dtype {dtype}. "
                f"Pass {name}.astype('bfloat16'), or implementation='blockwise'."
            )
    size = problem.sizes
    for name, axis in (("q and k", "H"), ("v", "D")):
        if size[axis] > _WIDEST:
            raise NotImplementedError(
                f"a head of {name} is {size[axis]} wide, and a kernel's tiles hold at most "
                f"{_WIDEST}. Use more and narrower heads, or implementation='blockwise'."
            )
    need_precision(problem.precision, "blockwise")
    # Traced only, so that nothing is looked up twice.
    jax.eval_shape(lambda: _try_lowering(problem))


def _try_lowering(problem: Problem) -> None:
    # Not before: Pallas takes as long to import as all the rest of attnjax.
    from attnjax.ops.kernels.tpu_parts import parts_of

    tile = tile_of(problem)
    parts_of(lower_scores(problem.score_mods, problem.scale, tile, problem.origin), tile)
    parts_of(lower_mask(problem.mask, tile, problem.origin), tile)
    if 0 not in (problem.sizes[a] for a in "BTSN"):
        for by in "TS":
            steps_of(problem, tile, by)


def notes(problem: Problem) -> tuple[str, ...]:
    """Returns what to know of a call on the TPU kernels."""
    found = ["forward mode (jax.jvp, jax.jacfwd) is computed by blockwise"]
    tile = tile_of(problem)
    mods = (m for m in problem.score_mods if isinstance(m, ScoreMod))
    operands = [o for m in mods for o in m.operands(tile.sizes)]
    for operand in operands:
        if part(operand) is Part.TILE:
            size = 4 * tile.B * tile.N * tile.T * tile.S / 2**20
            found.append(
                f"the gradient of {operand.name}, if it is asked for, takes {size:.4g} MiB: it is "
                "made for every batch element and head before those that share it are added up"
            )
    return tuple(found)


def attend(
    problem: Problem,
    *,
    block_q: int | None = None,
    block_k: int | None = None,
    block_q_backward: int | None = None,
    block_k_backward: int | None = None,
) -> tuple[Array, AttentionStats | None]:
    """Computes attention in kernels.

    Args:
      problem: the call; no axis may be empty.
      block_q: queries in a block; a multiple of 128 on a TPU. None takes what a table in use says,
        or else what fits the mask; so do the others.
      block_k: keys in a block, likewise.
      block_q_backward: queries in a block of the backward pass; None takes `block_q`.
      block_k_backward: keys in a block of the backward pass; None takes `block_k`.

    Returns:
      The output `[B, T, N, D]` in the dtype of `v`, and the statistics if they are wanted.
    """
    from attnjax.ops.softmax import tpu_operation

    tile, best = tile_of(problem, block_q, block_k), tuning.options("tpu", problem)
    if block_q_backward is None and block_q is None:
        block_q_backward = best.get("block_q_backward")
    if block_k_backward is None and block_k is None:
        block_k_backward = best.get("block_k_backward")
    back = tile_of(
        problem,
        block_q if block_q_backward is None else block_q_backward,
        block_k if block_k_backward is None else block_k_backward,
    )
    return tpu_operation.compute(problem, tile, back)
