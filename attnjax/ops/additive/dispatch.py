"""Chooses an implementation and calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array

from attnjax.ops.additive import blockwise, reference
from attnjax.ops.additive.problem import AdditiveProblem
from attnjax.ops.choosing import anything, choose, runner
from attnjax.ops.softmax import dispatch
from attnjax.ops.softmax.stats import AttentionStats


class Implementation(NamedTuple):
    """One way to compute an `AdditiveProblem`; the attributes are as in softmax attention."""

    attend: Callable[[AdditiveProblem], tuple[Array, AttentionStats | None]]
    check: Callable[[AdditiveProblem], None] = anything
    preferred: bool = True


# In order of preference.
IMPLEMENTATIONS: dict[str, Implementation] = {
    "blockwise": Implementation(blockwise.attend),
    "reference": Implementation(reference.attend, preferred=False),
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
    name = choose(IMPLEMENTATIONS, problem, implementation).name
    if 0 in problem.softmax.sizes.values():
        # Without queries, keys or heads there are no scores: the kind of score does not matter.
        return dispatch.attend(problem.softmax)
    return _run(problem, name)
