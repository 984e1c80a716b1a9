"""Attention as loops over positions in float64, written from the contract alone.

It shares no code with attnjax, and is the judge of the reference implementation.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Allowed = Callable[[int, int, int, int], bool]
PlainScoreMod = Callable[[float, int, int, int, int], float]


class Expected(NamedTuple):
    """What a call must give: the output `[B, T, N, D]` and five statistics `[B, N, T]`."""

    out: np.ndarray
    logsumexp: np.ndarray
    max_logit: np.ndarray
    entropy: np.ndarray
    sink_mass: np.ndarray
    distance: np.ndarray


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    allowed: Allowed = lambda b, h, i, j: True,
    score_mods: Sequence[PlainScoreMod] = (),
    scale: float | None = None,
    sinks: np.ndarray | None = None,
    rate: float = 0.0,
    kept: Allowed = lambda b, h, i, j: True,
) -> Expected:
    """Computes attention one weight at a time."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    (B, T, N, H), (_, S, K, D) = q.shape, v.shape
    scale = 1 / math.sqrt(H) if scale is None else float(scale)
    rows = (B, N, T)
    lowest = np.full(rows, -np.inf)
    result = Expected(
        np.zeros((B, T, N, D)), lowest, lowest.copy(), *(np.zeros(rows) for _ in range(3))
    )
    for b, h, i in np.ndindex(rows):
        head = h // (N // K)
        scores = {}
        for j in range(S):
            if not allowed(b, h, i, j):
                continue
            score = scale * math.fsum(q[b, i, h] * k[b, j, head])
            for mod in score_mods:
                score = mod(score, b, h, i, j)
            if score != -math.inf:
                scores[j] = score
        if not scores:
            continue
        logits = list(scores.values())
        if sinks is not None and sinks[h] != -math.inf:
            logits.append(float(sinks[h]))
        top = max(logits)
        logsumexp = top + math.log(math.fsum(math.exp(x - top) for x in logits))
        weights = {j: math.exp(x - logsumexp) for j, x in scores.items()}
        for j, weight in weights.items():
            if kept(b, h, i, j):
                result.out[b, i, h] += weight / (1 - rate) * v[b, j, head]
        result.logsumexp[b, h, i] = logsumexp
        result.max_logit[b, h, i] = max(scores.values())
        result.entropy[b, h, i] = -math.fsum(
            math.exp(x - logsumexp) * (x - logsumexp) for x in logits
        )
        result.sink_mass[b, h, i] = weights.get(0, 0.0)
        result.distance[b, h, i] = math.fsum(w * abs(i - j) for j, w in weights.items())
    return result


def gradient(
    f: Callable[[dict[str, np.ndarray]], float], arrays: dict[str, np.ndarray], step: float = 1e-6
) -> dict[str, np.ndarray]:
    """Differentiates a function of named float64 arrays by central differences."""
    result = {}
    for name, array in arrays.items():
        slopes = np.zeros(array.shape)
        for at in np.ndindex(array.shape):
            ends = []
            for sign in (1, -1):
                moved = array.copy()
                moved[at] += sign * step
                ends.append(f({**arrays, name: moved}))
            slopes[at] = (ends[0] - ends[1]) / (2 * step)
        result[name] = slopes
    return result
