"""Writes what the study found: JSON, Markdown tables and a plot."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from attnjax.bench.report import VERSION


def write(result: dict[str, Any], folder: pathlib.Path) -> list[str]:
    """Writes `focus.json`, `focus.md` and, with matplotlib, `focus.png`.

    Args:
      result: of `study.measure`, with `suite` and `fingerprint`.
      folder: where to.

    Returns:
      Lines that say what was written, and why something was not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "focus"
    base.with_suffix(".json").write_text(json.dumps({"version": VERSION, **result}) + "\n")
    base.with_suffix(".md").write_text("\n".join(markdown(result)) + "\n")
    said = [f"wrote {base}.json", f"wrote {base}.md"]
    try:
        _plot(result, base.with_suffix(".png"))
        said.append(f"wrote {base}.png")
    except ModuleNotFoundError as error:
        said.append(f"no plot, for {error.name} is missing: pip install 'attnjax[train]'")
    return said


def markdown(result: dict[str, Any]) -> list[str]:
    """Returns the lines of the tables."""
    origin, settings = result["fingerprint"], result["settings"]
    lines = [
        "# attnjax.bench focus",
        "",
        f"- {origin['date']}, jax {origin['packages']['jax']}, {origin['processor']['model']}, "
        f"{origin['processor']['cores']} cores",
        f"- seeds {settings['seeds']}; settings: {json.dumps(settings['thresholds'])}",
    ]
    for task in result["tasks"]:
        lines += ["", f"## {task['name']}", "", *_task(task, settings)]
    return lines


def _task(task: dict[str, Any], settings: dict[str, Any]) -> Iterator[str]:
    rates, told = task["rates"], task["warnings"]
    runs = told["broken"] + told["healthy"]
    yield (
        f"{task['about']}; {task['steps']} steps, {task['warm_up']} of them warm-up; {runs} runs a "
        f"treatment, {sum(row['seconds'] for row in task['treatments']):.0f} seconds in all."
    )
    yield (
        f"Healthy runs reach {task['reached']:.3g}; a run is broken whose loss is not finite, or "
        f"whose final loss is above {task['limit']:.3g} at a rate above the best one. At lower "
        f"rates {told['slow']} runs end above it."
    )
    yield ""
    columns = [f"{x:g}" for x in rates]
    yield f"| treatment | broken | rescued | harmed | healthy runs' loss | {' | '.join(columns)} |"
    yield f"|{'---|' * (len(rates) + 5)}"
    for row in task["treatments"]:
        worse = _worse(row, task["floor"])
        ends = [_mean(x) for x in row["final"]]
        yield (
            f"| {row['name']} | {row['broken']} | {row['rescued']} of {told['broken']} | "
            f"{row['harmed']} of {told['healthy']} | {worse} | {' | '.join(ends)} |"
        )
    yield ""
    yield (
        f"Warnings of {' or '.join(settings['kinds'])}, untreated runs: at least 50 steps before "
        f"the loss shows it in {told['early']} of {told['broken']} broken runs; false alarms in "
        f"{told['false_alarms']} of {told['healthy']} others. Of the broken runs, "
        f"{told['shown_early']} show it within 50 steps."
    )
    yield ""
    yield "| rate | seed | broken | warned at | of | the loss shows it at | steps ahead |"
    yield f"|{'---|' * 7}"
    for run in told["runs"]:
        if run["broken"] or run["warned"] is not None:
            cells = [run["warned"], run["what"], run["shown"], run["lead"]]
            said = " | ".join("never" if x is None else str(x) for x in cells)
            verdict = "yes" if run["broken"] else "no"
            yield f"| {run['rate']:g} | {run['seed']} | {verdict} | {said} |"


def _worse(row: dict[str, Any], floor: float) -> str:
    """Returns the change of healthy runs' losses, in nats where these go to 0."""
    if row["worse"] is None:
        return ""
    return f"{row['worse_nats']:+.4f} nats" if floor else f"{row['worse']:+.2%}"


def _mean(ends: list[float | None]) -> str:
    known = [x for x in ends if x is not None]
    if len(known) < len(ends):
        return f"{len(ends) - len(known)} not finite"
    mean = sum(known) / len(known)
    return f"{mean:.3f}" if mean >= 0.1 else f"{mean:.2g}"


def _plot(result: dict[str, Any], path: pathlib.Path) -> None:
    """Draws final losses over rates, and loss and largest logits of untreated runs over steps."""
    from matplotlib.figure import Figure

    tasks = result["tasks"]
    figure = Figure(figsize=(13, 3.6 * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), 3, squeeze=False)
    for (ends, loss, logits), task in zip(panels, tasks, strict=True):
        for row, marker in zip(task["treatments"], "osv^<>DPX*hd", strict=False):
            means = [_number(x) for x in row["final"]]
            ends.plot(task["rates"], means, marker=marker, markersize=4, label=row["name"])
        ends.axhline(task["limit"], color="black", linestyle=":", label="broken above")
        scale = "log" if task["floor"] else "linear"
        ends.set(
            xscale="log",
            yscale=scale,
            xlabel="learning rate",
            ylabel="final loss",
            title=task["name"],
        )
        ends.legend(fontsize=6)
        curves = task["curves"]
        for panel, name in ((loss, "loss"), (logits, "max_logit")):
            for rate, values in zip(task["rates"], curves[name], strict=True):
                numbers = [float("nan") if x is None else x for x in values]
                panel.plot(curves["steps"], numbers, label=f"{rate:g}")
            panel.set(xlabel="step", ylabel=name, yscale="log", title="untreated, one seed")
        logits.axhline(result["settings"]["thresholds"]["growth"], color="black", linestyle=":")
        logits.legend(fontsize=6, title="learning rate", title_fontsize=6)
    figure.savefig(path, dpi=90)


def _number(ends: list[float | None]) -> float:
    known = [x for x in ends if x is not None]
    return sum(known) / len(known) if len(known) == len(ends) else float("nan")
