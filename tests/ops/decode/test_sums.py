"""Sums over parts of the keys, merged in any order, are those over all."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.numerics import MASKED
from attnjax.ops.decode.sums import Sums, finish, merge


def sums_of(score: np.ndarray, values: np.ndarray, distance: np.ndarray) -> Sums:
    largest = score.max(-1)
    shift = np.where(np.isinf(largest), 0, largest)[..., None]
    weight = np.exp(score - shift)
    exponent = np.where(np.isinf(score), 0, score - shift)
    found = (
        largest,
        weight @ values,
        weight.sum(-1),
        (weight * exponent).sum(-1),
        weight[..., 0],
        (weight * distance).sum(-1),
    )
    return Sums(*(jnp.asarray(x, jnp.float32) for x in found))


@pytest.mark.parametrize("sinks", [None, 2.0, 60.0])
def test_merged_parts_are_the_whole(sinks: float | None) -> None:
    rng = np.random.default_rng(0)
    score = rng.normal(size=(3, 4, 30)) * np.array([1, 5, 40]).reshape(3, 1, 1)
    score[:, 1, 10:] = score[:, 2, :20] = score[:, 3] = MASKED
    values, distance = rng.normal(size=(30, 5)), rng.integers(0, 9, 30)
    cuts = [slice(0, 7), slice(7, 20), slice(20, 30)]
    parts = [sums_of(score[..., c], values[c], distance[c]) for c in cuts]
    parts = [parts[0], *(part._replace(first=0 * part.first) for part in parts[1:])]
    order = rng.permutation(3)
    stacked = Sums(*(jnp.stack([x[n] for n in order], 1) for x in zip(*parts, strict=True)))
    logits = None if sinks is None else jnp.full((3, 4), sinks)
    got = finish(merge(stacked, axis=1), logits)

    every = score if sinks is None else np.concatenate([score, np.full((3, 4, 1), sinks)], -1)
    empty = np.isinf(score).all(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        logsumexp = np.log(np.exp(every - every.max(-1, keepdims=True)).sum(-1)) + every.max(-1)
        p = np.where(empty[..., None], 0, np.exp(every - logsumexp[..., None]))
        entropy = -np.where(p > 0, p * np.log(p), 0).sum(-1)
    keys = p[..., :30]
    want = (
        keys @ values,
        np.where(empty, MASKED, logsumexp),
        score.max(-1),
        entropy,
        keys[..., 0],
        keys @ distance,
    )
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
