"""`TextPairs`: a data set of texts and what should be written for them, wherever it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from train.common.data.held_out import SPLITS, draw_splits


class Pair(NamedTuple):
    """A text and what should be written for it."""

    source: str
    target: str


@dataclass(frozen=True)
class TextPairs:
    """The decoded records of a data set and what was noticed while reading them.

    Raises:
        ValueError: a split is missing or empty.
    """

    splits: dict[str, tuple[Pair, ...]]
    """`train`, `validation` and `test`."""
    origin: str
    """Where it came from, for people."""
    notes: tuple[str, ...] = ()
    """What was skipped or looks odd, counted; shown to the user and written to the report."""

    def __post_init__(self) -> None:
        """Refuses data that nothing can be learned from or measured on."""
        for split in SPLITS:
            if not self.splits.get(split):
                raise ValueError(f"{self.origin}: the {split} split holds no pairs of texts")

    @property
    def fingerprint(self) -> str:
        """sha256 of the decoded records in their order, independent of how they are stored."""
        digest = hashlib.sha256(b"pairs")
        for split in SPLITS:
            digest.update(f"\n{split}\n".encode())
            for pair in self.splits[split]:
                digest.update(json.dumps(pair).encode())
        return digest.hexdigest()

    def sources(self, split: str) -> list[str]:
        """The sources of a split."""
        return [pair.source for pair in self.splits[split]]

    def targets(self, split: str) -> list[str]:
        """The targets of a split."""
        return [pair.target for pair in self.splits[split]]

    def without_empty(self) -> TextPairs:
        """Leaves out pairs of which a side is blank, counted in a note."""
        return self._only("a side that is blank", lambda pair: all(side.strip() for side in pair))

    def limited(self, max_train: int | None, *, seed: int) -> TextPairs:
        """Keeps only so many training pairs, the first ones after a shuffle; None keeps all."""
        train = self.splits["train"]
        if max_train is None or max_train >= len(train):
            return self
        order = np.random.default_rng(seed).permutation(len(train))
        fewer = tuple(train[i] for i in order[:max_train])
        return replace(self, splits={**self.splits, "train": fewer})

    def with_leak_note(self) -> TextPairs:
        """Adds a note when sources of the held-out splits also stand in the training split."""
        seen = set(self.sources("train"))
        leaks = {
            split: sum(source in seen for source in self.sources(split))
            for split in ("validation", "test")
        }
        found = [
            f"{count} of {len(self.splits[split])} {split} sources also stand in the training split"
            for split, count in leaks.items()
            if count
        ]
        return replace(self, notes=(*self.notes, *found))

    def summary(self) -> str:
        """One line for people: where it came from, sizes, mean lengths."""
        sizes = ", ".join(f"{split} {len(self.splits[split]):,}" for split in SPLITS)
        words = [
            np.mean([len(side.split()) for side in sides])
            for sides in (self.sources("train"), self.targets("train"))
        ]
        return f"{self.origin}: {sizes} pairs; {words[0]:.1f} words to {words[1]:.1f} on average"

    def _only(self, what: str, keep: Callable[[Pair], bool]) -> TextPairs:
        """Leaves out the pairs that have `what`, which `keep` finds."""
        notes = list(self.notes)
        splits = {}
        for split, pairs in self.splits.items():
            splits[split] = tuple(pair for pair in pairs if keep(pair))
            if left_out := len(pairs) - len(splits[split]):
                notes.append(f"left out {left_out} of {len(pairs)} {split} pairs with {what}")
        return replace(self, splits=splits, notes=tuple(notes))


def hold_out_pairs(
    train: Sequence[Pair], fractions: dict[str, float], *, seed: int
) -> dict[str, tuple[Pair, ...]]:
    """Draws held-out splits at random, the same for the same seed, the rest as `train`.

    Pairs with the same source go to the same split, so that none is held out and trained on.

    Args:
        train: all pairs.
        fractions: split name to the share of the distinct sources that it gets, rounded up.
        seed: of the permutation.

    Returns:
        The named splits and `train`; within a split the original order stays.
    """
    split_of = draw_splits((pair.source for pair in train), fractions, seed)
    return {
        split: tuple(pair for pair in train if split_of[pair.source] == split)
        for split in (*fractions, "train")
    }
