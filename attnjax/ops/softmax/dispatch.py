"""Chooses an implementation, calls it, and says why."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.masks import Mask
from attnjax.numerics import MASKED
from attnjax.ops.softmax import blockwise, reference
from attnjax.ops.softmax.cost import Blocks, Cost, blockwise_cost, count_blocks, reference_cost
from attnjax.ops.softmax.plan import Plan
from attnjax.ops.softmax.problem import Problem
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.platform import Platform, platform


class Implementation(NamedTuple):
    """One way to compute a `Problem`.

    Attributes:
      attend: computes it.
      check: raises NotImplementedError with the reason if this implementation can't.
      cost: what it costs.
      preferred: whether None may choose it; the reference is for checking only.
    """

    attend: Callable[[Problem], tuple[Array, AttentionStats | None]]
    check: Callable[[Problem], None]
    cost: Callable[[Problem, Blocks], Cost]
    preferred: bool = True


def _anything(problem: Problem) -> None:
    """Accepts every problem."""


# In order of preference.
IMPLEMENTATIONS: dict[str, Implementation] = {
    "blockwise": Implementation(blockwise.attend, _anything, blockwise_cost),
    "reference": Implementation(reference.attend, _anything, reference_cost, preferred=False),
}


class Choice(NamedTuple):
    """An implementation and why no other.

    Attributes:
      name: the implementation.
      reasons: for each other implementation, why it was not chosen.
    """

    name: str
    reasons: dict[str, str]


def choose(problem: Problem, implementation: str | None) -> Choice:
    """Chooses an implementation.

    Args:
      problem: the call.
      implementation: a name, which is used or raises, or None for the first that can.

    Returns:
      The choice.

    Raises:
      ValueError: for an unknown name.
      NotImplementedError: if the named implementation can't compute this problem.
    """
    if implementation is not None and implementation not in tuple(IMPLEMENTATIONS):
        known = ", ".join(sorted(IMPLEMENTATIONS))
        raise ValueError(
            f"implementation: expected None or one of {known}; got {implementation!r}."
        )
    chosen, reasons = implementation, {}
    for name, candidate in IMPLEMENTATIONS.items():
        if name == chosen:
            candidate.check(problem)
        elif implementation is not None:
            reasons[name] = f"implementation={implementation!r} was asked for"
        elif chosen is not None:
            reasons[name] = (
                f"{chosen} comes first"
                if candidate.preferred
                else "it needs O(T * S) memory; it is the specification that others are tested by"
            )
        else:
            try:
                candidate.check(problem)
            except NotImplementedError as error:
                reasons[name] = str(error)
            else:
                chosen = name
    assert chosen is not None, "blockwise accepts every problem"
    return Choice(chosen, reasons)


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
    name = choose(problem, implementation).name
    size = problem.sizes
    if 0 in (size[a] for a in "BTSN"):
        return _nothing(problem)
    # Without this, an eager call would compile its loops anew every time. Functions of the caller
    # stay outside, for their closures may change between calls.
    call = _uncached if problem.user_functions else _cached
    return call(problem, name, platform())


def explain(problem: Problem, mask: Mask, implementation: str | None = None) -> Plan:
    """Says how a problem would be computed.

    Args:
      problem: the call, which may hold tracers.
      mask: the caller's mask, with its arrays as far as they are known.
      implementation: as in `choose`.

    Returns:
      The plan.
    """
    name, reasons = choose(problem, implementation)
    notes = []
    if problem.user_functions:
        notes.append(
            "a function of yours takes part: outside jax.jit every call compiles anew, because "
            "what the function closes over may have changed"
        )
    size = problem.sizes
    if 0 in (size[a] for a in "BTSN"):
        blocks = Blocks(0, 0, 0)
        notes.append("an axis is empty: the result is known without computing")
    else:
        blocks = count_blocks(mask, problem)
    return Plan(name, reasons, IMPLEMENTATIONS[name].cost(problem, blocks), tuple(notes))


def _uncached(
    problem: Problem, name: str, platform: Platform
) -> tuple[Array, AttentionStats | None]:
    """Computes; the platform is an argument only so that no trace for another one is reused."""
    return IMPLEMENTATIONS[name].attend(problem)


_cached = functools.partial(jax.jit, static_argnames=("name", "platform"))(_uncached)


def _nothing(problem: Problem) -> tuple[Array, AttentionStats | None]:
    """The result where an axis is empty: there is nothing to attend to, or nobody to attend."""
    size = problem.sizes
    out = jnp.zeros((size["B"], size["T"], size["N"], size["D"]), problem.v.dtype)
    if not problem.stats:
        return out, None
    zero = jnp.zeros((size["B"], size["N"], size["T"]), jnp.float32)
    lowest = jnp.full_like(zero, MASKED)
    return out, AttentionStats(lowest, lowest, zero, zero, zero)
