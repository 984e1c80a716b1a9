"""Calls of attention: masks and score_mods with their meaning in numpy."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import attnjax
from tests.focus.maps.dense import Allowed, PlainScoreMod

B, T, S, N, H, D = 2, 257, 251, 4, 6, 5


class MaskCase(NamedTuple):
    """A mask, and where it allows; the first axis of the sequences is B."""

    mask: attnjax.Mask
    allowed: Allowed


class ModCase(NamedTuple):
    """Score_mods, and what they do."""

    mods: Any
    plain: tuple[PlainScoreMod, ...]


def _rng() -> np.random.Generator:
    return np.random.default_rng(7)


_Q_IDS = np.sort(_rng().integers(0, 5, (B, T)), axis=1).astype(np.int32)
_KV_IDS = _rng().integers(0, 5, (B, S)).astype(np.int32)
_KV_SORTED = np.sort(_KV_IDS, axis=1)
_DENSE = _rng().random((1, N, T, S)) < 0.3
_LIMIT = _rng().integers(0, S, T).astype(np.int32)
_SHORT = np.array([101, 0], np.int32)
_Q_SHORT, _KV_SHORT = np.array([T, 13], np.int32), np.array([89, S], np.int32)
_OFFSET = np.array([-31, 17], np.int32)

MASKS: dict[str, MaskCase] = {
    "causal-segments": MaskCase(
        attnjax.Causal() & attnjax.Segments(jnp.asarray(_Q_IDS), jnp.asarray(_KV_SORTED)),
        lambda b, h, i, j: (i >= j) & (_Q_IDS[b, i] == _KV_SORTED[b, j]),
    ),
    "lengths": MaskCase(
        attnjax.Lengths(_Q_SHORT, _KV_SHORT),
        lambda b, h, i, j: (i < _Q_SHORT[b]) & (j < _KV_SHORT[b]),
    ),
    "window": MaskCase(attnjax.Window(30, 7), lambda b, h, i, j: (i - 30 <= j) & (j <= i + 7)),
    "dense": MaskCase(attnjax.Dense(jnp.asarray(_DENSE)), lambda b, h, i, j: _DENSE[0, h, i, j]),
    "where": MaskCase(
        attnjax.Where(
            lambda b, h, q, k, limit: (k <= limit) & ((q + k + h) % 3 != 0), per_query=_LIMIT
        ),
        lambda b, h, i, j: (j <= _LIMIT[i]) & ((i + j + h) % 3 != 0),
    ),
    "full": MaskCase(attnjax.Full(), lambda b, h, i, j: (i >= 0) & (j >= 0)),
    "causal": MaskCase(attnjax.Causal(_OFFSET), lambda b, h, i, j: i + _OFFSET[b] >= j),
    "prefix": MaskCase(attnjax.Prefix(_SHORT), lambda b, h, i, j: j < _SHORT[b]),
    "segments": MaskCase(
        attnjax.Segments(_Q_IDS, _KV_IDS), lambda b, h, i, j: _Q_IDS[b, i] == _KV_IDS[b, j]
    ),
    "strided": MaskCase(attnjax.Strided(3), lambda b, h, i, j: (i - j) % 3 == 0),
    "ruled": MaskCase(
        attnjax.Where(
            lambda b, h, q, k: q - k >= 40,
            block_rule=lambda q_lo, q_hi, k_lo, k_hi: (q_hi - k_lo >= 40, q_lo - k_hi >= 40),
        ),
        lambda b, h, i, j: i - j >= 40,
    ),
    "either": MaskCase(
        (attnjax.Window(3, 3) | attnjax.Prefix(5)) & ~attnjax.Strided(2),
        lambda b, h, i, j: (((i - 3 <= j) & (j <= i + 3)) | (j < 5)) & ((i - j) % 2 != 0),
    ),
    "neither": MaskCase(
        ~(attnjax.Causal() | attnjax.Dense(_DENSE)),
        lambda b, h, i, j: (i < j) & ~_DENSE[0, h, i, j],
    ),
}

_SLOPES = np.array([0.02, 0.1, 0.3, 0.5], np.float32)
_BIAS = _rng().normal(size=(N, T, S)).astype(np.float32)
_TABLE = _rng().normal(size=(N, 2 * 12 + 1)).astype(np.float32)
_GATED = np.where(_rng().random((1, 1, T, S)) < 0.5, -np.inf, 0).astype(np.float32)
_GATED[:, :, 11] = -np.inf


def _relative(s: np.ndarray, b: Any, h: Any, i: Any, j: Any) -> np.ndarray:
    return s + _TABLE[h, np.clip(j - i, -12, 12) + 12]


MODS: dict[str, ModCase] = {
    "alibi, soft_cap": ModCase(
        (attnjax.alibi(_SLOPES), attnjax.soft_cap(2.0)),
        (
            lambda s, b, h, i, j: s - _SLOPES[h] * abs(i - j),
            lambda s, b, h, i, j: 2 * np.tanh(s / 2),
        ),
    ),
    "plain": ModCase(
        lambda s, b, h, q, k: s * (1 + h) - jnp.cos(0.1 * (q - 2 * k)),
        (lambda s, b, h, i, j: s * (1 + h) - np.cos(0.1 * (i - 2 * j)),),
    ),
    "bias": ModCase(attnjax.bias(_BIAS), (lambda s, b, h, i, j: s + _BIAS,)),
    "relative": ModCase(attnjax.relative_bias(_TABLE), (_relative,)),
    # A row of nothing but minus infinity is empty, though the mask allows all of it.
    "minus infinity": ModCase(attnjax.bias(_GATED), (lambda s, b, h, i, j: s + _GATED,)),
}
