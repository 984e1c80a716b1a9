"""Chooses an implementation and calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array

from attnjax.masks import Mask
from attnjax.ops.additive import blockwise, reference
from attnjax.ops.additive.cost import blockwise_cost, reference_cost, tiling
from attnjax.ops.additive.problem import AdditiveProblem
from attnjax.ops.choosing import anything, choose, runner
from attnjax.ops.softmax import dispatch
from attnjax.ops.softmax.cost import Blocks, Cost, count_blocks
from attnjax.ops.softmax.plan import EMPTY_NOTE, Plan, user_notes
from attnjax.ops.softmax.stats import AttentionStats


class Implementation(NamedTuple):
    """One way to compute an `AdditiveProblem`; the attributes are as in softmax attention."""

    attend: Callable[[AdditiveProblem], tuple[Array, AttentionStats | None]]
    cost: Callable[[AdditiveProblem, Blocks], Cost]
    check: Callable[[AdditiveProblem], None] = anything
    preferred: bool = True


# In order of preference.
IMPLEMENTATIONS: dict[str, Implementation] = {
    "blockwise": Implementation(blockwise.attend, blockwise_cost),
    "reference": Implementation(reference.attend, reference_cost, preferred=False),
}
_run = runner(IMPLEMENTATIONS)


def attend(
    problem: AdditiveProblem, implementation: str | None = None
) -> tuple[Array, AttentionStats | None]:
    """Computes a problem by the chosen implementation.

    Args:
      problem: the call.
      implementation: a name, or None for `blockwise`.

    Returns:
      The output `[B, T, N, D]` and the statistics, or None if they are not wanted.

    Raises:
      ValueError: for an unknown name.
    """
    name = name_of(problem, implementation)
    if 0 in problem.softmax.sizes.values():
        # Without queries, keys or heads there are no scores: the kind of score does not matter.
        return dispatch.attend(problem.softmax)
    return _run(problem, name)


def name_of(problem: AdditiveProblem, implementation: str | None) -> str:
    """Returns which implementation computes a problem.

    Raises:
      ValueError: for an unknown name.
    """
    return choose(IMPLEMENTATIONS, problem, implementation).name


def explain(problem: AdditiveProblem, mask: Mask, implementation: str | None = None) -> Plan:
    """Says how a problem would be computed.

    Args:
      problem: the call, which may hold tracers.
      mask: the caller's mask, with its arrays as far as they are known.
      implementation: as in `attend`.

    Returns:
      The plan.
    """
    name, reasons = choose(IMPLEMENTATIONS, problem, implementation)
    notes, tiles = user_notes(problem), ""
    if 0 in problem.softmax.sizes.values():
        blocks = Blocks(0, 0, 0)
        notes += (EMPTY_NOTE,)
    else:
        t = tiling(problem)
        blocks = count_blocks(mask, t)
        if name == "blockwise":
            tiles = f"{t.block_q} queries by {t.block_k} keys: the default"
    return Plan(name, reasons, IMPLEMENTATIONS[name].cost(problem, blocks), notes, tiles)
