"""The splits of a data set, and which examples are held out of a training set."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

import numpy as np

SPLITS = ("train", "validation", "test")
K = TypeVar("K", bound=Hashable)


def draw_splits(keys: Iterable[K], fractions: Mapping[str, float], seed: int) -> dict[K, str]:
    """Draws a split for each key at random, the same for the same seed.

    Examples that must stay together have the same key.

    Args:
        keys: of all examples, in their order; equal ones count once.
        fractions: split name to the share of the distinct keys that it gets, rounded up.
        seed: of the permutation.

    Returns:
        The split of each key; `train` for those that are not held out.
    """
    distinct = list(dict.fromkeys(keys))
    order = np.random.default_rng(seed).permutation(len(distinct))
    split_of = dict.fromkeys(distinct, "train")
    start = 0
    for split, fraction in fractions.items():
        stop = start + int(np.ceil(fraction * len(distinct)))
        split_of |= {distinct[i]: split for i in order[start:stop]}
        start = stop
    return split_of
