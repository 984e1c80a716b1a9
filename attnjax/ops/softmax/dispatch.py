"""Chooses an implementation, calls it, and says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from attnjax.masks import Mask
from attnjax.numerics import MASKED
from attnjax.ops.choosing import anything, choose, runner
from attnjax.ops.softmax import blockwise, gpu, reference, tiling, tpu, tpu_tiling, vendor
from attnjax.ops.softmax.cost import (
    Blocks,
    Cost,
    blockwise_cost,
    count_blocks,
    reference_cost,
    tpu_cost,
)
from attnjax.ops.softmax.plan import EMPTY_NOTE, Plan, user_notes
from attnjax.ops.softmax.problem import Problem
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.ops.tiles import Tiling
from attnjax.ops.tuning import Stage, source


class Implementation(NamedTuple):
    """One way to compute a `Problem`.

    Attributes:
      attend: computes it.
      check: raises NotImplementedError with the reason if this implementation can't.
      cost: what it costs.
      preferred: whether None may choose it; the reference is for checking only.
      tiling: the tiles by which its blocks are counted.
      notes: what else to know of a call.
      stages: its options that `attnjax.autotune` measures, one stage after the other.
    """

    attend: Callable[[Problem], tuple[Array, AttentionStats | None]]
    check: Callable[[Problem], None]
    cost: Callable[[Problem, Blocks], Cost]
    preferred: bool = True
    tiling: Callable[[Problem], Tiling] = tiling.make_tiling
    notes: Callable[[Problem], tuple[str, ...]] = lambda problem: ()
    stages: tuple[Stage, ...] = ()


# In order of preference.
IMPLEMENTATIONS: dict[str, Implementation] = {
    "tpu": Implementation(
        tpu.attend,
        tpu.check,
        tpu_cost,
        tiling=tpu_tiling.tiling,
        notes=tpu.notes,
        stages=(
            Stage(("block_q", "block_k"), tpu_tiling.candidates, "forward"),
            Stage(
                ("block_q_backward", "block_k_backward"), tpu_tiling.candidates_backward, "backward"
            ),
        ),
    ),
    "cudnn": Implementation(vendor.attend, vendor.check, vendor.cost, notes=vendor.notes),
    # After cuDNN as long as no GPU has run it: it is compiled and interpreted only.
    "gpu": Implementation(gpu.attend, gpu.check, gpu.cost, tiling=gpu.tiling, notes=gpu.notes),
    "blockwise": Implementation(
        blockwise.attend,
        anything,
        blockwise_cost,
        stages=(Stage(("block_q", "block_k", "streams"), tiling.candidates),),
    ),
    "reference": Implementation(reference.attend, anything, reference_cost, preferred=False),
}
_run = runner(IMPLEMENTATIONS)


def attend(
    problem: Problem, implementation: str | None = None
) -> tuple[Array, AttentionStats | None]:
    """Computes a problem by the chosen implementation.

    Args:
      problem: the call.
      implementation: as in `choose`.

    Returns:
      The output `[B, T, N, D]` and the statistics, or None if they are not wanted.
    """
    name = choose(IMPLEMENTATIONS, problem, implementation).name
    size = problem.sizes
    if 0 in (size[a] for a in "BTSN"):
        return _nothing(problem)
    return _run(problem, name)


def explain(problem: Problem, mask: Mask, implementation: str | None = None) -> Plan:
    """Says how a problem would be computed.

    Args:
      problem: the call, which may hold tracers.
      mask: the caller's mask, with its arrays as far as they are known.
      implementation: as in `choose`.

    Returns:
      The plan.
    """
    name, reasons = choose(IMPLEMENTATIONS, problem, implementation)
    chosen = IMPLEMENTATIONS[name]
    notes, tiles = (*chosen.notes(problem), *user_notes(problem)), ""
    size = problem.sizes
    if 0 in (size[a] for a in "BTSN"):
        blocks = Blocks(0, 0, 0)
        notes += (EMPTY_NOTE,)
    else:
        t = chosen.tiling(problem)
        blocks = count_blocks(mask, t)
        if chosen.stages:
            tiles = f"{t.block_q} queries by {t.block_k} keys: {source(name, problem)}"
    return Plan(name, reasons, chosen.cost(problem, blocks), notes, tiles)


def _nothing(problem: Problem) -> tuple[Array, AttentionStats | None]:
    """The result where an axis is empty: there is nothing to attend to, or nobody to attend."""
    size = problem.sizes
    out = jnp.zeros((size["B"], size["T"], size["N"], size["D"]), problem.v.dtype)
    if not problem.stats:
        return out, None
    zero = jnp.zeros((size["B"], size["N"], size["T"]), jnp.float32)
    lowest = jnp.full_like(zero, MASKED)
    return out, AttentionStats(lowest, lowest, zero, zero, zero)
