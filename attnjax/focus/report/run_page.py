"""The report on one run."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attnjax.focus.records import Records, Remedied, Warned
from attnjax.focus.report.charts import Chart, chart
from attnjax.focus.report.examples import Faithful
from attnjax.focus.report.faithfulness import example_charts
from attnjax.focus.report.heat import chosen_heads, heat_maps, shared_scales
from attnjax.focus.report.page import KINDS, environment, facts, fitting
from attnjax.focus.report.pictures import pictures
from attnjax.focus.report.runs import Run
from attnjax.focus.report.scales import clip
from attnjax.focus.report.statistics import event_name, short_names, statistics
from attnjax.focus.report.thinning import Limits

if TYPE_CHECKING:
    import jinja2

_DESCRIPTION = 40_000  # characters of config.json and of manifest.json that are shown


def report_page(run: Run) -> str:
    """A run's report, under five megabytes.

    Raises:
        ImportError: jinja2 is not installed.
    """
    return fitting(functools.partial(_report, run))


def _report(run: Run, limits: Limits) -> str:
    templates = environment()
    heat = heat_maps(run.records, limits, shared_scales([run.records]))
    shown, left_out = _examples(run, limits, templates)
    charts, others = _charts(run, limits)
    faithful = dict(list((run.examples.faithful or {}).items())[: limits.examples])
    return templates.get_template("report.html.j2").render(
        title=f"{run.name}: focus report",
        run=run,
        facts=facts(run),
        charts=charts,
        other_metrics=others,
        heat=heat,
        heat_data=[heat.data] if heat else [],
        heads=_head_table(run.records, limits),
        events=_event_rows(run.records, limits),
        examples=shown,
        examples_left_out=left_out,
        faithful=faithful,
        measures=_measures(faithful),
        description=_description(run),
    )


def _charts(run: Run, limits: Limits) -> tuple[list[Chart], list[str]]:
    """Charts of the metrics, and the names of those that there is no room for."""
    names = sorted(run.metrics, key=lambda name: (name != "loss", "eval" not in run.metrics[name]))
    marks = [warning.step for warning in run.records.warnings]
    charts = [
        chart(
            clip(name.replace("_", " "), 60),
            {
                word: (kind, run.metrics[name][kind])
                for kind, word in KINDS.items()
                if kind in run.metrics[name]
            },
            points=limits.points,
            marks=marks,
        )
        for name in names[: limits.charts]
    ]
    return charts, [clip(name, 60) for name in names[limits.charts :][:100]]


def _head_table(records: Records, limits: Limits) -> dict[str, Any] | None:
    """The last recorded statistics of every head, and the warnings that stand."""
    heads = records.heads
    if not len(heads.steps) or not heads.columns:
        return None
    names = statistics(heads.values)[: limits.statistics]
    standing: dict[tuple[str, int | None], list[str]] = {}
    for warning in records.warnings:
        if warning.over is None:
            words = standing.setdefault((warning.module, warning.head), [])
            words.append(event_name(warning.what))
    short, rows = short_names(records.layout.modules), []
    for column in chosen_heads(records, limits.heads):
        module, head = heads.columns[column]
        values = [float(heads.values[x.name][-1, column]) for x in names]
        words = [*standing.get((module, head), []), *standing.get((module, None), [])]
        rows.append((module, short[module], head, values, clip(", ".join(words), 120)))
    return {
        "step": int(heads.steps[-1]),
        "statistics": names,
        "rows": rows,
        "left_out": len(heads.columns) - len(rows),
    }


def _event_rows(records: Records, limits: Limits) -> dict[str, Any]:
    """The last warnings and remedies, for a table."""
    events = records.events
    short = short_names(records.layout.modules)
    return {
        "kinds": _event_kinds(events)[: limits.events],
        "left_out": max(0, len(events) - limits.events),
        "rows": [
            {
                "event": event,
                "warned": isinstance(event, Warned),
                "where": short.get(event.module, event.module) or "whole model",
                "number": event.value if isinstance(event, Warned) else event.strength,
            }
            for event in events[-limits.events :]
        ],
    }


def _event_kinds(events: Sequence[Warned | Remedied]) -> list[dict[str, Any]]:
    """Of every kind: how often, about how many heads, since when, how many warnings stand."""
    kinds: dict[tuple[bool, str], list[Warned | Remedied]] = {}
    for event in events:
        kinds.setdefault((isinstance(event, Warned), event.what), []).append(event)
    return [
        {
            "warned": warned,
            "what": what,
            "times": len(found),
            "heads": len({(x.module, x.head) for x in found if x.head is not None}),
            "first": found[0].step,
            "last": found[-1].step,
            "standing": sum(isinstance(x, Warned) and x.over is None for x in found),
        }
        for (warned, what), found in sorted(kinds.items(), reverse=True)
    ]


def _examples(
    run: Run, limits: Limits, templates: jinja2.Environment
) -> tuple[list[tuple[str, Any]], int]:
    """Titles and HTML of as many examples as there is room for, and how many there are more."""
    draw = templates.get_template("examples.html.j2").module
    shown: list[tuple[str, Any]] = []
    room, left_out = limits.example_bytes, 0
    for example in run.examples.examples:
        markup = ""
        if len(shown) < limits.examples:
            markup = draw.example(  # type: ignore[attr-defined]
                len(shown),
                example,
                pictures(example),
                example_charts(example, points=limits.points),
                run.examples.faithful or {},
            )
        if not markup or len(markup) > room:
            left_out += 1
            continue
        room -= len(markup)
        shown.append((clip(example.title, 120), markup))
    return shown, left_out


def _measures(faithful: Mapping[str, Faithful]) -> list[tuple[str, str, str]]:
    """The columns of the table of faithfulness in which some method has a number."""
    known = (
        ("deletion", "Deletion", "low is better"),
        ("deletion_random", "at random", ""),
        ("insertion", "Insertion", "high is better"),
        ("insertion_random", "at random", ""),
        ("agreement_gradients", "Agrees with gradients", "rank corr.; high is better"),
        ("agreement_leave_one_out", "Agrees with leave-one-out", "rank corr.; high is better"),
        ("random_weights", "Like random weights", "rank corr.; low is better"),
        ("examples", "Examples", ""),
    )
    return [x for x in known if any(getattr(row, x[0]) is not None for row in faithful.values())]


def _description(run: Run) -> list[tuple[str, str]]:
    """config.json and manifest.json as text."""
    found = []
    for name, value in (("Configuration", run.config), ("Manifest", run.manifest)):
        if value is not None:
            words = json.dumps(value, indent=2)
            found.append((name, clip(words, _DESCRIPTION)))
    return found
