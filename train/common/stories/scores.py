"""How well questions about stories are answered, task by task, and how well guessing does."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from train.common.stories.data import Story, StoryData, natural_order

FAILED = 0.05
"""A task with a greater share of wrong answers counts as failed (Weston et al., 2015)."""


@dataclass(frozen=True)
class StoryScores:
    """Shares of wrong answers."""

    errors: Mapping[str, float]
    """By task, in [0, 1]."""
    counts: Mapping[str, int]
    """Questions of each task."""

    @classmethod
    def of(cls, stories: Sequence[Story], answers: Sequence[str]) -> StoryScores:
        """Compares answers with the right ones, which must be equal to the letter."""
        wrong: dict[str, list[bool]] = defaultdict(list)
        for story, answer in zip(stories, answers, strict=True):
            wrong[story.task].append(story.answer != answer)
        tasks = sorted(wrong, key=natural_order)
        return cls(
            {task: float(np.mean(wrong[task])) for task in tasks},
            {task: len(wrong[task]) for task in tasks},
        )

    @classmethod
    def merged(cls, parts: Sequence[StoryScores]) -> StoryScores:
        """The scores of several runs that had different tasks, as one."""
        return cls(
            {task: error for part in parts for task, error in part.errors.items()},
            {task: count for part in parts for task, count in part.counts.items()},
        )

    @property
    def mean_error(self) -> float:
        """The mean of the tasks' errors, however many questions each has."""
        return float(np.mean(list(self.errors.values())))

    @property
    def accuracy(self) -> float:
        """The share of all questions that are answered right."""
        total = sum(self.counts.values())
        return 1 - sum(self.errors[task] * count for task, count in self.counts.items()) / total

    @property
    def failed(self) -> int:
        """How many tasks have more errors than `FAILED`."""
        return sum(error > FAILED for error in self.errors.values())

    def as_json(self) -> dict[str, object]:
        """What result.json says."""
        return {"mean_error": self.mean_error, "failed": self.failed, "errors": dict(self.errors)}


@dataclass(frozen=True)
class StoryBaseline:
    """How the better of two ways to guess did."""

    name: str
    """Which way; the validation split picks it."""
    test: StoryScores
    validation: StoryScores

    def describe(self) -> str:
        """One line for people."""
        return (
            f"{self.name}: mean test error {100 * self.test.mean_error:.2f}%, "
            f"{self.test.failed} of {len(self.test.errors)} tasks failed"
        )


def guess(data: StoryData) -> StoryBaseline:
    """Measures the task's most frequent answer and the answer that the story mentions last."""
    frequent = {
        task: Counter(s.answer for s in data.splits["train"] if s.task == task)
        for task in data.tasks
    }
    # Ties go to the first in the alphabet, so that the order of the files does not matter.
    most = {
        task: min(counts, key=lambda answer: (-counts[answer], answer), default="")
        for task, counts in frequent.items()
    }
    known = {task: set(counts) for task, counts in frequent.items()}

    def last_mentioned(story: Story) -> str:
        for sentence in reversed(story.sentences):
            for word in reversed(sentence.rstrip(".!?").split()):
                if word in known[story.task]:
                    return word
        return most[story.task]

    ways = {
        "most frequent answer of the task": lambda story: most[story.task],
        "answer mentioned last in the story": last_mentioned,
    }
    validation, test = data.splits["validation"], data.splits["test"]
    tried = {
        name: StoryScores.of(validation, [*map(way, validation)]) for name, way in ways.items()
    }
    best = min(tried, key=lambda name: tried[name].mean_error)
    return StoryBaseline(best, StoryScores.of(test, [*map(ways[best], test)]), tried[best])


def errors_table(scores: StoryScores, baseline: StoryBaseline | None = None) -> str:
    """Errors by task as plain text, the baseline's beside them."""
    width = max(len(task) for task in (*scores.errors, "mean"))
    head = f"{'':<{width}}   error" + ("   baseline" if baseline else "")
    lines = [head]
    for task, error in (*scores.errors.items(), ("mean", scores.mean_error)):
        line = f"{task:<{width}} {100 * error:6.2f}%"
        if baseline is not None:
            base = baseline.test
            line += f" {100 * (base.mean_error if task == 'mean' else base.errors[task]):9.2f}%"
        lines.append(line)
    lines.append(f"{scores.failed} of {len(scores.errors)} tasks have more than 5% errors")
    return "\n".join(lines)
