"""The order of examples: batches of similar length, each a function of seed and number alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import grain
import numpy as np

from train.common.task import Batch

CHUNK = 16
"""Batches that are drawn together and then sorted by length, to waste less on padding."""


class Order:
    """Which examples stand in which training batch: a function of seed and batch number alone.

    Shuffled passes over the data follow each other without a seam. Each stretch of `chunk` batches
    is sorted by length and cut into batches, which then come in a random order.

    Args:
        lengths: a number per example to sort by, `[examples]`.
        batch_size: examples in a batch.
        seed: of the shuffles.
        chunk: batches that are drawn together.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, *, chunk: int = CHUNK):
        self._lengths, self._batch_size, self._seed, self._chunk = lengths, batch_size, seed, chunk
        # Two suffice: a chunk reads at most a few passes, and batches come one after another.
        self._pass = lru_cache(maxsize=2)(self._shuffled_pass)
        self._sorted = lru_cache(maxsize=2)(self._sorted_chunk)

    def __getitem__(self, step: int) -> np.ndarray:
        """The examples of the training batch of a step, int `[batch_size]`."""
        return self._sorted(step // self._chunk)[step % self._chunk]

    def _sorted_chunk(self, chunk: int) -> np.ndarray:
        size, total = self._batch_size * self._chunk, len(self._lengths)
        places = np.arange(chunk * size, (chunk + 1) * size)
        passes = places // total
        examples = np.concatenate(
            [self._pass(int(p))[places[passes == p] % total] for p in np.unique(passes)]
        )
        examples = examples[np.argsort(self._lengths[examples], kind="stable")]
        rng = np.random.default_rng([self._seed, 1, chunk])
        return rng.permutation(examples.reshape(self._chunk, self._batch_size))

    def _shuffled_pass(self, number: int) -> np.ndarray:
        return np.random.default_rng([self._seed, 0, number]).permutation(len(self._lengths))


class Batches:
    """A random-access source, as grain wants it, whose element i is training batch i.

    Args:
        order: the examples of each batch.
        make: the batch of some examples.
    """

    def __init__(self, order: Order, make: Callable[[np.ndarray], Batch]):
        self._order, self._make = order, make

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, step: int) -> Batch:
        return self._make(self._order[int(step)])

    def from_step(self, step: int) -> Iterator[Batch]:
        """Yields batches without end, from the one of `step` on."""
        batches = iter(grain.MapDataset.source(self).to_iter_dataset())
        grain.experimental.set_next_index(batches, step)
        return batches


def one_pass(lengths: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the examples of each evaluation batch, shortest first.

    Args:
        lengths: a number per example to sort by, `[examples]`.
        batch_size: examples in a batch; the last one repeats some of its own to fill it.

    Yields:
        The examples, int32 `[batch_size]`, and their weight, float32 `[batch_size]`: 0 for those
        that only fill.
    """
    order = np.argsort(lengths, kind="stable").astype(np.int32)
    for start in range(0, len(order), batch_size):
        real = order[start : start + batch_size]
        weight = (np.arange(batch_size) < len(real)).astype(np.float32)
        yield np.resize(real, batch_size), weight
