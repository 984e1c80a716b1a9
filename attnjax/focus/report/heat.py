"""Heat maps of heads over steps: pictures, marks of warnings and remedies, and words."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from attnjax.focus.records import Records
from attnjax.focus.report.charts import text_of_step
from attnjax.focus.report.colours import indices, png, viridis
from attnjax.focus.report.marks import Mark, Rows, across, marks, of_panel, told
from attnjax.focus.report.scales import Scale, scale_of, text
from attnjax.focus.report.statistics import Statistic, short_names, statistics
from attnjax.focus.report.thinning import Limits, some

_HEIGHT, _ROW = 560, (2, 18)  # pixels of a picture, and least and most of a row
_LABEL = 13  # pixels of a line of text
_COLUMNS = 6  # of the table under a picture
_LEVELS = 65534  # of the numbers behind a picture; one more stands for none


@dataclasses.dataclass(frozen=True)
class Band:
    """The rows of one module: where they begin, how high they are, and whether a label fits."""

    module: str
    label: str
    top: int
    height: int
    labelled: bool


@dataclasses.dataclass(frozen=True)
class Panel:
    """The heat map of one statistic."""

    statistic: Statistic
    picture: str
    scale: Scale
    marks: tuple[Mark, ...]
    summary: str
    header: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class HeatMaps:
    """All heat maps of a run.

    Attributes:
        panels: one for each statistic.
        bands: the modules, from the top.
        height: pixels of a picture.
        x_ticks: place in percent and step.
        notes: what was left out, in sentences.
        data: what the script needs to read values out, for JSON.
    """

    panels: tuple[Panel, ...]
    bands: tuple[Band, ...]
    height: int
    x_ticks: tuple[tuple[float, str], ...]
    notes: tuple[str, ...]
    data: Mapping[str, Any]


def chosen_heads(records: Records, most: int) -> np.ndarray:
    """Indices of at most `most` columns: those with warnings and remedies first."""
    columns = records.heads.columns
    if len(columns) <= most:
        return np.arange(len(columns))
    with_events = {(event.module, event.head) for event in records.events}
    order = sorted(range(len(columns)), key=lambda place: columns[place] not in with_events)
    return np.asarray(sorted(order[:most]))


def shared_scales(runs: Iterable[Records]) -> dict[str, Scale]:
    """One scale for each statistic that fits every run, so that their colours mean the same."""
    values: dict[str, list[np.ndarray]] = {}
    for records in runs:
        for name, array in records.heads.values.items():
            values.setdefault(name, []).append(array.ravel())
    return {
        statistic.name: scale_of(np.concatenate(values[statistic.name]), fixed=statistic.ends)
        for statistic in statistics(values)
    }


def heat_maps(records: Records, limits: Limits, scales: Mapping[str, Scale]) -> HeatMaps | None:
    """Draws all statistics of a run.

    Args:
        records: of the run.
        limits: what fits on the page.
        scales: of every statistic, from `shared_scales`.

    Returns:
        The pictures; None where no statistics were recorded.
    """
    heads = records.heads
    if not len(heads.steps) or not heads.columns or not heads.values:
        return None
    rows = chosen_heads(records, limits.heads)
    known = statistics(heads.values)
    names = known[: limits.statistics]
    room = max(2, limits.cells // (len(rows) * len(names)))
    columns = some(len(heads.steps), min(limits.steps, room))
    shown = [heads.columns[row] for row in rows]
    bands, height, row_height = _bands(shown)
    steps = heads.steps[columns]
    events = records.events[-limits.events :]
    placed = marks(events, shown, steps, row_height)
    notes = []
    if len(columns) < len(heads.steps):
        notes.append(f"{len(columns):,} of the {len(heads.steps):,} recorded steps are shown.")
    if len(rows) < len(heads.columns):
        notes.append(
            f"{len(rows):,} of the {len(heads.columns):,} heads are shown: those with warnings or "
            "remedies, then the first ones."
        )
    if len(events) < len(records.events):
        notes.append(
            f"The last {len(events):,} of {len(records.events):,} warnings and remedies are marked."
        )
    if len(names) < len(known):
        notes.append(f"{len(names):,} of the {len(known):,} statistics are shown.")
    panels, data = [], {}
    for statistic in names:
        values = heads.values[statistic.name][np.ix_(columns, rows)]
        places = scales[statistic.name].place(values)
        panels.append(
            Panel(
                statistic=statistic,
                picture=png(indices(places.T), viridis()),
                scale=scales[statistic.name],
                marks=of_panel(placed, statistic),
                summary=_summary(statistic, heads.values[statistic.name], shown, rows),
                **_table(values, steps, shown),
            )
        )
        scale = scales[statistic.name]
        data[statistic.name] = {
            "low": scale.low,
            "high": scale.high,
            "log": scale.log,
            "unit": statistic.unit,
            "levels": _levels(places),
        }
    return HeatMaps(
        panels=tuple(panels),
        bands=bands,
        height=height,
        x_ticks=tuple(
            (float(100 * across(steps, step)), text_of_step(step))
            for step in steps[some(len(steps), 5)]
        ),
        notes=tuple(notes),
        data={
            "steps": steps.tolist(),
            "heads": [[module, head] for module, head in shown],
            "rowHeight": row_height,
            "statistics": data,
            "events": told(events, shown),
        },
    )


def _bands(shown: Rows) -> tuple[tuple[Band, ...], int, int]:
    row_height = min(_ROW[1], max(_ROW[0], _HEIGHT // len(shown)))
    modules = [module for module, _ in shown]
    short, bands, free = short_names(dict.fromkeys(modules)), [], 0
    for module in dict.fromkeys(modules):
        top = modules.index(module) * row_height
        height = modules.count(module) * row_height
        middle = top + height // 2
        labelled = middle >= free
        free = middle + _LABEL if labelled else free
        bands.append(Band(module, short[module], top, height, labelled))
    return tuple(bands), len(shown) * row_height, row_height


def _levels(places: np.ndarray) -> str:
    """Places 0 to 1 as little-endian 16-bit numbers, step by step, in base64."""
    known = np.isfinite(places)
    levels = np.where(known, np.round(np.where(known, places, 0) * _LEVELS), _LEVELS + 1)
    return base64.b64encode(levels.astype("<u2").tobytes()).decode()


def _summary(statistic: Statistic, values: np.ndarray, shown: Rows, rows: np.ndarray) -> str:
    """What a heat map shows, in a sentence."""
    last = values[-1, rows]
    if not np.isfinite(last).any():
        return f"{statistic.title}: no finite value at the last recorded step."
    low, high = int(np.nanargmin(last)), int(np.nanargmax(last))

    def whose(place: int) -> str:
        module, head = shown[place]
        return f"{text(float(last[place]))} (head {head} of {module})"

    return (
        f"{statistic.title} of {len(shown):,} heads over {len(values):,} recorded steps; at the "
        f"last one from {whose(low)} to {whose(high)}, median {text(float(np.nanmedian(last)))}."
    )


def _table(values: np.ndarray, steps: np.ndarray, shown: Rows) -> dict[str, Any]:
    """Mean, least and most over the heads of each module, at some steps."""
    columns = some(len(steps), _COLUMNS)
    modules = np.asarray([module for module, _ in shown], object)
    rows = []
    for module in dict.fromkeys(modules):
        cells = [module]
        for part in values[columns][:, modules == module]:
            known = part[np.isfinite(part)].astype(np.float64)
            if not known.size:
                cells.append(text(None))
            elif known.size == 1:
                cells.append(text(float(known[0])))
            else:
                ends = f"{text(float(known.min()))} to {text(float(known.max()))}"
                cells.append(f"{text(float(known.mean()))} ({ends})")
        rows.append(tuple(cells))
    header = ("module", *(f"step {text_of_step(step)}" for step in steps[columns]))
    return {"header": header, "table": tuple(rows)}
