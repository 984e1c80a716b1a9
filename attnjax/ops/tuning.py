"""Options of implementations that were measured to be best: which of a table serve a call.

A table is used where a caller says so (`attnjax.autotune.use`), never by itself.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from attnjax.masks import Mask, walk
from attnjax.platform import platform

Options = Mapping[str, int]


class Call(Protocol):
    """What is asked of a call: a `Problem` is one."""

    @property
    def sizes(self) -> dict[str, int]:
        """Axis sizes by letter."""

    @property
    def q(self) -> Any:
        """Queries."""

    @property
    def mask(self) -> Mask:
        """The mask."""

    @property
    def score_mods(self) -> tuple:
        """The score_mods."""

    @property
    def dropout(self) -> Any:
        """Dropout, or None."""

    @property
    def stats(self) -> bool:
        """Whether statistics are wanted."""


class Stage(NamedTuple):
    """Options that are chosen together.

    Attributes:
      names: the options.
      candidates: `candidates(problem)` gives those to measure, the default first.
      timed: the pass whose time decides: `forward`, `backward` for forward and backward together,
        or `either`, as the caller asks.
    """

    names: tuple[str, ...]
    candidates: Callable[[Any], list[dict[str, int]]]
    timed: Literal["forward", "backward", "either"] = "either"


class Key(NamedTuple):
    """What an entry of a table serves.

    Attributes:
      device: the device that it was measured on, as `device` names it.
      implementation: the implementation whose options it holds.
      call: the kind of call, as `kind_of` gives it.
    """

    device: str
    implementation: str
    call: tuple[tuple[str, int | str | bool], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Options that were measured to be best.

    Attributes:
      entries: by what they serve.
      name: where the table is from.
    """

    entries: Mapping[Key, Options]
    name: str


_active: contextvars.ContextVar[Table | None] = contextvars.ContextVar("table", default=None)


def active() -> Table | None:
    """Returns the table in use, or None."""
    return _active.get()


@contextlib.contextmanager
def using(table: Table | None) -> Iterator[None]:
    """Uses a table while the context lasts; None uses none."""
    token = _active.set(table)
    try:
        yield
    finally:
        _active.reset(token)


def device() -> str:
    """Returns the name of the device at hand, on which options are measured."""
    here = platform()
    if not here.here:
        return f"{here.name}, emulated"
    kind = jax.devices()[0].device_kind
    return f"{kind}, {os.cpu_count()} threads" if here.name == "cpu" else kind


def kind_of(problem: Call) -> tuple[tuple[str, int | str | bool], ...]:
    """Returns the kind of a call: what its best options depend on, lengths in powers of two."""
    size = problem.sizes
    kind: dict[str, int | str | bool] = {
        "dtype": jnp.dtype(problem.q.dtype).name,
        **{letter: _power(size[letter]) for letter in "BTSN"},
        "groups": size["N"] // size["K"],
        "H": size["H"],
        "D": size["D"],
        "mask": " ".join(sorted({type(leaf).__name__ for leaf in walk(problem.mask)})),
        "score_mods": bool(problem.score_mods),
        "dropout": problem.dropout is not None,
        "stats": problem.stats,
    }
    return tuple(sorted(kind.items()))


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()


def options(implementation: str, problem: Call) -> Options:
    """Returns the options that the table in use has for a call; none where it has none."""
    table = active()
    if table is None or 0 in problem.sizes.values():
        return {}
    return table.entries.get(Key(device(), implementation, kind_of(problem)), {})


def source(implementation: str, problem: Call) -> str:
    """Says where the options of a call come from."""
    table = active()
    if options(implementation, problem):
        return f"measured on {device()}, from {table.name}" if table else ""
    return "the default" if table is None else f"the default; {table.name} has none for this call"
