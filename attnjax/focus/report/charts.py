"""Line charts: what a template needs to draw them, in parts of a thousand, and in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from attnjax.focus.report.runs import Line
from attnjax.focus.report.scales import Scale, scale_of, text
from attnjax.focus.report.thinning import extremes, some

_ROWS = 9  # of the table under a chart


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A line of a chart: its label, its CSS class, its `d` of an SVG path, and its lone points."""

    label: str
    style: str
    path: str
    dots: str


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: for people.
        lines: drawn into 1000 by 1000 units.
        x_ticks: place in percent and text.
        y_ticks: place in percent from the top, and text.
        log: whether the vertical scale is logarithmic.
        marks: places in percent at which a warning began.
        summary: the chart in words.
        header: names of the columns of its table.
        table: rows of text.
    """

    title: str
    lines: tuple[Drawn, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    log: bool
    marks: tuple[float, ...]
    summary: str
    header: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]


def chart(
    title: str,
    lines: Mapping[str, tuple[str, Line]],
    *,
    points: int,
    marks: Sequence[int] = (),
    x_name: str = "step",
    x_ends: tuple[float, float] | None = None,
) -> Chart:
    """Draws lines over steps, or over shares.

    Args:
        title: for people.
        lines: CSS class and numbers by label.
        points: at most about so many of each line are drawn; spikes stay.
        marks: steps to be marked at the lower edge.
        x_name: what the horizontal axis counts.
        x_ends: of the horizontal axis; those of the lines where not given.
    """
    across = Scale(*(x_ends or _ends(lines)))
    up = scale_of(np.concatenate([line.values for _, line in lines.values()]))
    drawn = [
        _drawn(label, style, line, across, up, points) for label, (style, line) in lines.items()
    ]
    places = across.place(np.asarray(sorted(set(marks)), np.float64))
    places = np.unique(np.round(100 * places[(places >= 0) & (places <= 1)], 1))
    header, table = _table(lines, x_name)
    return Chart(
        title=title,
        lines=tuple(drawn),
        x_ticks=tuple((100 * place, label) for place, label in across.ticks(4)),
        y_ticks=tuple((100 - 100 * place, label) for place, label in up.ticks(4)),
        log=up.log,
        marks=tuple(places.tolist()),
        summary="; ".join(_words(label, line, x_name) for label, (_, line) in lines.items()),
        header=header,
        table=table,
    )


def _ends(lines: Mapping[str, tuple[str, Line]]) -> tuple[float, float]:
    steps = np.concatenate([line.steps for _, line in lines.values()])
    low, high = float(steps.min()), float(steps.max())
    low = 0.0 if 0 < low < 0.3 * high else low
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _drawn(label: str, style: str, line: Line, across: Scale, up: Scale, points: int) -> Drawn:
    chosen = extremes(line.values, points)
    x = np.round(1000 * across.place(line.steps[chosen]), 1)
    y = np.round(1000 * (1 - up.place(line.values[chosen])), 1)
    # A value that has no place, such as NaN, ends a stretch of the line: the gap shows it.
    path, dots, stretch = [], [], []
    for at, height in [*zip(x.tolist(), y.tolist(), strict=True), (0.0, np.nan)]:
        if np.isfinite(height):
            stretch.append(f"{at:g} {height:g}")
        elif stretch:
            path.append("M" + "L".join(stretch)) if len(stretch) > 1 else dots.append(stretch[0])
            stretch = []
    if len(chosen) <= 40:
        known = np.isfinite(y)
        dots = [f"{a:g} {b:g}" for a, b in zip(x[known], y[known], strict=True)]
    return Drawn(label, style, "".join(path), "".join(f"M{dot}h0" for dot in dots))


def _words(label: str, line: Line, x_name: str) -> str:
    known = np.isfinite(line.values)
    if not known.any():
        return f"{label}: no finite value"
    steps, values = line.steps[known], line.values[known]
    low, high = int(values.argmin()), int(values.argmax())

    def at(place: int) -> str:
        return f"{text(values[place])} at {x_name} {text_of_step(steps[place])}"

    lost = int((~known).sum())
    return f"{label}: from {at(0)} to {at(-1)}, lowest {at(low)}, highest {at(high)}" + (
        f", {lost:,} values not finite" if lost else ""
    )


def _table(
    lines: Mapping[str, tuple[str, Line]], x_name: str
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Some numbers of every line, at the steps of the line with the fewest."""
    fewest = min((line for _, line in lines.values()), key=lambda line: len(line.steps))
    rows = []
    for step in fewest.steps[some(len(fewest.steps), _ROWS)]:
        row = [text_of_step(step)]
        for _, line in lines.values():
            # The last value up to there; a line that begins later has none yet.
            place = int(np.searchsorted(line.steps, step, side="right")) - 1
            row.append(text(float(line.values[place])) if place >= 0 else text(None))
        rows.append(tuple(row))
    return (x_name, *lines), tuple(rows)


def text_of_step(step: float) -> str:
    """A step with its thousands apart, or a share in percent digits."""
    return f"{int(step):,}" if float(step).is_integer() else text(float(step))
