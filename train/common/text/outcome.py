"""What a finished text-classification run amounts to: numbers beside the baseline's, a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.common.classification import Scores
from train.common.files import write_json
from train.common.metrics import read_history
from train.common.result import RunResult
from train.common.rundir import CONFIG, MANIFEST
from train.common.text.baseline import Baseline
from train.common.text.labelled_text import LabelledText
from train.common.text.run import Classifier, Prediction

RESULT, REPORT = "result.json", "report.html"


@dataclass(frozen=True)
class Outcome:
    """The test result of one run."""

    run_dir: Path
    test: Scores
    baseline: Baseline

    def describe(self) -> str:
        """A few lines for people."""
        difference = 100 * (self.test.accuracy - self.baseline.test.accuracy)
        return (
            f"test accuracy {self.test.accuracy:.4f}, macro F1 {self.test.macro_f1:.4f}\n"
            f"baseline      {self.baseline.test.accuracy:.4f}, macro F1 "
            f"{self.baseline.test.macro_f1:.4f}  ({difference:+.2f} points for the model)\n"
            f"report: {self.run_dir / REPORT}"
        )


def finish(
    result: RunResult, classifier: Classifier, data: LabelledText, baseline: Baseline
) -> Outcome:
    """Measures the best checkpoint on the test split; writes result.json and report.html."""
    # Imported late: only the end of a run needs matplotlib.
    from train.common.text.report import Report, write_report

    test, predictions = classifier.scored(data.splits["test"])
    run_dir = result.run_dir
    write_json(
        run_dir / RESULT,
        {
            "test": {"accuracy": test.accuracy, "macro_f1": test.macro_f1},
            "baseline_test": {
                "accuracy": baseline.test.accuracy,
                "macro_f1": baseline.test.macro_f1,
            },
            "validation": dict(result.best_metrics or {}),
            "best_step": result.best_step,
            "last_step": result.last_step,
            "labels": list(data.labels),
            "confusion": test.confusion.tolist(),
        },
    )
    write_report(
        run_dir / REPORT,
        Report(
            data=data,
            test=test,
            baseline=baseline,
            history=read_history(result.history),
            best_step=result.best_step,
            shown=chosen_examples(data, predictions),
            config=_json(run_dir / CONFIG),
            manifest=_json(run_dir / MANIFEST),
        ),
    )
    return Outcome(run_dir, test, baseline)


def chosen_examples(
    data: LabelledText, predictions: Sequence[Prediction], *, right: int = 16, wrong: int = 8
) -> list[tuple[str, Prediction]]:
    """Picks test texts to show, each with its right label: surely right ones, then mistakes.

    The right ones go round the classes, surest first; the mistakes are the surest ones.
    """
    labelled = [
        (data.labels[label], prediction)
        for (_, label), prediction in zip(data.splits["test"], predictions, strict=True)
    ]
    labelled.sort(key=lambda pair: -pair[1].probabilities[pair[1].label])
    hits: dict[str, list[tuple[str, Prediction]]] = {label: [] for label in data.labels}
    for label, prediction in labelled:
        if label == prediction.label:
            hits[label].append((label, prediction))
    rounds = max(map(len, hits.values()))
    ordered = [found[i] for i in range(rounds) for found in hits.values() if i < len(found)]
    misses = [pair for pair in labelled if pair[0] != pair[1].label]
    return ordered[:right] + misses[:wrong]


def scores_table(scores: Scores, labels: Sequence[str]) -> str:
    """Metrics and the confusion matrix as plain text."""
    width = max(len(label) for label in labels)
    cells = max(4, len(str(scores.confusion.max())) + 1)
    header = " " * width + "".join(f"{i:>{cells}}" for i in range(len(labels)))
    rows = [
        f"{label:>{width}}" + "".join(f"{count:>{cells}}" for count in row) + f"   {i}"
        for i, (label, row) in enumerate(zip(labels, scores.confusion, strict=True))
    ]
    return "\n".join(
        [
            f"accuracy {scores.accuracy:.4f}, macro F1 {scores.macro_f1:.4f}, "
            f"{scores.confusion.sum()} texts",
            "confusion (rows: right label, columns: predicted, by number)",
            header,
            *rows,
        ]
    )


def seeds_table(outcomes: Mapping[int, Outcome]) -> str:
    """Test results by seed, their mean and spread (sample standard deviation), the baseline."""
    lines = ["seed   test accuracy   macro F1"]
    for seed, outcome in outcomes.items():
        lines.append(f"{seed:>4}   {outcome.test.accuracy:>13.4f}   {outcome.test.macro_f1:>8.4f}")
    columns = np.array([[o.test.accuracy, o.test.macro_f1] for o in outcomes.values()])
    mean = columns.mean(axis=0)
    lines.append(f"mean   {mean[0]:>13.4f}   {mean[1]:>8.4f}")
    if len(columns) > 1:
        spread = columns.std(axis=0, ddof=1)
        lines.append(f"  sd   {spread[0]:>13.4f}   {spread[1]:>8.4f}")
    base = next(iter(outcomes.values())).baseline.test
    lines.append(f"base   {base.accuracy:>13.4f}   {base.macro_f1:>8.4f}   (TF-IDF)")
    return "\n".join(lines)


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
