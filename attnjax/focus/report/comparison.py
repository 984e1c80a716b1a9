"""Two runs side by side."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

from attnjax.focus.records import Warned
from attnjax.focus.report.charts import Chart, chart
from attnjax.focus.report.differences import config_differences, head_differences
from attnjax.focus.report.heat import heat_maps, shared_scales
from attnjax.focus.report.page import KINDS, environment, facts, fitting
from attnjax.focus.report.runs import Line, Run
from attnjax.focus.report.scales import clip
from attnjax.focus.report.statistics import event_name, statistics
from attnjax.focus.report.thinning import Limits


def comparison_page(run_a: Run, run_b: Run) -> str:
    """Two runs side by side, under five megabytes.

    Raises:
        ImportError: jinja2 is not installed.
    """
    return fitting(functools.partial(_comparison, run_a, run_b))


def _comparison(run_a: Run, run_b: Run, limits: Limits) -> str:
    both = (run_a, run_b)
    scales = shared_scales(run.records for run in both)
    half = dataclasses.replace(limits, cells=limits.cells // 2, heads=limits.heads // 2)
    heats = [heat_maps(run.records, half, scales) for run in both]
    panels = [
        {panel.statistic.name: panel for panel in heat.panels} if heat else {} for heat in heats
    ]
    names = statistics(dict.fromkeys(name for found in panels for name in found))
    charts, others = _paired_charts(run_a, run_b, limits)
    config, config_more = config_differences(run_a.config, run_b.config, limits.events)
    return (
        environment()
        .get_template("compare.html.j2")
        .render(
            title=f"{run_a.name} and {run_b.name}: focus comparison",
            runs=both,
            facts=[facts(run) for run in both],
            charts=charts,
            other_metrics=others,
            names=names,
            heats=heats,
            panels=panels,
            heat_data=[heat.data if heat else None for heat in heats],
            differences=head_differences(run_a.records, run_b.records, names, limits.heads),
            event_counts=_event_counts(both)[: limits.events],
            config=config,
            config_more=config_more,
            has_config=all(run.config is not None for run in both),
        )
    )


def _paired_charts(run_a: Run, run_b: Run, limits: Limits) -> tuple[list[Chart], list[str]]:
    """The same for two runs: a chart for each metric and kind, with a line for each run."""
    found: dict[tuple[str, str], dict[str, tuple[str, Line]]] = {}
    for letter, run in (("A", run_a), ("B", run_b)):
        for name, kinds in run.metrics.items():
            for kind, line in kinds.items():
                found.setdefault((name, kind), {})[letter] = (f"run{letter}", line)
    keys = sorted(found, key=lambda key: (key[0] != "loss", key[1] != "eval"))
    titles = {key: f"{clip(key[0].replace('_', ' '), 60)} ({KINDS[key[1]]})" for key in keys}
    charts = [chart(titles[key], found[key], points=limits.points) for key in keys[: limits.charts]]
    return charts, [titles[key] for key in keys[limits.charts :][:100]]


def _event_counts(runs: Iterable[Run]) -> list[tuple[str, str, list[int]]]:
    """Of every kind of warning and remedy, how many each run had."""
    tables = []
    for run in runs:
        counts: dict[tuple[str, str], int] = {}
        for event in run.records.events:
            key = ("warning" if isinstance(event, Warned) else "remedy", event.what)
            counts[key] = counts.get(key, 0) + 1
        tables.append(counts)
    kinds = sorted({key for counts in tables for key in counts}, key=lambda x: (x[0], x[1]))
    return [
        (kind, event_name(what), [counts.get((kind, what), 0) for counts in tables])
        for kind, what in reversed(kinds)
    ]
