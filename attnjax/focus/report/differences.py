"""What two runs differ in."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from attnjax.focus.records import Records
from attnjax.focus.report.scales import clip
from attnjax.focus.report.statistics import Statistic, short_names


@dataclasses.dataclass(frozen=True)
class HeadDifferences:
    """The last statistics of the heads that both runs have.

    Attributes:
        rows: module, its short name, head, and A, B, B - A by the statistic's name.
        steps: at which they were recorded, of A and of B.
        notes: what is not compared, in sentences.
    """

    rows: tuple[tuple[str, str, int, Mapping[str, tuple[float, float, float]]], ...]
    steps: tuple[int, int]
    notes: tuple[str, ...]


def head_differences(
    a: Records, b: Records, names: Sequence[Statistic], most: int
) -> HeadDifferences | None:
    """Compares the last recorded statistics, head by head.

    Args:
        a: of the first run.
        b: of the second run.
        names: the statistics.
        most: rows; those with the largest differences stay, measured in standard deviations of
            each statistic.

    Returns:
        The differences; None where a run has no statistics, or no head is in both.
    """
    places_b = {column: place for place, column in enumerate(b.heads.columns)}
    common = [
        (column, place, places_b[column])
        for place, column in enumerate(a.heads.columns)
        if column in places_b
    ]
    if not common or not len(a.heads.steps) or not len(b.heads.steps):
        return None
    at_a, at_b = [place for _, place, _ in common], [place for _, _, place in common]
    values = {x.name: np.stack([_last(a, x.name)[at_a], _last(b, x.name)[at_b]]) for x in names}
    shared = {module for (module, _), _, _ in common}
    notes = []
    for letter, records in (("A", a), ("B", b)):
        if extra := len(records.heads.columns) - len(common):
            alone = [module for module in records.layout.modules if module not in shared]
            named = f": {clip(', '.join(alone), 300)}" if alone else ""
            heads = "head is" if extra == 1 else "heads are"
            notes.append(f"{extra:,} {heads} in run {letter} only{named}.")
    chosen = _largest(values, most) if len(common) > most else range(len(common))
    if len(common) > most:
        notes.append(f"The {most:,} heads of {len(common):,} that differ most are shown.")
    short = short_names(dict.fromkeys(column[0] for column, _, _ in common))
    return HeadDifferences(
        rows=tuple(
            (
                (column := common[place][0])[0],
                short[column[0]],
                column[1],
                {
                    name: (float(x[0, place]), float(x[1, place]), float(x[1, place] - x[0, place]))
                    for name, x in values.items()
                },
            )
            for place in chosen
        ),
        steps=(int(a.heads.steps[-1]), int(b.heads.steps[-1])),
        notes=tuple(notes),
    )


def _last(records: Records, name: str) -> np.ndarray:
    values = records.heads.values.get(name)
    if values is None:
        return np.full(len(records.heads.columns), np.nan)
    return values[-1].astype(np.float64)


def _largest(values: Mapping[str, np.ndarray], most: int) -> list[int]:
    """The rows with the largest differences of all statistics, in their order."""
    sizes = []
    for x in values.values():
        known = x[np.isfinite(x)]
        spread = float(known.std()) if known.size else 0.0
        sizes.append(np.nan_to_num(np.abs(x[1] - x[0]), nan=np.inf) / (spread or 1.0))
    return sorted(np.argsort(-np.max(sizes, axis=0), kind="stable")[:most].tolist())


def config_differences(
    a: Mapping[str, Any] | None, b: Mapping[str, Any] | None, most: int
) -> tuple[list[tuple[str, str, str]], int]:
    """The fields in which two configs differ: name, A, B; and how many more there are."""
    before, now = dict(_flat(a or {})), dict(_flat(b or {}))
    absent = "(absent)"
    rows = [
        (clip(name, 120), clip(before.get(name, absent), 200), clip(now.get(name, absent), 200))
        for name in sorted(before.keys() | now.keys())
        if before.get(name, absent) != now.get(name, absent)
    ]
    return rows[:most], max(0, len(rows) - most)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and the JSON of every leaf."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, json.dumps(value)
