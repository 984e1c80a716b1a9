"""`StoryBatches`: encoded stories as batches of similar length, in a reproducible order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from train.common.order import Batches, Order, one_pass
from train.common.stories.data import Story, StoryData
from train.common.task import Batch
from train.common.tokenise import PAD_ID, UNKNOWN_ID, TextTokeniser

UNKNOWN_ANSWER = -1
"""The class of an answer that training never shows; no model can give it."""
_SIZES = (4, 8, 16, 32, 64, 96, 128, 192, 256)
"""Stories are padded to one of these numbers of sentences, for each compiles anew."""


class Encoded(NamedTuple):
    """One question as numbers."""

    sentences: np.ndarray
    """Rows of the encoder's table of sentences, int32 `[sentences]`."""
    question: int
    """The row of the question."""
    answer: int
    """The class, or `UNKNOWN_ANSWER`."""


class StoryEncoder:
    """Turns stories into the arrays that the model reads.

    Sentences come again and again, so each distinct one is kept once, in a table.

    Args:
        tokeniser: of words; marks of punctuation are left out.
        answers: the classes.
        words: most words of a sentence; longer ones are cut. Kept with the run, for the model has
            a weight for each place.
    """

    def __init__(self, tokeniser: TextTokeniser, answers: Sequence[str], words: int):
        self.tokeniser, self.answers, self.words = tokeniser, tuple(answers), words
        self._classes = {answer: i for i, answer in enumerate(answers)}
        self._rows: dict[str, int] = {}
        self._table = np.zeros((0, words), np.int32)

    @staticmethod
    def longest(tokeniser: TextTokeniser, stories: Iterable[Story]) -> int:
        """The most words of a sentence or question."""
        texts = {text for story in stories for text in (*story.sentences, story.question)}
        return max(len(ids) for ids in _word_ids(tokeniser, sorted(texts)))

    def encode(self, stories: Sequence[Story]) -> list[Encoded]:
        """Returns each story as numbers."""
        texts = dict.fromkeys(t for s in stories for t in (*s.sentences, s.question))
        self._add([text for text in texts if text not in self._rows])
        return [
            Encoded(
                np.array([self._rows[sentence] for sentence in story.sentences], np.int32),
                self._rows[story.question],
                self._classes.get(story.answer, UNKNOWN_ANSWER),
            )
            for story in stories
        ]

    def pad(self, encoded: Sequence[Encoded], *, longest: int = 0) -> Batch:
        """Stacks encoded stories.

        Args:
            encoded: from `encode`.
            longest: pads as if a story of so many sentences were among them.

        Returns:
            `story` int32 `[B, S, W]`, padded by 0 in both directions, `question` int32 `[B, W]` and
            `answer` int32 `[B]`.
        """
        longest = max(longest, *(len(e.sentences) for e in encoded))
        width = min((size for size in _SIZES if size >= longest), default=longest)
        story = np.full((len(encoded), width, self.words), PAD_ID, np.int32)
        for place, e in zip(story, encoded, strict=True):
            place[: len(e.sentences)] = self._table[e.sentences]
        return {
            "story": story,
            "question": self._table[[e.question for e in encoded]],
            "answer": np.array([e.answer for e in encoded], np.int32),
        }

    def _add(self, texts: Sequence[str]) -> None:
        rows = np.full((len(texts), self.words), PAD_ID, np.int32)
        for place, ids in zip(rows, _word_ids(self.tokeniser, texts), strict=True):
            place[: len(ids)] = ids[: self.words]
        self._rows |= {text: len(self._table) + i for i, text in enumerate(texts)}
        self._table = np.concatenate([self._table, rows])


class StoryBatches:
    """Batches of a `StoryData`; the `TaskData` of questions about stories.

    Every batch holds what `StoryEncoder.pad` gives; evaluation batches also `weight` float32 `[B]`
    and `task` int32 `[B]`, the place of each question's task in `StoryData.tasks`.
    """

    def __init__(self, data: StoryData, encoder: StoryEncoder):
        self.fingerprint = data.fingerprint
        self.train_size = len(data.splits["train"])
        self._encoder = encoder
        self._encoded = {s: encoder.encode(stories) for s, stories in data.splits.items()}
        places = {task: i for i, task in enumerate(data.tasks)}
        self._tasks = {
            split: np.array([places[story.task] for story in stories], np.int32)
            for split, stories in data.splits.items()
        }
        self._lengths = {
            split: np.array([len(e.sentences) for e in encoded])
            for split, encoded in self._encoded.items()
        }

    def train_batches(
        self, *, batch_size: int, seed: int, start_step: int, rows: np.ndarray | None = None
    ) -> Iterator[Batch]:
        """Yields training batches without end, from the one of step `start_step` on."""
        order = Order(self._lengths["train"], batch_size, seed)
        return Batches(order, partial(self._batch, "train", rows=rows)).from_step(start_step)

    def eval_batches(
        self, split: str, *, batch_size: int, rows: np.ndarray | None = None
    ) -> Iterable[Batch]:
        """Yields one pass over a split, shortest stories first.

        Raises:
            ValueError: there is no such split.
        """
        if split not in self._encoded:
            raise ValueError(f"there is no split {split!r}, only {sorted(self._encoded)}")
        here = slice(None) if rows is None else rows
        for index, weight in one_pass(self._lengths[split], batch_size):
            batch = self._batch(split, index, rows=rows)
            yield {**batch, "weight": weight[here], "task": self._tasks[split][index][here]}

    def _batch(self, split: str, index: np.ndarray, *, rows: np.ndarray | None) -> Batch:
        """The questions `index`, or `rows` of them, as long as all of them together are."""
        longest = int(self._lengths[split][index].max())
        mine = index if rows is None else index[rows]
        return self._encoder.pad([self._encoded[split][i] for i in mine], longest=longest)


def _word_ids(tokeniser: TextTokeniser, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text's words; one unknown word where there is none."""
    found = [
        [i for i, piece in zip(t.ids, t.pieces, strict=True) if any(map(str.isalnum, piece))]
        for t in tokeniser.encode_batch(texts)
    ]
    return [ids or [UNKNOWN_ID] for ids in found]
