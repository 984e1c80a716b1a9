"""Every map from a dense array of weights in float64 numpy, written from the contracts alone."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Allowed = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Any]
PlainScoreMod = Callable[..., np.ndarray]


def indices(shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Positions b, h, i, j of all scores `[B, N, T, S]`, to broadcast."""
    return tuple(np.ogrid[tuple(slice(n) for n in shape)])


def softmax(
    scores: np.ndarray,
    allowed: Allowed | None,
    mods: Sequence[PlainScoreMod] = (),
    sinks: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights `[B, N, T, S]` and logsumexp of scaled scores; rows with nothing to see are 0."""
    at = indices(scores.shape)
    for mod in mods:
        scores = mod(scores, *at)
    if allowed is not None:
        scores = np.where(allowed(*at), scores, -np.inf)
    empty = np.all(scores == -np.inf, axis=-1)
    extra = np.full(scores.shape[:3], -np.inf)
    if sinks is not None:
        extra = np.broadcast_to(np.asarray(sinks, np.float64)[None, :, None], extra.shape)
    logits = np.concatenate([scores, extra[..., None]], axis=-1)
    top = np.where(empty, 0, np.max(logits, axis=-1))
    with np.errstate(divide="ignore"):
        logsumexp = top + np.log(np.sum(np.exp(logits - top[..., None]), axis=-1))
    logsumexp = np.where(empty, -np.inf, logsumexp)
    finite = np.where(empty, 0, logsumexp)
    return np.where(empty[..., None], 0, np.exp(scores - finite[..., None])), logsumexp


def products(q: Any, k: Any) -> np.ndarray:
    """Dot products `[B, N, T, S]` of `[B, T, N, H]` and `[B, S, K, H]`."""
    q, k = (np.asarray(x, np.float64) for x in (q, k))
    return np.einsum("btnh,bsnh->bnts", q, np.repeat(k, q.shape[2] // k.shape[2], axis=2))


def pooled(x: np.ndarray, queries: int, keys: int, *, mean: bool) -> np.ndarray:
    """Sums or means of cells; position t of T lies in cell t * count // T."""
    (T, S), cells = x.shape[2:], np.zeros((*x.shape[:2], queries, keys))
    sizes = np.zeros((queries, keys))
    rows, columns = np.arange(T) * queries // T, np.arange(S) * keys // S
    np.add.at(cells, (slice(None), slice(None), rows[:, None], columns[None]), x)
    np.add.at(sizes, (rows[:, None], columns[None]), 1)
    return cells / sizes if mean else cells


def check_edges(edges: Any, x: np.ndarray, seen: np.ndarray, tolerance: dict[str, float]) -> None:
    """Asserts that edges are the largest entries of `x` where `seen`, each key once."""
    weights, keys = (np.asarray(e) for e in edges)
    count = weights.shape[-1]
    ordered = -np.sort(-np.where(seen, x, -np.inf), axis=-1)[..., :count]
    np.testing.assert_allclose(weights, np.where(ordered == -np.inf, 0, ordered), **tolerance)
    np.testing.assert_array_equal(keys == -1, ordered == -np.inf)
    there = np.take_along_axis(x, np.maximum(keys, 0), axis=-1)
    np.testing.assert_allclose(weights, np.where(keys < 0, 0, there), **tolerance)
    assert np.all(np.take_along_axis(seen, np.maximum(keys, 0), axis=-1) | (keys < 0))
    ranked = np.sort(keys, axis=-1)
    assert not np.any((ranked[..., 1:] == ranked[..., :-1]) & (ranked[..., 1:] >= 0))
