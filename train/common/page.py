"""What the report pages share: one file each, no scripts, nothing fetched."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from train.common.files import write_text
from train.common.rundir import CONFIG, MANIFEST

INK, ACCENT, MUTED = "#1f2933", "#b4530a", "#52708f"


def write_page(path: Path, template: str, **values: Any) -> None:
    """Writes a page, whole or not at all.

    Args:
        path: where.
        template: its name in `train/common/templates`; it extends `page.html.j2`, which shows the
            values `fingerprint`, `config` and `manifest` (JSON-able) under its content.
        values: what the template uses; text among them never becomes markup.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("train.common"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2)
    write_text(path, environment.get_template(template).render(**values))


def run_description(run_dir: Path) -> dict[str, Any]:
    """The values `config` and `manifest` of a page about a run."""
    return {
        name: json.loads((run_dir / file).read_text(encoding="utf-8"))
        for name, file in (("config", CONFIG), ("manifest", MANIFEST))
    }


def curves(
    history: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    *,
    best_step: int | None = None,
    lines: Mapping[str, Mapping[str, float]] | None = None,
) -> Markup:
    """Metrics over the steps, side by side, as an SVG picture.

    Args:
        history: rows of metrics.jsonl.
        names: the metrics.
        best_step: is marked in all but the first.
        lines: horizontal lines, by metric and label, for baselines.
    """
    figure = Figure(figsize=(9.2, 3.1), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for place, (axis, name) in enumerate(zip(axes, names, strict=True)):
        for kind, colour, style in (("train", MUTED, "-"), ("eval", ACCENT, "o-")):
            rows = [row for row in history if row["kind"] == kind and name in row]
            if not rows:
                continue
            label = "training" if kind == "train" else "validation"
            steps, values = [r["step"] for r in rows], [r[name] for r in rows]
            axis.plot(steps, values, style, color=colour, label=label, markersize=3.5, lw=1.3)
        axis.set(xlabel="step", title=name.replace("_", " "))
        axis.grid(alpha=0.25)
        for label, value in (lines or {}).get(name, {}).items():
            axis.axhline(value, color=INK, ls=":", lw=1.2, label=label)
        if best_step is not None and place:
            axis.axvline(best_step, color=ACCENT, lw=0.8, alpha=0.5, label="best checkpoint")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    return svg(figure)


def svg(figure: Figure) -> Markup:
    """A figure as an `<svg>` element; the same figure gives the same text."""
    options: dict[Any, str] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "attnjax",
        "font.family": "sans-serif",
    }
    text = io.StringIO()
    with matplotlib.rc_context(options):
        figure.savefig(text, format="svg", metadata={"Date": None})
    whole = text.getvalue()
    return Markup(whole[whole.index("<svg") :])
