"""The baseline that a language model has to beat: counted n-grams of bytes, interpolated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.common.lm.documents import Documents

LARGEST = 7
"""Bytes in the longest n-gram tried; so many symbols of 9 bits fit into 63."""
_BOUNDARY, _SYMBOLS = 256, 257


@dataclass(frozen=True)
class NgramBaseline:
    """How the baseline did."""

    order: int
    """Bytes in its longest n-gram; the one that did best on the validation split."""
    validation: float
    """Bits per byte of the validation split."""
    measured: float
    """Bits per byte of the split that is measured."""
    nats_per_character: float
    """Of the split that is measured."""

    def describe(self) -> str:
        """One line for people."""
        return (
            f"byte n-grams up to {self.order} (Witten-Bell, order by validation): "
            f"{self.measured:.4f} bits per byte, {self.nats_per_character:.4f} nats per character"
        )


def ngram_baseline(data: Documents) -> NgramBaseline:
    """Counts in the training split, picks the order on validation, measures."""
    train = _stream(data.splits["train"])
    splits = {name: _stream(data.splits[name]) for name in {"validation", data.measured}}
    chances = {
        name: np.full(len(stream) - LARGEST, 1 / _SYMBOLS) for name, stream in splits.items()
    }
    totals: list[dict[str, float]] = []
    for order in range(1, LARGEST + 1):
        counts = _Counts(train, order)
        chances = {name: counts.mixed(splits[name], below) for name, below in chances.items()}
        totals.append({name: _bits(splits[name], found) for name, found in chances.items()})
    best = min(range(LARGEST), key=lambda i: totals[i]["validation"])
    sizes = {name: sum(len(d.encode()) for d in data.splits[name]) for name in splits}
    bits = totals[best]
    return NgramBaseline(
        best + 1,
        bits["validation"] / sizes["validation"],
        bits[data.measured] / sizes[data.measured],
        float(bits[data.measured] * np.log(2) / sum(map(len, data.splits[data.measured]))),
    )


def _stream(documents: Sequence[str]) -> np.ndarray:
    """Bytes of documents, so many boundaries before each that no n-gram reaches into another."""
    gap = np.full(LARGEST, _BOUNDARY, np.int64)
    parts = [gap]
    for document in documents:
        parts += [np.frombuffer(document.encode(), np.uint8).astype(np.int64), gap]
    return np.concatenate(parts)


def _bits(stream: np.ndarray, chances: np.ndarray) -> float:
    """What the bytes and the first boundary after each document take together."""
    real = (stream[LARGEST:] != _BOUNDARY) | (stream[LARGEST - 1 : -1] != _BOUNDARY)
    return float(-np.sum(np.log2(chances[real])))


class _Counts:
    """How often each n-gram of one length occurs in a stream."""

    def __init__(self, stream: np.ndarray, order: int) -> None:
        self._order = order
        grams, real = self._grams(stream)
        self._known, self._seen = np.unique(grams[real], return_counts=True)
        contexts, first = np.unique(self._known // _SHIFT, return_index=True)
        self._contexts = contexts
        self._total = np.add.reduceat(self._seen, first)
        self._kinds = np.diff(np.append(first, len(self._known)))

    def mixed(self, stream: np.ndarray, below: np.ndarray) -> np.ndarray:
        """The chance of each symbol of a stream, mixed with that under the shorter n-grams.

        An unseen continuation gets as much as there are kinds of continuation (Witten and Bell,
        "The zero-frequency problem", 1991, method C).
        """
        grams, _ = self._grams(stream)
        seen = _lookup(self._known, self._seen, grams)
        total = _lookup(self._contexts, self._total, grams // _SHIFT)
        kinds = _lookup(self._contexts, self._kinds, grams // _SHIFT)
        return np.where(total > 0, (seen + kinds * below) / np.maximum(total + kinds, 1), below)

    def _grams(self, stream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The n-gram that ends at each place from `LARGEST` on, as a number; where it counts."""
        count = len(stream) - LARGEST
        grams = np.zeros(count, np.int64)
        for back in range(self._order - 1, -1, -1):
            grams = grams * _SHIFT + stream[LARGEST - back : LARGEST - back + count]
        real = (stream[LARGEST:] != _BOUNDARY) | (stream[LARGEST - 1 : -1] != _BOUNDARY)
        return grams, real


_SHIFT = 512


def _lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 where there is none."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
