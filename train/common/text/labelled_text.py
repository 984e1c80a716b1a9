"""`LabelledText`: a text-classification data set in memory, wherever it came from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from train.common.data.held_out import SPLITS


class Example(NamedTuple):
    """One text and the index of its label in `LabelledText.labels`."""

    text: str
    label: int


@dataclass(frozen=True)
class LabelledText:
    """The decoded records of a data set and what was noticed while reading them.

    Raises:
        ValueError: a split is missing or empty, or there are fewer than two labels.
    """

    splits: dict[str, tuple[Example, ...]]
    """`train`, `validation` and `test`."""
    labels: tuple[str, ...]
    """Names of the classes; an example holds an index into them."""
    origin: str
    """Where it came from, for people."""
    notes: tuple[str, ...] = ()
    """What was skipped or looks odd, counted; shown to the user and written to the report."""

    def __post_init__(self) -> None:
        """Refuses data that nothing can be learned from or measured on."""
        for split in SPLITS:
            if not self.splits.get(split):
                raise ValueError(f"{self.origin}: the {split} split holds no examples")
        if len(self.labels) < 2:
            raise ValueError(
                f"{self.origin}: classification needs at least two labels, found only "
                f"{list(self.labels)}; check which column holds the label"
            )

    @property
    def fingerprint(self) -> str:
        """sha256 of the decoded records in their order, independent of how they are stored."""
        digest = hashlib.sha256(json.dumps(self.labels).encode())
        for split in SPLITS:
            digest.update(f"\n{split}\n".encode())
            for text, label in self.splits[split]:
                digest.update(json.dumps([text, label]).encode())
        return digest.hexdigest()

    def label_counts(self, split: str = "train") -> np.ndarray:
        """Examples per class in a split, int64 `[classes]`."""
        indices = [example.label for example in self.splits[split]]
        return np.bincount(indices, minlength=len(self.labels))

    def with_leak_note(self) -> LabelledText:
        """Adds a note when texts of the held-out splits also stand in the training split."""
        seen = {text for text, _ in self.splits["train"]}
        leaks = {
            split: sum(text in seen for text, _ in self.splits[split])
            for split in ("validation", "test")
        }
        found = [
            f"{count} of {len(self.splits[split])} {split} texts also stand in the training split"
            for split, count in leaks.items()
            if count
        ]
        return replace(self, notes=(*self.notes, *found))

    def summary(self) -> str:
        """One line for people: sizes and the label distribution."""
        sizes = ", ".join(f"{split} {len(self.splits[split]):,}" for split in SPLITS)
        counts = Counter(dict(zip(self.labels, self.label_counts().tolist(), strict=True)))
        common = ", ".join(f"{label} {count:,}" for label, count in counts.most_common(4))
        more = ", ..." if len(self.labels) > 4 else ""
        return f"{self.origin}: {sizes}; {len(self.labels)} classes ({common}{more})"


def hold_out(
    examples: Sequence[Example], fractions: dict[str, float], seed: int
) -> dict[str, tuple[Example, ...]]:
    """Draws held-out splits at random, the same for the same seed, the rest as `train`.

    Args:
        examples: all examples.
        fractions: split name to the share of `examples` that it gets, rounded up.
        seed: of the permutation.

    Returns:
        The named splits and `train`; within a split the original order stays.
    """
    order = np.random.default_rng(seed).permutation(len(examples))
    result: dict[str, tuple[Example, ...]] = {}
    start = 0
    for split, fraction in fractions.items():
        stop = start + int(np.ceil(fraction * len(examples)))
        result[split] = tuple(examples[i] for i in np.sort(order[start:stop]))
        start = stop
    result["train"] = tuple(examples[i] for i in np.sort(order[start:]))
    return result
