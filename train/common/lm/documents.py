"""`Documents`: texts for language modelling in memory, wherever they came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

SPLITS = ("train", "validation", "test")
HoldOut = Literal["auto", "documents", "end"]
FEW = 20
"""With fewer documents, whole ones would make held-out splits of an accidental size."""


@dataclass(frozen=True)
class Documents:
    """The documents of a data set and what was noticed while reading them.

    Raises:
        ValueError: the training or the validation split is missing or empty.
    """

    splits: dict[str, tuple[str, ...]]
    """`train`, `validation` and, unless nothing was held out for it, `test`."""
    origin: str
    """Where it came from, for people."""
    notes: tuple[str, ...] = ()
    """What was skipped or looks odd, counted; shown to the user and written to the report."""

    def __post_init__(self) -> None:
        """Refuses data that nothing can be learned from or measured on."""
        for split in SPLITS[:2]:
            if not self.splits.get(split):
                raise ValueError(f"{self.origin}: the {split} split holds no documents")

    @property
    def measured(self) -> str:
        """The split that the result is measured on: test, or validation where there is no test."""
        return "test" if self.splits.get("test") else "validation"

    @property
    def fingerprint(self) -> str:
        """sha256 of the documents in their order, independent of how they are stored."""
        digest = hashlib.sha256()
        for split, documents in self.splits.items():
            digest.update(f"\n{split}\n".encode())
            for document in documents:
                digest.update(json.dumps(document).encode())
        return digest.hexdigest()

    def with_leak_note(self) -> Documents:
        """Adds a note when documents of a held-out split also stand in the training split."""
        seen = set(self.splits["train"])
        leaks = {
            split: sum(document in seen for document in documents)
            for split, documents in self.splits.items()
            if split != "train"
        }
        found = [
            f"{count} of {len(self.splits[split])} {split} documents also stand in the training "
            "split"
            for split, count in leaks.items()
            if count
        ]
        return replace(self, notes=(*self.notes, *found))

    def summary(self) -> str:
        """One line for people: documents and characters of each split."""
        sizes = ", ".join(
            f"{split} {len(documents):,} ({sum(map(len, documents)):,} characters)"
            for split, documents in self.splits.items()
        )
        return f"{self.origin}: documents: {sizes}"


def hold_out(
    documents: Sequence[str], fractions: dict[str, float], *, how: HoldOut, seed: int
) -> tuple[dict[str, tuple[str, ...]], str]:
    """Holds splits out of a sequence of documents; the rest is `train`.

    Args:
        documents: all of them.
        fractions: split name to its share; a share of 0 makes no split.
        how: `documents` draws whole documents at random; `end` takes the last characters of the
            text, the later split last, and cuts a document where a split begins; `auto` is `end`
            with fewer than `FEW` documents.
        seed: of the draw.

    Returns:
        The splits, and how they were held out, for people.

    Raises:
        ValueError: there are fewer documents than splits to draw.
    """
    fractions = {split: fraction for split, fraction in fractions.items() if fraction > 0}
    if how == "end" or (how == "auto" and len(documents) < FEW):
        splits = _from_the_end(documents, fractions)
        way = "the last characters"
    else:
        splits = _drawn(documents, fractions, seed)
        way = "whole documents at random"
    held = " and ".join(f"{split} ({fractions[split]:.0%})" for split in fractions)
    return splits, f"held out of the training data: {held}, {way}" if held else ""


def _drawn(
    documents: Sequence[str], fractions: dict[str, float], seed: int
) -> dict[str, tuple[str, ...]]:
    if len(documents) <= len(fractions):
        raise ValueError(
            f"expected more than {len(fractions)} documents to hold out {', '.join(fractions)}, "
            f"got {len(documents)}; give --data.hold-out end, or files for these splits"
        )
    order = np.random.default_rng(seed).permutation(len(documents))
    splits: dict[str, tuple[str, ...]] = {}
    start = 0
    for split, fraction in fractions.items():
        stop = start + int(np.ceil(fraction * len(documents)))
        splits[split] = tuple(documents[i] for i in np.sort(order[start:stop]))
        start = stop
    return {"train": tuple(documents[i] for i in np.sort(order[start:])), **splits}


def _from_the_end(
    documents: Sequence[str], fractions: dict[str, float]
) -> dict[str, tuple[str, ...]]:
    total = sum(map(len, documents))
    shares = {"train": 1 - sum(fractions.values()), **fractions}
    # A hair more, so that shares that sum to 1 but for rounding reach the last character.
    ends = np.floor(np.cumsum(list(shares.values())) * total + 1e-6).astype(int).tolist()
    splits: dict[str, tuple[str, ...]] = {}
    start = 0
    for split, stop in zip(shares, ends, strict=True):
        splits[split] = tuple(_between(documents, start, stop))
        start = stop
    return splits


def _between(documents: Sequence[str], start: int, stop: int) -> list[str]:
    """The pieces of documents from character `start` to `stop` of all of them."""
    pieces, at = [], 0
    for document in documents:
        piece = document[max(start - at, 0) : max(stop - at, 0)]
        if piece:
            pieces.append(piece)
        at += len(document)
    return pieces
