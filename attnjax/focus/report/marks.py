"""Where warnings and remedies stand in a heat map."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from attnjax.focus.records import WHOLE_MODEL, Remedied, Warned
from attnjax.focus.report.statistics import Statistic, event_name

Rows = Sequence[tuple[str, int]]
"""(module, head) of every row of a picture, from the top."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """A warning or remedy in a picture.

    Attributes:
        kind: "own" for a warning that rests on the picture's statistic, "other", or "remedy".
        left: percent from the left.
        right: percent at which a warning ended; None for a remedy.
        middle: pixels from the top.
        top: pixels, of the rows that it is about.
        height: pixels, of the rows that it is about.
    """

    kind: str
    left: float
    right: float | None
    middle: float
    top: int
    height: int


def across(steps: np.ndarray, step: float) -> float:
    """Where a step lies, 0 to 1, among columns of one width."""
    return (float(np.interp(step, steps, np.arange(len(steps)))) + 0.5) / len(steps)


def marks(
    events: Sequence[Warned | Remedied], shown: Rows, steps: np.ndarray, row_height: int
) -> list[tuple[str, Mark]]:
    """The marks of all events whose heads are shown, each with the kind of warning or remedy.

    Args:
        events: what is marked.
        shown: the rows.
        steps: of the columns.
        row_height: in pixels.
    """
    found = []
    for event, rows in _placed(events, shown):
        top, height, right = rows[0] * row_height, len(rows) * row_height, None
        if isinstance(event, Warned):
            right = 100.0 if event.over is None else round(100 * across(steps, event.over), 2)
        mark = Mark(
            kind="other" if isinstance(event, Warned) else "remedy",
            left=round(100 * across(steps, event.step), 2),
            right=right,
            middle=top + height / 2,
            top=top,
            height=height,
        )
        found.append((event.what, mark))
    return found


def of_panel(found: Sequence[tuple[str, Mark]], statistic: Statistic) -> tuple[Mark, ...]:
    """The marks as one statistic's picture shows them: its own warnings stand out, on top."""
    shown = (
        dataclasses.replace(mark, kind="own")
        if mark.kind == "other" and what in statistic.warnings
        else mark
        for what, mark in found
    )
    return tuple(sorted(shown, key=lambda mark: ("other", "remedy", "own").index(mark.kind)))


def told(events: Sequence[Warned | Remedied], shown: Rows) -> list[list[Any]]:
    """Of every event: first row, last row, step, step at which it was over, and what it is."""
    found = []
    for event, rows in _placed(events, shown):
        kind, over = ("warning", event.over) if isinstance(event, Warned) else ("remedy", None)
        found.append([rows[0], rows[-1], event.step, over, f"{kind}: {event_name(event.what)}"])
    return found


def _placed(
    events: Sequence[Warned | Remedied], shown: Rows
) -> list[tuple[Warned | Remedied, list[int]]]:
    """The events whose heads are shown, with their rows."""
    rows: dict[tuple[str, int | None], list[int]] = {}
    for row, (module, head) in enumerate(shown):
        rows.setdefault((module, head), []).append(row)
        rows.setdefault((module, None), []).append(row)
        rows.setdefault((WHOLE_MODEL, None), []).append(row)
    return [(x, rows[x.module, x.head]) for x in events if (x.module, x.head) in rows]
