"""Hashed character n-grams: what the spelling of a word, also of an unknown one, says about it.

Source: Bojanowski et al., "Enriching Word Vectors with Subword Information" (2017).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SubwordConfig:
    """Which n-grams are taken and how many vectors they share.

    Raises:
        ValueError: a number is out of range.
    """

    buckets: int = 8_000
    """Vectors that the n-grams are hashed onto; 0 turns sub-words off."""
    shortest: int = 3
    """Characters of the shortest n-grams, the marks of a word's two ends included."""
    longest: int = 5
    """Characters of the longest n-grams."""
    per_word: int = 24
    """At most this many n-grams of a word count, the shorter ones first."""

    def __post_init__(self) -> None:
        """Rejects what gives no n-gram."""
        if self.buckets < 0 or self.per_word < 1 or not 1 <= self.shortest <= self.longest:
            raise ValueError(
                "expected buckets >= 0, per_word >= 1 and 1 <= shortest <= longest, got "
                f"{self.buckets}, {self.per_word}, {self.shortest} and {self.longest}"
            )

    def hashed(self, word: str) -> list[int]:
        """Returns the buckets of a word's n-grams, numbers from 1 (0 is padding)."""
        marked = f"<{word}>"
        grams = [
            marked[start : start + width]
            for width in range(self.shortest, self.longest + 1)
            for start in range(len(marked) - width + 1)
        ]
        # crc32, because Python's own hash of a string differs from process to process.
        return [1 + zlib.crc32(gram.encode()) % self.buckets for gram in grams[: self.per_word]]


class SubwordTable:
    """Buckets of every distinct word met so far, computed once each."""

    def __init__(self, config: SubwordConfig):
        self._config = config
        self._rows: dict[str, int] = {}
        self._buckets: list[np.ndarray] = []
        self._stacked = np.zeros((0, config.per_word), np.int32)

    def rows(self, words: Sequence[str]) -> np.ndarray:
        """Returns the row of each word in `array()`, int32, adding the new ones."""
        for word in words:
            if word not in self._rows:
                self._rows[word] = len(self._buckets)
                row = np.zeros(self._config.per_word, np.int32)
                found = self._config.hashed(word)
                row[: len(found)] = found
                self._buckets.append(row)
        return np.array([self._rows[word] for word in words], np.int32)

    def array(self) -> np.ndarray:
        """Returns the buckets of all words, int32 `[words, per_word]`, 0 where there is none."""
        if len(self._stacked) < len(self._buckets):
            self._stacked = np.stack(self._buckets)
        return self._stacked
