"""What a finished run over stories amounts to: errors beside the baseline's, a report page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.common.data.held_out import SPLITS
from train.common.files import write_json
from train.common.metrics import read_history
from train.common.result import RunResult
from train.common.stories.data import Story, StoryData
from train.common.stories.run import StoryAnswer, StoryAnswerer
from train.common.stories.scores import StoryBaseline, StoryScores, errors_table

RESULT, REPORT = "result.json", "report.html"


@dataclass(frozen=True)
class StoryOutcome:
    """The test result of one run."""

    report: Path
    test: StoryScores
    baseline: StoryBaseline

    def describe(self) -> str:
        """A few lines for people."""
        return (
            f"{errors_table(self.test, self.baseline)}\n"
            f"baseline: {self.baseline.describe()}\nreport: {self.report}"
        )


class Shown(NamedTuple):
    """A test question on the report page."""

    story: Story
    answer: StoryAnswer

    @property
    def right(self) -> bool:
        """Whether the answer is right."""
        return self.story.answer == self.answer.answer

    @property
    def rows(self) -> list[tuple[str, bool, list[float]]]:
        """Each sentence, whether the answer follows from it, and its weight in each step."""
        weights = zip(*self.answer.weights, strict=True)
        return [
            (sentence, place in self.story.supporting, list(row))
            for place, (sentence, row) in enumerate(zip(self.story.sentences, weights, strict=True))
        ]


def finish(
    result: RunResult, answerer: StoryAnswerer, data: StoryData, baseline: StoryBaseline
) -> StoryOutcome:
    """Measures the best checkpoint on the test split; writes result.json and report.html."""
    # Imported late: only the end of a run needs matplotlib.
    from train.common.page import curves, run_description, write_page

    stories = data.splits["test"]
    test, answers = answerer.scored(stories)
    found = supported(stories, answers)
    write_json(
        result.run_dir / RESULT,
        {
            "test": test.as_json(),
            "baseline": baseline.name,
            "baseline_test": baseline.test.as_json(),
            "validation": dict(result.best_metrics or {}),
            "best_step": result.best_step,
            "last_step": result.last_step,
            "most_looked_at_is_supporting": found,
        },
    )
    lines = {"accuracy": {baseline.name: baseline.validation.accuracy}}
    report = result.run_dir / REPORT
    write_page(
        report,
        "story_report.html.j2",
        data=data,
        test=test,
        baseline=baseline,
        found=found,
        best_step=result.best_step,
        sizes={split: len(data.splits[split]) for split in SPLITS},
        curves=curves(
            read_history(result.history),
            ("loss", "accuracy"),
            best_step=result.best_step,
            lines=lines,
        ),
        shown=chosen(stories, answers),
        fingerprint=data.fingerprint,
        **run_description(result.run_dir),
    )
    return StoryOutcome(report, test, baseline)


def supported(stories: Sequence[Story], answers: Sequence[StoryAnswer]) -> float | None:
    """How often the sentence with the greatest weight in any step is one of the supporting ones.

    Questions whose supporting sentences nobody told are left out; None if that is all.
    """
    hits = [
        int(np.argmax(np.max(answer.weights, axis=0))) in story.supporting
        for story, answer in zip(stories, answers, strict=True)
        if story.supporting
    ]
    return float(np.mean(hits)) if hits else None


def chosen(
    stories: Sequence[Story], answers: Sequence[StoryAnswer], *, right: int = 2, wrong: int = 1
) -> list[Shown]:
    """Picks questions to show: of each task the first ones answered right, then a sure mistake."""
    by_task: dict[str, list[Shown]] = {}
    for story, answer in zip(stories, answers, strict=True):
        by_task.setdefault(story.task, []).append(Shown(story, answer))
    picked = []
    for shown in by_task.values():
        picked += [one for one in shown if one.right][:right]
        misses = [one for one in shown if not one.right]
        picked += sorted(misses, key=lambda one: -one.answer.probability)[:wrong]
    return picked


def seeds_table(outcomes: Mapping[int, StoryScores], baseline: StoryBaseline) -> str:
    """Mean test errors by seed, their mean and spread (sample standard deviation), the baseline."""
    lines = ["seed   mean error   failed"]
    for seed, scores in outcomes.items():
        lines.append(f"{seed:>4}   {100 * scores.mean_error:9.2f}%   {scores.failed:>6}")
    errors = [100 * scores.mean_error for scores in outcomes.values()]
    lines.append(f"mean   {np.mean(errors):9.2f}%")
    if len(errors) > 1:
        lines.append(f"  sd   {np.std(errors, ddof=1):9.2f}%")
    lines.append(f"base   {100 * baseline.test.mean_error:9.2f}%   ({baseline.name})")
    return "\n".join(lines)
