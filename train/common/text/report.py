"""The HTML report of a text-classification run: one file, no scripts, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_fscore_support

from train.common.classification import Scores
from train.common.data.held_out import SPLITS
from train.common.page import INK, curves, svg, write_page
from train.common.text.baseline import Baseline
from train.common.text.labelled_text import LabelledText
from train.common.text.run import Prediction


@dataclass(frozen=True)
class Report:
    """What the report shows."""

    data: LabelledText
    test: Scores
    baseline: Baseline
    history: list[dict[str, Any]]
    """Rows of metrics.jsonl."""
    best_step: int | None
    shown: Sequence[tuple[str, Prediction]]
    """Test texts with their right label."""
    config: dict[str, Any]
    manifest: dict[str, Any]


def write_report(path: Path, report: Report) -> None:
    """Writes the report, whole or not at all."""
    difference = 100 * (report.test.accuracy - report.baseline.test.accuracy)
    write_page(
        path,
        "text_report.html.j2",
        report=report,
        difference=difference,
        sizes={split: len(report.data.splits[split]) for split in SPLITS},
        curves=curves(
            report.history,
            ("loss", "accuracy"),
            best_step=report.best_step,
            lines={"accuracy": {"TF-IDF on validation": report.baseline.validation.accuracy}},
        ),
        matrix=confusion_figure(report.test.confusion, report.data.labels),
        classes=class_rows(report),
        examples=[(label, p, shades(p)) for label, p in report.shown],
        fingerprint=report.data.fingerprint,
        config=report.config,
        manifest=report.manifest,
    )


def class_rows(report: Report) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class on the test split, the baseline's F1 beside."""
    precision, recall, f1 = _by_class(report.test.confusion)
    base_f1 = _by_class(report.baseline.test.confusion)[2]
    counts = report.test.confusion.sum(axis=1)
    return [
        {
            "label": label,
            "count": int(counts[i]),
            "precision": precision[i],
            "recall": recall[i],
            "f1": f1[i],
            "baseline_f1": base_f1[i],
        }
        for i, label in enumerate(report.data.labels)
    ]


def shades(prediction: Prediction) -> list[tuple[str, float, float]]:
    """The text cut into pieces `(piece, weight, shade)`; the words between are unshaded.

    The shade is the weight relative to the text's largest, in [0, 1], so that short and long texts
    can both be read.
    """
    pieces: list[tuple[str, float, float]] = []
    largest = max(word.weight for word in prediction.words)
    at = 0
    for word in prediction.words:
        if word.start > at:
            pieces.append((prediction.text[at : word.start], 0.0, 0.0))
        pieces.append((word.text, word.weight, word.weight / largest if largest > 0 else 0.0))
        at = word.start + len(word.text)
    if at < len(prediction.text):
        pieces.append((prediction.text[at:], 0.0, 0.0))
    return pieces


def confusion_figure(confusion: np.ndarray, labels: Sequence[str]) -> Markup:
    """The confusion matrix, each row shaded by its shares, as an SVG picture."""
    classes = len(labels)
    size = min(9.2, 2.2 + 0.45 * classes)
    figure = Figure(figsize=(size, size * 0.88), layout="constrained")
    axis = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(shares, cmap="YlOrBr", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, shrink=0.7, label="share of the row")
    axis.set_xticks(range(classes), labels, rotation=60, ha="right")
    axis.set_yticks(range(classes), labels)
    axis.set(xlabel="predicted", ylabel="right label")
    # Beyond this the numbers would run into each other; the shades still show.
    if classes <= 25:
        for row, column in np.argwhere(confusion > 0):
            colour = "white" if shares[row, column] > 0.55 else INK
            axis.text(
                column, row, confusion[row, column], ha="center", va="center", fontsize=7, c=colour
            )
    return svg(figure)


def _by_class(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of each class, 0 where they are undefined."""
    classes = len(confusion)
    right, predicted = np.divmod(np.arange(classes * classes), classes)
    precision, recall, f1, _ = precision_recall_fscore_support(
        right,
        predicted,
        labels=np.arange(classes),
        sample_weight=confusion.ravel(),
        zero_division=0,
    )
    return precision, recall, f1
