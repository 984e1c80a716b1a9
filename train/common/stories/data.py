"""`StoryData`: short stories with questions about them, in memory, wherever they came from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from train.common.data.held_out import SPLITS


class Story(NamedTuple):
    """A story, a question about it and the answer."""

    sentences: tuple[str, ...]
    """What was told before the question, oldest first; earlier questions are left out."""
    question: str
    answer: str
    supporting: tuple[int, ...]
    """Places in `sentences` of those that the answer follows from; empty where nobody knows."""
    task: str
    """Which kind of question it is."""


@dataclass(frozen=True)
class StoryData:
    """The decoded records of a data set and what was noticed while reading them.

    Raises:
        ValueError: a split is missing or empty, or there are fewer than two answers.
    """

    splits: dict[str, tuple[Story, ...]]
    """`train`, `validation` and `test`."""
    origin: str
    """Where it came from, for people."""
    notes: tuple[str, ...] = ()
    """What was dropped or looks odd, counted; shown to the user and written to the report."""

    def __post_init__(self) -> None:
        """Refuses data that nothing can be learned from or measured on."""
        for split in SPLITS:
            if not self.splits.get(split):
                raise ValueError(f"{self.origin}: the {split} split holds no questions")
        if len(self.answers) < 2:
            raise ValueError(
                f"{self.origin}: every training question has the answer {self.answers[0]!r}; "
                "there is nothing to learn"
            )

    @property
    def answers(self) -> tuple[str, ...]:
        """The distinct answers of the training split, sorted; the classes of a model."""
        return tuple(sorted({story.answer for story in self.splits["train"]}))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The kinds of questions, numbers inside their names in their natural order."""
        names = {story.task for split in SPLITS for story in self.splits[split]}
        return tuple(sorted(names, key=natural_order))

    @property
    def fingerprint(self) -> str:
        """sha256 of the decoded records in their order, independent of how they are stored."""
        digest = hashlib.sha256()
        for split in SPLITS:
            digest.update(f"\n{split}\n".encode())
            for story in self.splits[split]:
                digest.update(json.dumps(story).encode())
        return digest.hexdigest()

    def of_task(self, task: str) -> StoryData:
        """The questions of one kind alone."""
        splits = {
            split: tuple(story for story in stories if story.task == task)
            for split, stories in self.splits.items()
        }
        return replace(self, splits=splits, origin=f"{self.origin}, {task}")

    def shortened(self, limit: int) -> StoryData:
        """Drops what was told more than `limit` sentences before the question, and counts it."""
        cut = 0
        splits = {}
        for split in SPLITS:
            kept = []
            for story in self.splits[split]:
                extra = max(len(story.sentences) - limit, 0)
                cut += extra > 0
                supporting = tuple(place - extra for place in story.supporting if place >= extra)
                sentences = story.sentences[extra:]
                kept.append(story._replace(sentences=sentences, supporting=supporting))
            splits[split] = tuple(kept)
        total = sum(map(len, splits.values()))
        note = f"{cut} of {total} stories have more than {limit} sentences; the oldest are cut off"
        return replace(self, splits=splits, notes=(*self.notes, note) if cut else self.notes)

    def with_answer_note(self) -> StoryData:
        """Adds a note when held-out questions have answers that training never shows."""
        known = set(self.answers)
        unknown = {
            split: sum(story.answer not in known for story in self.splits[split])
            for split in ("validation", "test")
        }
        found = [
            f"{count} of {len(self.splits[split])} {split} questions have an answer that no "
            "training question has; they count as wrong"
            for split, count in unknown.items()
            if count
        ]
        return replace(self, notes=(*self.notes, *found))

    def summary(self) -> str:
        """One line for people: sizes, tasks and answers."""
        sizes = ", ".join(f"{split} {len(self.splits[split]):,}" for split in SPLITS)
        return f"{self.origin}: {sizes}; {len(self.tasks)} tasks, {len(self.answers)} answers"


def natural_order(name: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts `qa2` before `qa10`."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in parts)


def hold_out_groups(
    groups: Sequence[Sequence[Story]], fraction: float, seed: int
) -> tuple[list[Story], list[Story]]:
    """Draws whole groups at random, the same for the same seed.

    Questions about one story share its sentences, so that a story must not stand on both sides.

    Args:
        groups: questions that belong together.
        fraction: share of the groups to hold out, rounded up.
        seed: of the permutation.

    Returns:
        The questions that stay and those held out, each in their original order.
    """
    order = np.random.default_rng(seed).permutation(len(groups))
    held = set(order[: int(np.ceil(fraction * len(groups)))].tolist())

    def joined(wanted: Iterable[int]) -> list[Story]:
        return [story for place in wanted for story in groups[place]]

    stay = [place for place in range(len(groups)) if place not in held]
    return joined(stay), joined(sorted(held))
