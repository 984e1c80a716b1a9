"""Chooses an implementation and calls it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from jaxtyping import Array

from attnjax.ops.additive import blockwise, reference
from attnjax.ops.additive.problem import AdditiveProblem
from attnjax.ops.softmax import dispatch
from attnjax.ops.softmax.stats import AttentionStats

Attend = Callable[[AdditiveProblem], tuple[Array, AttentionStats | None]]

# In order of preference; each takes every problem.
IMPLEMENTATIONS: dict[str, Attend] = {
    "blockwise": blockwise.attend,
    "reference": reference.attend,
}


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
    if implementation is not None and implementation not in tuple(IMPLEMENTATIONS):
        known = ", ".join(sorted(IMPLEMENTATIONS))
        raise ValueError(
            f"implementation: expected None or one of {known}; got {implementation!r}."
        )
    if 0 in problem.softmax.sizes.values():
        # Without queries, keys or heads there are no scores: the kind of score does not matter.
        return dispatch.attend(problem.softmax)
    call = _uncached if problem.softmax.user_functions else _cached
    return call(problem, implementation or next(iter(IMPLEMENTATIONS)))


def _uncached(problem: AdditiveProblem, name: str) -> tuple[Array, AttentionStats | None]:
    return IMPLEMENTATIONS[name](problem)


_cached = functools.partial(jax.jit, static_argnames="name")(_uncached)
