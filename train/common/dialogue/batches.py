"""`DialogueBatches`: answers of dialogues with what was said before, as batches of like length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from train.common.dialogue.dialogues import Dialogue, DialogueData, Turn, Utterance, utterances
from train.common.dialogue.words import DialogueWords, padded_bags
from train.common.order import Batches, Order, one_pass
from train.common.task import Batch
from train.common.tokenise import PAD_ID

SPEAKERS = ("user", "bot", "base")
NO_CANDIDATE = -1
_DEPTHS = (16, 32, 64, 96, 128, 192, 256, 384, 512)
_WIDTHS = (24, 48, 96)
"""Memories and utterances are padded to one of these sizes, for each compiles anew."""


class DialogueEncoder:
    """Turns what was said into the arrays that a model reads.

    Args:
        words: numbers of words.
        max_history: utterances and rows that are read, the latest ones.
    """

    def __init__(self, words: DialogueWords, max_history: int):
        self.words, self.max_history = words, max_history
        self._encoded: dict[str, np.ndarray] = {}

    def encode(self, text: str) -> np.ndarray:
        """The ids of an utterance; remembered, for dialogues repeat themselves."""
        if text not in self._encoded:
            self._encoded[text] = self.words.encode(text)
        return self._encoded[text]

    def bags(self, candidates: Sequence[str]) -> np.ndarray:
        """The ids of all candidates, int32 `[C, W]`."""
        return padded_bags(map(self.words.encode, candidates))

    def pad(self, contexts: Sequence[Sequence[Utterance]], *, like: Any = None) -> Batch:
        """Stacks what is known at some turns.

        Args:
            contexts: of each: rows and utterances, the one to answer last.
            like: contexts whose sizes to pad to; these by default.

        Returns:
            `history` int32 `[B, M, W]`: word ids, oldest utterance first; `age` int32 `[B, M]`:
            utterances since, 0 for the one to answer; `speaker` int32 `[B, M]`; `query` int32 `[B,
            W]`: the utterance to answer.
        """
        contexts = [context[-self.max_history :] for context in contexts]
        sizes = contexts if like is None else [context[-self.max_history :] for context in like]
        depth = _rounded(max(map(len, sizes)), _DEPTHS)
        longest = max(len(self.encode(u.text)) for context in sizes for u in context)
        width = _rounded(longest, _WIDTHS)
        history = np.full((len(contexts), depth, width), PAD_ID, np.int32)
        age = np.zeros((len(contexts), depth), np.int32)
        speaker = np.zeros((len(contexts), depth), np.int32)
        query = np.full((len(contexts), width), PAD_ID, np.int32)
        for b, context in enumerate(contexts):
            now = context[-1].time
            for m, utterance in enumerate(context):
                ids = self.encode(utterance.text)
                history[b, m, : len(ids)] = ids
                age[b, m] = now - utterance.time
                speaker[b, m] = SPEAKERS.index(utterance.speaker)
            query[b, : len(ids)] = ids
        return {"history": history, "age": age, "speaker": speaker, "query": query}


class DialogueBatches:
    """Batches of a `DialogueData`; the `TaskData` of choosing answers.

    Every batch holds what `DialogueEncoder.pad` gives and `answer` int32 `[B]`, an index into the
    candidates, `NO_CANDIDATE` where it is none; evaluation batches also `weight` float32 `[B]`,
    `index` int32 `[B]`, the place of each answer in its split, and `dialogue` int32 `[B]`.
    """

    def __init__(self, data: DialogueData, encoder: DialogueEncoder):
        self.fingerprint = data.fingerprint
        self._encoder = encoder
        number = {candidate: i for i, candidate in enumerate(data.candidates)}
        self._contexts: dict[str, list[tuple[list[Utterance], int]]] = {}
        self._answers: dict[str, np.ndarray] = {}
        self._dialogues: dict[str, np.ndarray] = {}
        for split, dialogues in data.splits.items():
            turns = [(d, turn) for d, dialogue in enumerate(dialogues) for turn in dialogue]
            self._contexts[split] = [context for d in dialogues for context in _contexts(d)]
            answers = [number.get(turn.bot, NO_CANDIDATE) for _, turn in turns]
            self._answers[split] = np.array(answers, np.int32)
            self._dialogues[split] = np.array([d for d, _ in turns], np.int32)
        self._depths = {
            split: np.array([min(place + 1, encoder.max_history) for _, place in contexts])
            for split, contexts in self._contexts.items()
        }
        self.train_size = len(self._answers["train"])

    def notes(self, data: DialogueData) -> tuple[str, ...]:
        """What did not fit into the limits, counted, for people."""
        limit, words = self._encoder.max_history, self._encoder.words
        found = []
        for split, contexts in self._contexts.items():
            if deep := sum(place + 1 > limit for _, place in contexts):
                found.append(
                    f"{deep} of {len(contexts)} {split} answers have more than {limit} utterances "
                    "and rows before them; the oldest are not read"
                )
            if long := sum(words.is_cut(turn.user) for d in data.splits[split] for turn in d):
                found.append(
                    f"cut {long} {split} utterances of more than {words.config.max_words} words"
                )
        bags = {tuple(sorted(self._encoder.encode(c))) for c in data.candidates}
        if twins := len(data.candidates) - len(bags):
            found.append(f"{twins} candidates have the same words as another, which no model sees")
        return tuple(found)

    def train_batches(
        self, *, batch_size: int, seed: int, start_step: int, rows: np.ndarray | None = None
    ) -> Iterator[Batch]:
        """Yields training batches without end, from the one of step `start_step` on."""
        order = Order(self._depths["train"], batch_size, seed)
        return Batches(order, partial(self._batch, "train", rows=rows)).from_step(start_step)

    def eval_batches(
        self, split: str, *, batch_size: int, rows: np.ndarray | None = None
    ) -> Iterable[Batch]:
        """Yields one pass over a split, shortest histories first.

        Raises:
            ValueError: there is no such split.
        """
        if split not in self._contexts:
            raise ValueError(f"there is no split {split!r}, only {sorted(self._contexts)}")
        here = slice(None) if rows is None else rows
        for index, weight in one_pass(self._depths[split], batch_size):
            yield {
                **self._batch(split, index, rows=rows),
                "weight": weight[here],
                "index": index[here],
                "dialogue": self._dialogues[split][index[here]],
            }

    def _batch(self, split: str, index: np.ndarray, *, rows: np.ndarray | None) -> Batch:
        """The examples `index`, or `rows` of them, as large as all of them together are."""
        mine = index if rows is None else index[rows]
        limit = self._encoder.max_history

        def contexts(places: np.ndarray) -> list[list[Utterance]]:
            some = [self._contexts[split][i] for i in places]
            return [said[max(place + 1 - limit, 0) : place + 1] for said, place in some]

        batch = self._encoder.pad(contexts(mine), like=contexts(index))
        return {**batch, "answer": self._answers[split][mine]}


def context_of(turns: Sequence[Turn], user: str, rows: Sequence[str] = ()) -> list[Utterance]:
    """What is known when a user has spoken, the user's words last.

    Args:
        turns: the dialogue so far.
        user: what the user says now.
        rows: rows of the knowledge base that came in since.
    """
    said, places = utterances([*turns, Turn(user, "", tuple(rows))])
    return said[: places[-1] + 1]


def _contexts(dialogue: Dialogue) -> list[tuple[list[Utterance], int]]:
    """A dialogue's utterances, once for each turn, with the place of the one to answer."""
    said, places = utterances(dialogue)
    return [(said, place) for place in places]


def _rounded(size: int, sizes: Sequence[int]) -> int:
    return next((s for s in sizes if s >= size), size)
