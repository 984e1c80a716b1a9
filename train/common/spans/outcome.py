"""What a finished run over texts amounts to: EM and F1 beside the baseline's, a report page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.common.data.held_out import SPLITS
from train.common.files import write_json
from train.common.metrics import read_history
from train.common.result import RunResult
from train.common.spans.answers import SpanAnswer, known, texts
from train.common.spans.baseline import SpanBaseline
from train.common.spans.data import SpanData, SpanQuestion
from train.common.spans.run import SpanAnswerer, save_threshold
from train.common.spans.squad_scores import question_scores

RESULT, REPORT, PREDICTIONS = "result.json", "report.html", "predictions.json"


@dataclass(frozen=True)
class SpanOutcome:
    """The test result of one run."""

    report: Path
    test: dict[str, float]
    """As `squad_scores` gives it."""
    baseline: SpanBaseline

    def describe(self) -> str:
        """A few lines for people."""
        return (
            f"{scores_table(self.test)}\n"
            f"baseline: {self.baseline.describe()}\nreport: {self.report}"
        )


class Shown(NamedTuple):
    """A test question on the report page."""

    question: SpanQuestion
    given: str
    """The answer, empty where there is none."""
    f1: float
    pieces: list[tuple[str, float, float]]
    """The text around the answer: pieces, their chances, and their shades in [0, 1]."""


def finish(
    result: RunResult, answerer: SpanAnswerer, data: SpanData, baseline: SpanBaseline
) -> SpanOutcome:
    """Measures the best checkpoint on the test split; writes all files about the result.

    The threshold that says when there is no answer is the best one on validation.
    """
    # Imported late: only the end of a run needs matplotlib.
    from train.common.page import curves, run_description, write_page

    best = dict(result.best_metrics or {})
    answerer.threshold = best.get("threshold")
    save_threshold(result.run_dir, answerer.threshold)
    questions = data.splits["test"]
    test, answers = answerer.scored(questions, data.rules)
    given = texts(answers, answerer.threshold)
    write_json(result.run_dir / PREDICTIONS, given)
    write_json(
        result.run_dir / RESULT,
        {
            "rules": data.rules,
            "test": test,
            "baseline": baseline.name,
            "baseline_test": baseline.test,
            "validation": best,
            "best_step": result.best_step,
            "last_step": result.last_step,
        },
    )
    report = result.run_dir / REPORT
    write_page(
        report,
        "span_report.html.j2",
        data=data,
        test=test,
        baseline=baseline,
        best_step=result.best_step,
        sizes={split: len(data.splits[split]) for split in SPLITS},
        curves=curves(
            read_history(result.history),
            ("loss", "f1"),
            best_step=result.best_step,
            lines={"f1": {baseline.name: baseline.validation["f1"]}},
        ),
        shown=chosen(questions, answers, given, data),
        fingerprint=data.fingerprint,
        **run_description(result.run_dir),
    )
    return SpanOutcome(report, test, baseline)


def chosen(
    questions: Sequence[SpanQuestion],
    answers: Mapping[str, SpanAnswer],
    given: Mapping[str, str],
    data: SpanData,
    *,
    right: int = 12,
    wrong: int = 8,
) -> list[Shown]:
    """Picks questions to show, evenly over the split: some answered right, then some mistakes."""
    scores = question_scores(known(questions), given, rules=data.rules)
    hits = [q for q in questions if scores[q.id][0] == 1]
    misses = [q for q in questions if scores[q.id][0] == 0]
    return [
        Shown(q, given[q.id], scores[q.id][1], pieces(q.context, answers[q.id].words))
        for found, count in ((hits, right), (misses, wrong))
        for q in found[:: max(1, -(-len(found) // count))]
    ]


def pieces(context: str, words: Sequence[tuple[int, int, float]]) -> list[tuple[str, float, float]]:
    """A stretch of a text cut into pieces `(piece, chance, shade)`, what is between unshaded."""
    largest = max(chance for _, _, chance in words)
    found: list[tuple[str, float, float]] = []
    at = words[0][0]
    for start, end, chance in words:
        if start > at:
            found.append((context[at:start], 0.0, 0.0))
        # Several tokens of one word share its place.
        if end > at:
            found.append((context[max(start, at) : end], chance, chance / largest))
            at = end
    return found


def scores_table(scores: Mapping[str, float]) -> str:
    """The official numbers as plain text."""
    lines = []
    for prefix, name in (("", "all"), ("HasAns_", "answerable"), ("NoAns_", "unanswerable")):
        if f"{prefix}f1" in scores:
            lines.append(
                f"{name:<12} EM {scores[f'{prefix}exact']:6.2f}, F1 {scores[f'{prefix}f1']:6.2f}, "
                f"{scores[f'{prefix}total']:,} questions"
            )
    return "\n".join(lines)


def seeds_table(outcomes: Mapping[int, Mapping[str, Any]], baseline: SpanBaseline) -> str:
    """Test results by seed, their mean and spread (sample standard deviation), the baseline."""
    lines = ["seed       EM       F1"]
    columns = np.array([[scores["exact"], scores["f1"]] for scores in outcomes.values()])
    rows = dict(zip(map(str, outcomes), columns, strict=True)) | {"mean": columns.mean(axis=0)}
    if len(columns) > 1:
        rows["sd"] = columns.std(axis=0, ddof=1)
    rows["base"] = np.array([baseline.test["exact"], baseline.test["f1"]])
    lines += [f"{name:>4}   {row[0]:6.2f}   {row[1]:6.2f}" for name, row in rows.items()]
    return "\n".join(lines) + f"   ({baseline.name})"
