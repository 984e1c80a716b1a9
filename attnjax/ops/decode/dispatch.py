"""Chooses an implementation and calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array

from attnjax.ops.choosing import anything, choose, runner
from attnjax.ops.decode import tpu, xla
from attnjax.ops.decode.problem import DecodeProblem
from attnjax.ops.softmax.stats import AttentionStats


class Implementation(NamedTuple):
    """One way to compute a `DecodeProblem`; the attributes are as in softmax attention."""

    attend: Callable[[DecodeProblem], tuple[Array, AttentionStats | None]]
    check: Callable[[DecodeProblem], None] = anything
    preferred: bool = True


# In order of preference.
IMPLEMENTATIONS: dict[str, Implementation] = {
    "tpu": Implementation(tpu.attend, tpu.check),
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
