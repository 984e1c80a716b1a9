"""The n-gram baseline: a distribution, as a slow count by hand has it."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from train.common.lm.documents import Documents
from train.common.lm.ngrams import LARGEST, ngram_baseline

TRAIN = ("the cat sat on the mat", "the cat ate", "a rat sat on a cat ä")
HELD_OUT = ("the rat sat", "a mat on the cat ö")
_END = 256


def by_hand(order: int) -> float:
    """Bits of the held-out documents under Witten-Bell's mixture, symbol by symbol."""
    seen: list[dict[tuple, Counter]] = [defaultdict(Counter) for _ in range(order)]
    for document in TRAIN:
        symbols = [_END] * LARGEST + list(document.encode()) + [_END]
        for place in range(LARGEST, len(symbols)):
            for n in range(order):
                seen[n][tuple(symbols[place - n : place])][symbols[place]] += 1
    bits = 0.0
    for document in HELD_OUT:
        symbols = [_END] * LARGEST + list(document.encode()) + [_END]
        for place in range(LARGEST, len(symbols)):
            chance = 1 / 257
            for n in range(order):
                counts = seen[n].get(tuple(symbols[place - n : place]))
                if counts:
                    kinds, total = len(counts), sum(counts.values())
                    chance = (counts[symbols[place]] + kinds * chance) / (total + kinds)
            bits -= np.log2(chance)
    return bits


def test_it_counts_as_one_counts_by_hand() -> None:
    data = Documents({"train": TRAIN, "validation": HELD_OUT}, "here")
    found = ngram_baseline(data)
    size = sum(len(d.encode()) for d in HELD_OUT)
    slow = {order: by_hand(order) / size for order in range(1, LARGEST + 1)}
    assert found.order == min(slow, key=lambda order: slow[order])
    assert found.measured == found.validation == pytest.approx(slow[found.order])
    nats = slow[found.order] * size * np.log(2)
    assert found.nats_per_character == pytest.approx(nats / sum(map(len, HELD_OUT)))


def test_the_test_split_is_measured_where_there_is_one() -> None:
    splits = {"train": TRAIN, "validation": HELD_OUT, "test": TRAIN}
    found = ngram_baseline(Documents(splits, "here"))
    assert found.measured < found.validation
    assert "bits per byte" in found.describe()
