"""Choosing an implementation, and calling it, for every operation alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from attnjax.masks import Mask, Where, walk
from attnjax.ops.tuning import Table, active
from attnjax.platform import Platform, platform
from attnjax.scores import Declared, ScoreFn, ScoreMod


class Candidate(Protocol):
    """One way to compute a problem."""

    @property
    def attend(self) -> Callable[[Any], Any]:
        """Computes it."""

    @property
    def check(self) -> Callable[[Any], None]:
        """Raises NotImplementedError with the reason if this implementation can't."""

    @property
    def preferred(self) -> bool:
        """Whether None may choose it; a reference is for checking only."""


class Choice(NamedTuple):
    """An implementation and why no other.

    Attributes:
      name: the implementation.
      reasons: for each other implementation, why it was not chosen.
    """

    name: str
    reasons: dict[str, str]


def anything(problem: object) -> None:
    """Accepts every problem."""


def choose(candidates: Mapping[str, Candidate], problem: Any, implementation: str | None) -> Choice:
    """Chooses an implementation.

    Args:
      candidates: by name, in order of preference; a preferred one accepts every problem.
      problem: the call.
      implementation: a name, which is used or raises, or None for the first that can.

    Returns:
      The choice.

    Raises:
      ValueError: for an unknown name.
      NotImplementedError: if the named implementation can't compute this problem.
    """
    # A tuple, because an unhashable value is a wrong name too.
    if implementation is not None and implementation not in tuple(candidates):
        known = ", ".join(sorted(candidates))
        raise ValueError(
            f"implementation: expected None or one of {known}; got {implementation!r}."
        )
    chosen, reasons = implementation, {}
    for name, candidate in candidates.items():
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
    assert chosen is not None, "one implementation accepts every problem"
    return Choice(chosen, reasons)


def runner(candidates: Mapping[str, Candidate]) -> Callable[[Any, str], Any]:
    """Returns `run(problem, name)`, which computes a problem by the named implementation."""

    def compute(problem: Any, name: str, platform: Platform, table: Table | None) -> Any:
        # The last two are arguments only so that no trace for others is reused.
        return candidates[name].attend(problem)

    cached = jax.jit(compute, static_argnames=("name", "platform", "table"))

    def run(problem: Any, name: str) -> Any:
        # Without this, an eager call would compile its loops anew every time. Functions of the
        # caller stay outside, for their closures may change between calls.
        call = compute if problem.user_functions else cached
        return call(problem, name, platform(), active())

    return run


def user_functions(mask: Mask, score_mods: tuple[ScoreMod | ScoreFn, ...]) -> bool:
    """Returns whether functions of the caller take part, whose closures no cache can compare.

    So does a ScoreMod that is not registered as a pytree: its arrays can't be told from its code.
    """
    mods = any(
        not isinstance(m, ScoreMod) or isinstance(m, Declared) or jax.tree_util.all_leaves([m])
        for m in score_mods
    )
    return mods or any(isinstance(leaf, Where) for leaf in walk(mask))
