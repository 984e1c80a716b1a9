"""What the numbers of faithfulness say about a picture, in plain words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

from attnjax.focus.report.charts import Chart, chart
from attnjax.focus.report.examples import Example, Faithful
from attnjax.focus.report.runs import Line
from attnjax.focus.report.scales import text

RANDOM = "random"
# Rank correlations: above the first two maps are much alike, below the second hardly.
_ALIKE, _UNLIKE = 0.7, 0.3
_STYLES = 6  # of lines, in style.css


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A judgement: how it is set off on the page, a word or two, and sentences that say why."""

    tone: Literal["good", "doubtful", "bad", "unknown"]
    word: str
    why: str


UNMEASURED = Verdict(
    "unknown",
    "Not measured",
    "Nobody tested whether the model's answer rests on what this picture marks. It shows where "
    "weights lie, not why the model answered as it did.",
)


def verdict(found: Faithful | None) -> Verdict:
    """Judges a method by its margin over chance, and by what random weights make of it.

    Args:
        found: the method's numbers; None where it was not measured.
    """
    if found is None or (found.margin is None and found.random_weights is None):
        return UNMEASURED
    tone, word, why = _against_chance(found)
    if found.random_weights is not None and found.random_weights > _ALIKE:
        tone = "doubtful" if tone == "good" else tone
        word += "; hardly depends on what was learned"
        why += (
            f" A model with random weights gives much the same maps (rank correlation "
            f"{text(found.random_weights)})."
        )
    for name, value in (
        ("integrated gradients", found.agreement_gradients),
        ("leaving out one part at a time", found.agreement_leave_one_out),
    ):
        if value is not None and value < _UNLIKE:
            why += f" It hardly agrees with {name} (rank correlation {text(value)})."
    return Verdict(tone, word, why)


def _against_chance(
    found: Faithful,
) -> tuple[Literal["good", "doubtful", "bad"], str, str]:
    if found.margin is None:
        return "doubtful", "Not tested against chance", "Its margin was not measured."
    said = f"Removing what it marks lowers the score by {text(found.margin)} more than removing at "
    if found.margin < 0:
        said = f"Removing what it marks lowers the score by {text(-found.margin)} less than at "
    said += "random"
    if found.interval is None:
        return "doubtful", "No interval", f"{said}; without an interval that may be chance."
    low, high = found.interval
    said += f" (interval {text(low)} to {text(high)})"
    if low > 0:
        return "good", "Better than chance", f"{said}."
    if high < 0:
        return "bad", "Worse than chance", f"{said}: it marks what matters least."
    return "bad", "No better than chance", f"{said}: the interval holds 0."


def example_charts(example: Example, *, points: int) -> tuple[Chart, ...]:
    """The deletion and insertion curves of an example, every method beside chance.

    Args:
        example: with or without curves.
        points: at most about so many of each curve are drawn.
    """
    charts = []
    for kind, title in (
        ("deletion", "Score as marked parts are removed, strongest first"),
        ("insertion", "Score as marked parts are put back, strongest first"),
    ):
        lines = _lines(example.curves or {}, kind)
        if lines:
            charts.append(chart(title, lines, points=points, x_name="share", x_ends=_ends(lines)))
    return tuple(charts)


def _lines(
    curves: Mapping[str, Mapping[str, np.ndarray]], kind: str
) -> dict[str, tuple[str, Line]]:
    """The curves of one kind by method, with their CSS classes; chance comes last."""
    lines = {}
    for place, method in enumerate(sorted(curves, key=lambda name: name == RANDOM)):
        points = curves[method].get(kind)
        if points is None or not np.isfinite(points[:, 0]).all():
            continue
        points = points[np.argsort(points[:, 0], kind="stable")]
        style = "chance" if method == RANDOM else f"method{place % _STYLES}"
        lines[method] = (style, Line(points[:, 0], points[:, 1]))
    return lines


def _ends(lines: Mapping[str, tuple[str, Line]]) -> tuple[float, float]:
    last = max(float(line.steps[-1]) for _, line in lines.values())
    return (min(0.0, *(float(line.steps[0]) for _, line in lines.values())), max(1.0, last))
