"""Attention in loops over blocks, in plain XLA: every platform's fallback and the CPU's choice.

Visits only blocks that the mask does not exclude, and applies the mask only in those it cuts.
Memory is O(T + S), forward and backward. Sources: Milakov and Gimelshein, "Online normalizer
calculation for softmax" (2018); Dao, "FlashAttention-2" (2023).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.ops.derivatives import differentiable
from attnjax.ops.lowering import lower_mask, lower_scores
from attnjax.ops.schedule import make_schedules
from attnjax.ops.softmax.blockwise_backward import backward
from attnjax.ops.softmax.blockwise_call import Arguments, Kernel
from attnjax.ops.softmax.blockwise_forward import forward
from attnjax.ops.softmax.problem import Problem
from attnjax.ops.softmax.stats import AttentionStats, stats_of
from attnjax.ops.softmax.tiling import make_tiling
from attnjax.ops.tiles import Tiling

_REFUSAL = (
    "A second reverse-mode derivative of blockwise attention is not available. Use forward mode "
    "for the outer derivative (jax.jvp of jax.grad, jax.hessian), or implementation='reference'."
)


def attend(
    problem: Problem,
    *,
    block_q: int | None = None,
    block_k: int | None = None,
    block_n: int | None = None,
    streams: int | None = None,
) -> tuple[Array, AttentionStats | None]:
    """Computes attention block by block.

    Args:
      problem: the call; no axis may be empty.
      block_q: queries in a block; None as in `make_tiling`, and so for the others.
      block_k: keys in a block.
      block_n: query heads in a tile.
      streams: most tiles, of different heads, that are computed side by side.

    Returns:
      The output `[B, T, N, D]` in the dtype of `v`, and the statistics if they are wanted.
    """
    tiling = make_tiling(problem, block_q, block_k, block_n, streams)
    run, arrays = operation(problem, tiling)
    out, *rows = run(*arrays)
    return out, stats_of(problem, *rows)


def operation(
    problem: Problem, tiling: Tiling
) -> tuple[Callable[..., tuple[Array, ...]], Arguments]:
    """Splits a call into a function and all its arrays, for kernels that borrow its derivatives.

    Args:
      problem: the call; no axis may be empty.
      tiling: the tiles.

    Returns:
      A function of the arrays that holds none itself. It gives the output `[B, T, N, D]`, logsumexp
      and, with statistics, entropy, max_logit, sink_mass and distance `[B, N, T]`. And the arrays.
    """
    kernel, arguments = prepare(problem, tiling)
    structure = jax.tree.structure(arguments)
    # The kernel must not hold the caller's arrays, for it outlives the trace that they belong to.
    op = differentiable(
        functools.partial(forward, kernel.bare(), structure),
        functools.partial(backward, kernel.bare(), structure),
        num_smooth=3 if problem.stats else 2,
        refusal=_REFUSAL,
    )
    B, T, N, D = (problem.sizes[a] for a in "BTND")

    def run(*arrays: Any) -> tuple[Array, ...]:
        out, *rows = op(*jax.tree.leaves(arrays))
        out = jnp.moveaxis(out.reshape(B, N, T, D), 1, 2)
        return (out, *(x.reshape(B, N, T) for x in rows))

    return run, arguments


def prepare(problem: Problem, tiling: Tiling) -> tuple[Kernel, Arguments]:
    """Splits a call into what is static and its arrays, for whoever computes tiles of it.

    Args:
      problem: the call; no axis may be empty.
      tiling: the tiles.

    Returns:
      The kernel, and all that it computes with.
    """
    dtype = problem.accumulation_dtype
    dropout = problem.dropout
    settings = None if dropout is None else (dropout.rate, dropout.shared)
    scores = lower_scores(problem.score_mods, problem.scale, tiling, dtype)
    mask = lower_mask(problem.mask, tiling)
    kernel = Kernel(
        tiling,
        scores,
        mask,
        dtype,
        problem.matmul_precision,
        problem.stats,
        settings,
        only_scaled=not problem.score_mods,
    )
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (problem.q, problem.k, problem.v))
    by_query, by_key = make_schedules(
        problem.mask, tiling, apart=problem.stats, origin=problem.origin
    )
    arguments = Arguments(
        q=q,
        k=k,
        v=v,
        sinks=None if problem.sinks is None else problem.sinks.reshape(tiling.K, tiling.groups),
        scores=scores.arrays,
        mask=mask.arrays,
        dropout=None if dropout is None else dropout.words(),
        by_query=by_query,
        by_key=by_key,
        origin=problem.origin,
        known=problem.known,
    )
    return kernel, arguments
