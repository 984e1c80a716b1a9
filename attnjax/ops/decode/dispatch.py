"""Chooses an implementation and calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array

from attnjax.masks import Mask
from attnjax.ops.choosing import anything, choose, runner
from attnjax.ops.decode import xla
from attnjax.ops.decode.cost import tpu_cost, tpu_notes, xla_cost, xla_notes
from attnjax.ops.decode.problem import DecodeProblem
from attnjax.ops.softmax.cost import Cost
from attnjax.ops.softmax.plan import Plan, user_notes
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.platform import need_tpu


class Implementation(NamedTuple):
    """One way to compute a `DecodeProblem`; the attributes are as in softmax attention."""

    attend: Callable[[DecodeProblem], tuple[Array, AttentionStats | None]]
    check: Callable[[DecodeProblem], None] = anything
    preferred: bool = True
    cost: Callable[[DecodeProblem, Mask, int | Array], Cost] = xla_cost
    notes: Callable[[DecodeProblem], tuple[str, ...]] = xla_notes


def _attend_tpu(problem: DecodeProblem) -> tuple[Array, AttentionStats | None]:
    from attnjax.ops.decode import tpu

    return tpu.attend(problem)


def _check_tpu(problem: DecodeProblem) -> None:
    need_tpu("xla")
    # Not before: Pallas takes as long to import as all the rest of attnjax.
    from attnjax.ops.decode import tpu

    tpu.check(problem)


# In order of preference.
IMPLEMENTATIONS: dict[str, Implementation] = {
    "tpu": Implementation(_attend_tpu, _check_tpu, cost=tpu_cost, notes=tpu_notes),
    "xla": Implementation(xla.attend),
}
_run = runner(IMPLEMENTATIONS)


def attend(
    problem: DecodeProblem, implementation: str | None = None
) -> tuple[Array, AttentionStats | None]:
    """Computes a problem by the chosen implementation.

    Args:
      problem: the call.
      implementation: a name, which is used or raises, or None for the first that can.

    Returns:
      The output `[B, T, N, D]` and the statistics, or None if they are not wanted.

    Raises:
      ValueError: for an unknown name.
      NotImplementedError: if the named implementation can't compute this problem.
    """
    return _run(problem, choose(IMPLEMENTATIONS, problem, implementation).name)


def explain(
    problem: DecodeProblem, mask: Mask, length: int | Array, implementation: str | None = None
) -> Plan:
    """Says how a problem would be computed.

    Args:
      problem: the call, which may hold tracers.
      mask: the caller's mask, with its arrays as far as they are known.
      length: the caller's length, likewise.
      implementation: as in `attend`.

    Returns:
      The plan.
    """
    name, reasons = choose(IMPLEMENTATIONS, problem, implementation)
    chosen = IMPLEMENTATIONS[name]
    notes = (*chosen.notes(problem), *user_notes(problem))
    return Plan(name, reasons, chosen.cost(problem, mask, length), notes)
