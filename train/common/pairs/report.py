"""The HTML report of a run that writes texts: one file, no scripts, nothing fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from train.common.data.held_out import SPLITS
from train.common.page import curves, run_description, svg, write_page
from train.common.pairs.run import Alignment, Written
from train.common.pairs.scores import SeqBaseline
from train.common.pairs.text_pairs import Pair, TextPairs


@dataclass(frozen=True)
class SeqReport:
    """What the report shows."""

    title: str
    data: TextPairs
    test: Mapping[str, float]
    baseline: SeqBaseline
    primary: str
    signatures: Mapping[str, str]
    history: Sequence[Mapping[str, Any]]
    """Rows of metrics.jsonl."""
    best_step: int | None
    shown: Sequence[tuple[Pair, Written, str]]
    """Test pairs, what the model wrote, and what the baseline did."""
    alignments: Sequence[Alignment]
    notes: Sequence[str]
    run_dir: Path


def write_seq_report(path: Path, report: SeqReport) -> None:
    """Writes the report, whole or not at all."""
    known = {name for row in report.history if row["kind"] == "eval" for name in row}
    write_page(
        path,
        "seq_report.html.j2",
        report=report,
        sizes={split: len(report.data.splits[split]) for split in SPLITS},
        difference=report.test[report.primary] - report.baseline.test[report.primary],
        curves=curves(
            report.history,
            [name for name in ("loss", "token_accuracy", report.primary) if name in known],
            best_step=report.best_step,
        ),
        pictures=[alignment_figure(alignment) for alignment in report.alignments],
        fingerprint=report.data.fingerprint,
        **run_description(report.run_dir),
    )


def alignment_figure(alignment: Alignment) -> Markup:
    """Where the model looked: a row for each piece it wrote, a column for each one it read."""
    rows, columns = alignment.weights.shape
    figure = Figure(
        figsize=(min(14.0, 2.0 + 0.34 * columns), min(14.0, 1.4 + 0.27 * rows)),
        layout="constrained",
    )
    axis = figure.subplots()
    image = axis.imshow(alignment.weights, cmap="YlOrBr", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(image, ax=axis, label="share of the attention")
    axis.set_xticks(
        range(columns),
        [_label(piece) for piece in alignment.source],
        rotation=60,
        ha="left",
        rotation_mode="anchor",
    )
    axis.set_yticks(range(rows), [_label(piece) for piece in alignment.output])
    axis.set(xlabel="source", ylabel="output")
    axis.xaxis.set_label_position("top")
    axis.xaxis.tick_top()
    return svg(figure)


def _label(piece: str) -> str:
    """A piece as a label: nothing is invisible, and what stands between dollars is no formula."""
    return piece.strip().replace("$", r"\$") or "\N{OPEN BOX}"
