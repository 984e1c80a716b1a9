"""What a decoding call costs, and what else to know of it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.masks import Mask
from attnjax.numerics import accumulation_dtype
from attnjax.ops.decode.blocks import blocks_of, visits_of
from attnjax.ops.decode.flat import flat_of
from attnjax.ops.decode.layout import Paged
from attnjax.ops.decode.problem import DecodeProblem
from attnjax.ops.softmax.cost import Blocks, Cost
from attnjax.typing import is_concrete


def xla_cost(problem: DecodeProblem, mask: Mask, length: int | Array) -> Cost:
    """Costs of plain XLA, which reads the whole cache."""
    blocks = Blocks(problem.q.shape[0], 0, problem.q.shape[0])
    copies = 2 if isinstance(problem.layout, Paged) else 0
    return _cost(problem, blocks, 1.0, copies * _cache_bytes(problem) // 2)


def tpu_cost(problem: DecodeProblem, mask: Mask, length: int | Array) -> Cost:
    """Costs of the TPU kernel; where the visited blocks are not known, of visiting all of them.

    Args:
      problem: the call, which may hold tracers.
      mask: the caller's mask, with its arrays as far as they are known.
      length: the caller's length, likewise.
    """
    cut = blocks_of(problem, flat_of(problem), None)
    total = problem.q.shape[0] * cut.count
    visited = None
    if is_concrete(length, *mask.leaves()):
        with jax.ensure_compile_time_eval():
            lengths = jnp.atleast_1d(jnp.asarray(length, jnp.int32))
            known = dataclasses.replace(problem, mask=mask, length=lengths)
            visited = int(jnp.sum(visits_of(known, cut).total))
    blocks = Blocks(visited, None if visited is None else 0, total)
    return _cost(problem, blocks, 1.0 if visited is None else visited / total, 0)


def _cost(problem: DecodeProblem, blocks: Blocks, share: float, copies: int) -> Cost:
    (B, T, N, H), D = problem.q.shape, problem.v.shape[-1]
    capacity = problem.sizes["S"]
    flops = int(2 * B * T * N * capacity * (H + D) * share)
    wide = accumulation_dtype(problem.q.dtype).itemsize
    q, out = problem.q.dtype.itemsize * B * T * N * H, problem.q.dtype.itemsize * B * T * N * D
    scores = wide * B * N * T * capacity
    return Cost(
        blocks,
        flops,
        2 * flops,
        q + out + int(_cache_bytes(problem) * share),
        copies + 3 * scores,
        copies + 6 * scores,
    )


def _cache_bytes(problem: DecodeProblem) -> int:
    """Returns the bytes of the keys, values and factors that belong to the call's examples."""
    B, capacity = problem.q.shape[0], problem.sizes["S"]
    arrays: tuple[Any, ...] = (problem.k, problem.v, problem.k_scale, problem.v_scale)
    return sum(
        B * capacity * math.prod(x.shape[2:]) * x.dtype.itemsize for x in arrays if x is not None
    )


def xla_notes(problem: DecodeProblem) -> tuple[str, ...]:
    """Returns what to know of a call in plain XLA."""
    if not isinstance(problem.layout, Paged):
        return ()
    return ("the pages are first gathered into a copy",)


def tpu_notes(problem: DecodeProblem) -> tuple[str, ...]:
    """Returns what to know of a call of the TPU kernel."""
    if flat_of(problem).turned or problem.k.shape[-1] % 128 == problem.v.shape[-1] % 128 == 0:
        return ()
    return (
        "heads are no multiple of 128 wide, so that XLA may keep the cache in another order, and "
        "copy it for the kernel",
    )
