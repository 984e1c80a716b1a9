"""A bag of words: the score is the sum of what its words weigh, so the truth is known exactly."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


class Bag(NamedTuple):
    weights: np.ndarray
    """`[B, T]`; integers, so that sums are exact."""
    lengths: np.ndarray


def drawn_bag(B: int, T: int, seed: int = 0) -> Bag:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, T + 1, B)
    lengths[0] = T
    weights = np.stack([rng.permutation(np.arange(T) - T // 3) for _ in range(B)])
    return Bag(weights.astype(np.float32), lengths)


def score(inputs: Array, keep: Array) -> Array:
    return jnp.sum(jnp.where(keep, inputs, 0), axis=1)


def embedded_score(kernel: Array, embedded: Array) -> Array:
    return jnp.sum(embedded @ kernel, axis=1)


def inside(bag: Bag) -> np.ndarray:
    return np.arange(bag.weights.shape[1]) < bag.lengths[:, None]
