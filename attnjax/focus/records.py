"""What focus.jsonl of a run directory says: statistics of heads over steps, warnings, remedies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attnjax.focus.lines import Problems, floats, number, objects, step_of

RECORDS = "focus.jsonl"
VERSION = 1
WHOLE_MODEL = ""
"""In the place of a module, for what was done to all of them."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which modules are recorded.

    Attributes:
        modules: number of heads by dotted module path, in the model's order.
        every: steps from one record to the next; None where it is not known.
    """

    modules: Mapping[str, int]
    every: int | None = None

    @property
    def columns(self) -> tuple[tuple[str, int], ...]:
        """(module, head) of every head, in order."""
        return tuple((name, head) for name, n in self.modules.items() for head in range(n))


@dataclasses.dataclass(frozen=True)
class Heads:
    """Statistics over steps.

    Attributes:
        steps: int64 [R], rising.
        columns: (module, head) of the C heads.
        values: float32 [R, C] by the statistic's name; NaN where a value was not finite or is not
            there.
    """

    steps: np.ndarray
    columns: tuple[tuple[str, int], ...]
    values: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Warned:
    """A warning: `what` of a head, or of a whole module, from `step` on.

    Attributes:
        step: when it was given.
        module: dotted path.
        head: its number; None for the whole module.
        what: the kind, such as "entropy_collapse".
        value: the measured number; None where it was not finite.
        threshold: the number that it passed.
        why: one sentence.
        over: the step at which it ended; None while it stands.
    """

    step: int
    module: str
    head: int | None
    what: str
    value: float | None
    threshold: float | None
    why: str
    over: int | None = None


@dataclasses.dataclass(frozen=True)
class Remedied:
    """A remedy that was applied.

    Attributes:
        step: when.
        module: dotted path; `WHOLE_MODEL` for what was done to all.
        head: its number; None for the whole module.
        what: the kind, such as "qk_clip".
        strength: as the remedy defines it; None where it has none.
        why: one sentence.
    """

    step: int
    module: str
    head: int | None
    what: str
    strength: float | None
    why: str


@dataclasses.dataclass(frozen=True)
class Records:
    """All of a focus.jsonl that could be read.

    Attributes:
        layout: the modules; empty where nothing was recorded.
        heads: statistics over steps.
        warnings: in the order of their steps.
        remedies: in the order of their steps.
        problems: a sentence for everything that is missing or broken.
    """

    layout: Layout
    heads: Heads
    warnings: tuple[Warned, ...]
    remedies: tuple[Remedied, ...]
    problems: tuple[str, ...]

    @property
    def events(self) -> list[Warned | Remedied]:
        """Warnings and remedies together, in the order of their steps."""
        return sorted([*self.warnings, *self.remedies], key=_step)


def _step(event: Warned | Remedied) -> int:
    return event.step


def read_records(path: Path) -> Records:
    """Reads a focus.jsonl, however much of it there is.

    Lines that say nothing this version understands are left out and told of in `problems`. Where
    a step stands twice (a run that was killed went on from an older checkpoint), the later row
    counts. A file of another version is not read: its numbers may mean something else.

    Args:
        path: the file; it may be missing.
    """
    problems = Problems()
    try:
        reader = _read(path, problems)
    except FileNotFoundError:
        problems.add(f"{path.name} is missing: the run was not watched (--focus)")
        reader = _Reader(path.name, problems)
    except OSError as error:
        problems.add(f"{path.name} cannot be read: {error.strerror}")
        reader = _Reader(path.name, problems)
    return reader.records()


def _read(path: Path, problems: Problems) -> _Reader:
    reader = _Reader(path.name, problems)
    for _, row in objects(path, problems):
        if row.get("kind") == "layout" and row.get("version") != VERSION:
            problems.add(
                f"{path.name} is of version {str(row.get('version'))[:40]}, and only version "
                f"{VERSION} is understood here: nothing of it is shown"
            )
            return _Reader(path.name, problems)
        reader.take(row)
    if reader.layout is None:
        problems.add(f"{path.name} has no layout line")
    if not reader.rows:
        problems.add(f"{path.name} has no statistics of heads")
    return reader


class _Reader:
    """Gathers rows; arrays are made at the end, when all columns are known."""

    def __init__(self, name: str, problems: Problems) -> None:
        self.name, self._problems = name, problems
        self.layout: Layout | None = None
        self.rows: dict[int, dict[str, dict[str, np.ndarray]]] = {}
        self._warnings: dict[tuple[int, str, int | None, str], Warned] = {}
        self._remedies: dict[tuple[int, str, int | None, str], Remedied] = {}

    def take(self, row: dict[str, Any]) -> None:
        """Takes one line."""
        kind = row.get("kind")
        if kind == "layout":
            self._take_layout(row)
            return
        step = step_of(row)
        if kind not in ("heads", "warning", "remedy", "over"):
            self._problems.add(f"{self.name}: a line of an unknown kind was left out")
        elif step is None:
            self._problems.add(f"{self.name}: a {kind} line without a step was left out")
        elif kind == "heads":
            self._take_heads(step, row.get("modules"))
        else:
            self._take_event(kind, step, row)

    def _take_layout(self, row: dict[str, Any]) -> None:
        modules = row.get("modules")
        sizes = {
            name: about.get("heads") if isinstance(about, dict) else None
            for name, about in (modules.items() if isinstance(modules, dict) else ())
        }
        good = {name: n for name, n in sizes.items() if type(n) is int and 0 < n <= 4096}
        if not good or len(good) < len(sizes):
            self._problems.add(f"{self.name}: the layout does not say how many heads a module has")
        every = row.get("every")
        self.layout = Layout(good, every if type(every) is int and every > 0 else None)

    def _take_heads(self, step: int, modules: Any) -> None:
        if not isinstance(modules, dict):
            self._problems.add(f"{self.name}: a heads line without modules was left out")
            return
        if step in self.rows:
            self._problems.add(f"{self.name}: a step stands twice; its later row is shown")
        row = self.rows[step] = {}
        for module, statistics in modules.items():
            for statistic, values in (
                statistics.items() if isinstance(statistics, dict) else [("", None)]
            ):
                array = floats(values)
                if array is None:
                    self._problems.add(f"{self.name}: a statistic that is no list of numbers")
                else:
                    row.setdefault(module, {})[statistic] = array

    def _take_event(self, kind: str, step: int, row: dict[str, Any]) -> None:
        module, head, what = row.get("module"), row.get("head"), row.get("what")
        whose = head is None or (isinstance(head, int) and not isinstance(head, bool))
        if not isinstance(module, str) or not isinstance(what, str) or not whose:
            self._problems.add(f"{self.name}: a {kind} line without module, head or what")
            return
        why, key = str(row.get("why", "")), (step, module, head, what)
        if kind == "warning":
            self._warnings[key] = Warned(
                *key, number(row.get("value")), number(row.get("threshold")), why
            )
        elif kind == "remedy":
            self._remedies[key] = Remedied(*key, number(row.get("strength")), why)
        else:
            begun = [k for k, w in self._warnings.items() if k[1:] == key[1:] and _stands(w, step)]
            for k in begun:
                self._warnings[k] = dataclasses.replace(self._warnings[k], over=step)

    def records(self) -> Records:
        """All that was taken."""
        layout = self.layout or Layout(self._sizes())
        steps = sorted(self.rows)
        known = {name for row in self.rows.values() for name in row}
        if unknown := known - layout.modules.keys():
            self._problems.add(
                f"{self.name}: modules that the layout does not name were left out: "
                + ", ".join(sorted(unknown))[:200]
            )
        names = list(
            dict.fromkeys(s for row in self.rows.values() for m in row.values() for s in m)
        )
        heads = Heads(
            steps=np.asarray(steps, np.int64),
            columns=layout.columns,
            values={name: self._values(name, steps, layout) for name in names},
        )
        return Records(
            layout=layout,
            heads=heads,
            warnings=tuple(sorted(self._warnings.values(), key=lambda x: x.step)),
            remedies=tuple(sorted(self._remedies.values(), key=lambda x: x.step)),
            problems=self._problems.sentences,
        )

    def _sizes(self) -> dict[str, int]:
        """The heads of each module, from the statistics, where there is no layout."""
        sizes: dict[str, int] = {}
        for row in self.rows.values():
            for module, statistics in row.items():
                largest = max(len(values) for values in statistics.values())
                sizes[module] = max(sizes.get(module, 0), largest)
        return sizes

    def _values(self, statistic: str, steps: list[int], layout: Layout) -> np.ndarray:
        """One statistic as [R, C]."""
        result = np.full((len(steps), len(layout.columns)), np.nan, np.float32)
        for place, step in enumerate(steps):
            start = 0
            for module, heads in layout.modules.items():
                values = self.rows[step].get(module, {}).get(statistic)
                if values is not None and len(values) == heads:
                    result[place, start : start + heads] = values
                elif values is not None:
                    self._problems.add(
                        f"{self.name}: {statistic[:40]} of {module[:80]} should have {heads} "
                        f"numbers, one for each head, but has {len(values)}"
                    )
                start += heads
        return result


def _stands(warning: Warned, step: int) -> bool:
    return warning.over is None and warning.step <= step
