"""Attention on Hopper GPUs in Mosaic GPU kernels: any mask, most score_mods, block-sparse."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.ops.softmax.cost import Blocks, Cost, blockwise_cost
from attnjax.ops.softmax.problem import Problem
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.ops.tiles import Tiling
from attnjax.platform import platform

_ELSEWHERE = "Use implementation=None or 'blockwise'."


def check(problem: Problem) -> None:
    """Raises NotImplementedError, with the reason and a remedy, unless the kernels can do it."""
    here = platform()
    if here.name != "gpu":
        raise NotImplementedError(
            f"the GPU kernels need an NVIDIA GPU, and jax runs on the {here.name}. {_ELSEWHERE} To "
            "run them here, slowly, put the call into `with attnjax.emulate('gpu'):`."
        )
    if here.here:
        _check_device(jax.devices()[0])
    # Not before: Mosaic GPU takes as long to import as all the rest of attnjax.
    from attnjax.ops.kernels import mosaic_gpu
    from attnjax.ops.softmax import gpu_operation

    if here.interpret:
        mosaic_gpu.interpreter()
    size = problem.sizes
    for refused, reason in (
        (
            problem.origin is not None and problem.stats,
            "the GPU kernels compute no statistics for a part of a sharded call, whose distances "
            "need its place in the whole. Pass stats=False",
        ),
        (problem.dropout is not None, "the GPU kernels have no dropout"),
        (
            problem.precision is not None,
            "the precision of the GPU kernels cannot be chosen. Pass precision=None",
        ),
        (
            problem.q.dtype not in (jnp.float16, jnp.bfloat16),
            f"the GPU kernels do not take {problem.q.dtype}. Cast to bfloat16",
        ),
        (
            size["H"] not in (64, 128) or size["D"] != size["H"],
            "the GPU kernels take keys and values of width 64 or 128, got "
            f"H={size['H']} and D={size['D']}",
        ),
    ):
        if refused:
            raise NotImplementedError(f"{reason}. {_ELSEWHERE}")
    # Arrays that a function looks up are computed while lowering, but here only their shapes.
    jax.eval_shape(lambda: gpu_operation.lower(problem) and None)


def _check_device(device: Any) -> None:
    capability = getattr(device, "compute_capability", None)
    if capability != "9.0":
        raise NotImplementedError(
            "the GPU kernels are compiled for compute capability 9.0 (H100, H200), got "
            f"{capability} ({device.device_kind}). {_ELSEWHERE}"
        )


def tiling(problem: Problem) -> Tiling:
    """Returns the tiles of a call's forward pass, as schedules take them."""
    from attnjax.ops.softmax import gpu_operation

    B, T, S, N, K = (problem.sizes[a] for a in "BTSNK")
    return Tiling(B, T, S, N, K, 1, N, *gpu_operation.lower(problem).forward.blocks)


def cost(problem: Problem, blocks: Blocks) -> Cost:
    """Costs of the kernels; where the blocks are not known, of visiting all of them."""
    size, tiles = problem.sizes, tiling(problem)
    visited = blocks.total if blocks.visited is None else blocks.visited
    products = 2 * visited * size["N"] * tiles.block_q * tiles.block_k
    rows, keys = size["B"] * size["T"] * size["N"], size["B"] * size["S"] * size["K"]
    # Arrays without NaNs, and a few numbers per row.
    finite = (rows + 2 * keys) * size["H"] * problem.q.dtype.itemsize + 4 * (rows + keys)
    numbers = 4 * rows * (5 if problem.stats else 1)
    return blockwise_cost(problem, blocks)._replace(
        flops_forward=products * 2 * size["H"],
        flops_backward=products * 7 * size["H"],
        temporaries_forward=finite + numbers,
        temporaries_backward=finite + numbers + 8 * rows,
    )


def notes(problem: Problem) -> tuple[str, ...]:
    """Returns what to know of a call on the GPU kernels."""
    if not problem.score_mods:
        return ()
    return (
        "gradients of arrays in score_mods, if they are asked for, are computed by blockwise, all "
        "other gradients of that call with them",
    )


def attend(problem: Problem) -> tuple[Array, AttentionStats | None]:
    """Computes attention on the GPU.

    Args:
      problem: a call that `check` accepts; no axis may be empty.

    Returns:
      The output `[B, T, N, D]` in the dtype of `v`, and the statistics if they are wanted.
    """
    from attnjax.ops.softmax import gpu_operation

    return gpu_operation.compute(problem, interpret=platform().interpret)
