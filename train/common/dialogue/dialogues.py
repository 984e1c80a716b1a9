"""`DialogueData`: dialogues of a user and a bot in memory, wherever they came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from train.common.data.held_out import SPLITS, draw_splits

SILENCE = "<SILENCE>"
"""What stands for the user where the bot speaks twice in a row."""


class Turn(NamedTuple):
    """What the user said and what the bot answers."""

    user: str
    bot: str
    rows: tuple[str, ...] = ()
    """Rows of the knowledge base that came in just before, each `entity attribute value`."""


Dialogue = tuple[Turn, ...]


class Utterance(NamedTuple):
    """One piece of what is known before an answer."""

    text: str
    speaker: str
    """user, bot or base (a row of the knowledge base)."""
    time: int
    """Utterances of the dialogue before it; rows have the time of the turn they came in with."""


@dataclass(frozen=True)
class DialogueData:
    """The decoded dialogues of a data set and what was noticed while reading them.

    Raises:
        ValueError: a split is missing or empty, there are fewer than two candidates, or one stands
            twice.
    """

    splits: dict[str, tuple[Dialogue, ...]]
    """`train`, `validation`, `test`, and where there is one `oov`, a test with unseen values."""
    candidates: tuple[str, ...]
    """The answers to choose from."""
    origin: str
    """Where it came from, for people."""
    knowledge: tuple[str, ...] = ()
    """Rows of the knowledge base that calls ask, each `entity attribute value`."""
    notes: tuple[str, ...] = ()
    """What was skipped or looks odd, counted; shown to the user and written to the report."""

    def __post_init__(self) -> None:
        """Refuses data that nothing can be learned from or measured on."""
        for split in SPLITS:
            if not self.splits.get(split):
                raise ValueError(f"{self.origin}: the {split} split holds no dialogues")
        if len(self.candidates) < 2:
            raise ValueError(
                f"{self.origin}: expected at least two answers to choose from, got only "
                f"{list(self.candidates)}"
            )
        if len(set(self.candidates)) < len(self.candidates):
            twice = next(c for c in self.candidates if self.candidates.count(c) > 1)
            raise ValueError(f"{self.origin}: the candidate {twice!r} stands twice")

    @property
    def held_out(self) -> tuple[str, ...]:
        """The splits that are measured: all but the training split."""
        return tuple(split for split in self.splits if split != "train")

    @property
    def fingerprint(self) -> str:
        """sha256 of the decoded records in their order, independent of how they are stored."""
        digest = hashlib.sha256(json.dumps([self.candidates, self.knowledge]).encode())
        for split, dialogues in self.splits.items():
            digest.update(f"\n{split}\n".encode())
            for dialogue in dialogues:
                digest.update(json.dumps(dialogue).encode())
        return digest.hexdigest()

    def limited(self, max_train: int | None, *, seed: int) -> DialogueData:
        """Keeps only so many training dialogues, the first ones after a shuffle; None keeps all."""
        train = self.splits["train"]
        if max_train is None or max_train >= len(train):
            return self
        order = np.random.default_rng(seed).permutation(len(train))
        fewer = tuple(train[i] for i in order[:max_train])
        return replace(self, splits={**self.splits, "train": fewer})

    def with_notes(self) -> DialogueData:
        """Adds what is odd about the splits: answers out of reach, dialogues seen in training.

        Raises:
            ValueError: a training answer is not among the candidates.
        """
        known, seen = set(self.candidates), set(self.splits["train"])
        notes = list(self.notes)
        for split, dialogues in self.splits.items():
            answers = [turn.bot for turn in all_turns(dialogues)]
            unknown = [answer for answer in answers if answer not in known]
            if unknown and split == "train":
                raise ValueError(
                    f"{self.origin}: {len(unknown)} training answers are no candidates, the first "
                    f"is {unknown[0]!r}; give the file of candidates that belongs to these "
                    "dialogues, or none to choose among the training answers"
                )
            if unknown:
                notes.append(
                    f"{len(unknown)} of {len(answers)} {split} answers are no candidates; they "
                    "count as wrong"
                )
            leaks = sum(dialogue in seen for dialogue in dialogues) if split != "train" else 0
            if leaks:
                notes.append(
                    f"{leaks} of {len(dialogues)} {split} dialogues also stand in the training "
                    "split"
                )
        return replace(self, notes=tuple(notes))

    def summary(self) -> str:
        """One line for people: dialogues and answers of each split, candidates."""
        sizes = ", ".join(
            f"{split} {len(dialogues):,} ({sum(map(len, dialogues)):,} answers)"
            for split, dialogues in self.splits.items()
        )
        rows = f", {len(self.knowledge):,} rows of knowledge" if self.knowledge else ""
        return f"{self.origin}: dialogues: {sizes}; {len(self.candidates):,} candidates{rows}"


def all_turns(dialogues: Iterable[Dialogue]) -> Iterator[Turn]:
    """The turns of many dialogues, one after another."""
    for dialogue in dialogues:
        yield from dialogue


def utterances(dialogue: Sequence[Turn]) -> tuple[list[Utterance], list[int]]:
    """A dialogue as one list, and how much of it is known at each turn.

    Args:
        dialogue: its turns.

    Returns:
        Rows, user and bot in their order, and for each turn the place of its user's utterance:
        what stands before it is the history.
    """
    found: list[Utterance] = []
    places = []
    for number, turn in enumerate(dialogue):
        found += [Utterance(row, "base", 2 * number) for row in turn.rows]
        places.append(len(found))
        found.append(Utterance(turn.user, "user", 2 * number))
        found.append(Utterance(turn.bot, "bot", 2 * number + 1))
    return found, places


def answers_of(dialogues: Iterable[Dialogue]) -> tuple[str, ...]:
    """The distinct answers of some dialogues, sorted."""
    return tuple(sorted({turn.bot for turn in all_turns(dialogues)}))


def hold_out_dialogues(
    dialogues: Sequence[Dialogue], fractions: dict[str, float], *, seed: int
) -> dict[str, tuple[Dialogue, ...]]:
    """Draws whole dialogues at random, the same for the same seed, the rest as `train`.

    Equal dialogues go to the same split, so that none is held out and trained on.

    Args:
        dialogues: all of them.
        fractions: split name to the share of the distinct dialogues that it gets, rounded up.
        seed: of the permutation.

    Returns:
        `train` and the named splits; within a split the original order stays.
    """
    split_of = draw_splits(dialogues, fractions, seed)
    return {
        split: tuple(d for d in dialogues if split_of[d] == split)
        for split in ("train", *fractions)
    }
