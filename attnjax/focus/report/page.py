"""What the pages have in common: templates, the bound on their size, what stands at the top."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from attnjax.focus.report import colours
from attnjax.focus.report.faithfulness import verdict
from attnjax.focus.report.runs import Run
from attnjax.focus.report.scales import clip, text
from attnjax.focus.report.statistics import event_name
from attnjax.focus.report.thinning import Limits

if TYPE_CHECKING:
    import jinja2

GENERATOR = "attnjax.focus.report"
MOST_BYTES = 4_900_000
KINDS = {"train": "training", "eval": "validation"}


def fitting(render: Callable[[Limits], str]) -> str:
    """The page with as much on it as fits."""
    for limits in Limits().ever_tighter():
        page = render(limits)
        if len(page.encode("utf-8", "replace")) <= MOST_BYTES:
            return page
    raise AssertionError("what is left at the tightest limits is far below the bound")


def environment() -> jinja2.Environment:
    """What renders the templates.

    Raises:
        ImportError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError(
            "reports need jinja2, which is not installed: pip install 'attnjax[report]'"
        ) from error
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("attnjax.focus.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(number=text, clip=clip, event=event_name)
    made.globals.update(
        generator=GENERATOR,
        shades=colours.shades(),
        dark_shades=colours.shades(dark=True),
        gradients=colours.gradients(),
        verdict=verdict,
    )
    return made


def facts(run: Run) -> list[tuple[str, str, str]]:
    """What stands at the top: a number, what it is, and a remark."""
    records, found = run.records, []
    if run.last_step is not None:
        found.append((f"{run.last_step:,}", "last step", ""))
    for kind, word in KINDS.items():
        line = run.metrics.get("loss", {}).get(kind)
        if line is not None:
            known = line.values[np.isfinite(line.values)]
            best = f"lowest {text(float(known.min()))}" if known.size else "never finite"
            found.append((text(float(line.values[-1])), f"{word} loss, last", best))
    if records.heads.columns:
        modules = len(records.layout.modules)
        found.append(
            (f"{len(records.heads.columns):,}", "heads", f"in {modules:,} attention modules")
        )
        standing = sum(warning.over is None for warning in records.warnings)
        found.append((f"{standing:,}", "warnings standing", f"of {len(records.warnings):,} given"))
        found.append((f"{len(records.remedies):,}", "remedies applied", ""))
    return found
