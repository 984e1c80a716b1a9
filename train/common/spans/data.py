"""`SpanData`: texts with questions whose answers are pieces of them, in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from train.common.data.held_out import SPLITS, draw_splits
from train.common.spans.squad_scores import Rules


class Span(NamedTuple):
    """A piece of a text."""

    text: str
    start: int
    """Characters before it; -1 where the piece does not stand in the text."""


class SpanQuestion(NamedTuple):
    """A question about a text."""

    id: str
    title: str
    """Of the article that the text is from."""
    context: str
    question: str
    answers: tuple[Span, ...]
    """Each of them is right; none where the text does not answer the question."""


@dataclass(frozen=True)
class SpanData:
    """The decoded records of a data set and what was noticed while reading them.

    Raises:
        ValueError: a split is missing or empty, or no training question can be answered.
    """

    splits: dict[str, tuple[SpanQuestion, ...]]
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
        if not any(question.answers for question in self.splits["train"]):
            raise ValueError(f"{self.origin}: no training question has an answer")

    @property
    def rules(self) -> Rules:
        """Those of SQuAD 2.0 where some question has no answer, else those of 1.1."""
        everything = (q for split in SPLITS for q in self.splits[split])
        return "v1.1" if all(question.answers for question in everything) else "v2.0"

    @property
    def fingerprint(self) -> str:
        """sha256 of the decoded records in their order, independent of how they are stored."""
        digest = hashlib.sha256()
        for split in SPLITS:
            digest.update(f"\n{split}\n".encode())
            for question in self.splits[split]:
                digest.update(json.dumps(question).encode())
        return digest.hexdigest()

    def limited(self, max_train: int | None, seed: int) -> SpanData:
        """Keeps only some training questions, the first ones after a shuffle."""
        if max_train is None:
            return self
        train = self.splits["train"]
        order = np.random.default_rng(seed).permutation(len(train))[:max_train]
        return replace(self, splits={**self.splits, "train": tuple(train[i] for i in order)})

    def with_leak_note(self) -> SpanData:
        """Adds a note when texts of the held-out splits also stand in the training split."""
        seen = {question.context for question in self.splits["train"]}
        found = []
        for split in ("validation", "test"):
            held = {question.context for question in self.splits[split]}
            if both := len(held & seen):
                found.append(f"{both} of {len(held)} {split} texts also stand in training")
        return replace(self, notes=(*self.notes, *found))

    def summary(self) -> str:
        """One line for people: sizes, and how many questions have no answer."""
        sizes = ", ".join(f"{split} {len(self.splits[split]):,}" for split in SPLITS)
        without = sum(not question.answers for question in self.splits["train"])
        share = f"; {without:,} training questions without an answer" if without else ""
        return f"{self.origin}: {sizes} questions{share}"


def hold_out_titles(
    questions: Sequence[SpanQuestion], fractions: dict[str, float], seed: int
) -> dict[str, tuple[SpanQuestion, ...]]:
    """Draws whole articles at random, the same for the same seed; whole texts without titles.

    Questions about one text share its answers' surroundings, and an article its names.

    Args:
        questions: all of them.
        fractions: split name to the share of the articles that it gets, rounded up.
        seed: of the permutation.

    Returns:
        The named splits and `train`; within a split the original order stays.
    """
    split_of = draw_splits((q.title or q.context for q in questions), fractions, seed)
    return {
        split: tuple(q for q in questions if split_of[q.title or q.context] == split)
        for split in (*fractions, "train")
    }
