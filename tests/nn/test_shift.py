"""Masks and score_mods for queries that start later: equal to the whole sequence's, shifted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from attnjax import Causal, Dense, Full, Lengths, Prefix, Segments, Strided, Where, Window
from attnjax.masks import EMPTY, FULL
from attnjax.nn import shift_mask, shift_score_mod

B, N, T, S, H = 2, 3, 5, 13, 7
IDS = np.arange(S) // 4
BITS = np.random.default_rng(0).random((B, N, S, S)) < 0.5
MASKS = {
    "full": Full(),
    "causal": Causal(),
    "causal_offset": Causal(jnp.asarray([1, -2])),
    "window": Window(3, 1),
    "half_open": Window(None, jnp.asarray([0, 2])),
    "prefix": Prefix(jnp.asarray([4, 9])),
    "lengths": Lengths(6, 11),
    "strided": Strided(3),
    "where": Where(lambda b, h, q, k: (q + b) * (h + 1) % 5 >= k % 3),
    "block_rule": Where(
        lambda b, h, q, k: q >= k + 2,
        block_rule=lambda q_lo, q_hi, k_lo, k_hi: (q_hi >= k_lo + 2, q_lo >= k_hi + 2),
    ),
    "composed": ((Causal() & Window(4, 0)) | Prefix(2)) & ~Strided(3),
}
OFFSETS = {"scalar": jnp.asarray(4), "per_example": jnp.asarray([7, 2])}


def _index(T, S):
    return (
        np.arange(B).reshape(-1, 1, 1, 1),
        np.arange(N).reshape(1, -1, 1, 1),
        np.arange(T).reshape(1, 1, -1, 1),
        np.arange(S).reshape(1, 1, 1, -1),
    )


def _positions(offset):
    """Positions of the T queries, [B|1, 1, T, 1]."""
    return np.arange(T).reshape(1, 1, -1, 1) + np.asarray(offset).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("offset", OFFSETS.values(), ids=OFFSETS)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_shifted_mask_sees_positions_of_the_whole(mask, offset):
    b, h, q, k = _index(T, S)
    want = np.broadcast_to(mask.at(b, h, _positions(offset), k), (B, N, T, S))
    shifted = shift_mask(mask, offset)
    np.testing.assert_array_equal(np.broadcast_to(shifted.at(b, h, q, k), want.shape), want)
    kinds = np.broadcast_to(shifted.blocks(T, S, 2, 3), (B, N, 3, 5))
    for i, j in np.ndindex(3, 5):
        tile = want[:, :, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3]
        assert not np.any(tile[kinds[:, :, i, j] == EMPTY])
        assert np.all(tile[kinds[:, :, i, j] == FULL])


def test_shifted_blocks_are_skipped():
    shifted = shift_mask(Where(**_rule()), jnp.asarray(8))
    assert np.asarray(shifted.blocks(4, 16, 4, 4)).ravel().tolist() == [EMPTY, EMPTY, FULL, EMPTY]


def _rule():
    def same_block(b, h, q, k):
        return q // 4 == k // 4

    def rule(q_lo, q_hi, k_lo, k_hi):
        aligned = (q_lo // 4 == q_hi // 4) & (k_lo // 4 == k_hi // 4)
        touching = (q_lo // 4 <= k_hi // 4) & (k_lo // 4 <= q_hi // 4)
        return touching, aligned & touching

    return {"fn": same_block, "block_rule": rule}


def test_arrays_belong_to_the_queries_at_hand():
    offset = jnp.asarray(4)
    dense = Dense(jnp.asarray(BITS[:, :, 4 : 4 + T]))
    segments = Segments(jnp.asarray(IDS[4 : 4 + T]), jnp.asarray(IDS))
    b, h, q, k = _index(T, S)
    np.testing.assert_array_equal(shift_mask(dense, offset).at(b, h, q, k), BITS[:, :, 4 : 4 + T])
    np.testing.assert_array_equal(
        shift_mask(segments, offset).at(0, 0, q, k)[0, 0], IDS[4 : 4 + T, None] == IDS
    )
    np.testing.assert_array_equal(shift_mask(None, offset).at(b, h, q, k), True)


def test_shifted_mask_is_a_pytree():
    traced = jax.jit(lambda o: shift_mask(MASKS["composed"], o).at(0, 0, jnp.arange(T), 3))
    want = MASKS["composed"].at(0, 0, jnp.arange(T) + 6, 3)
    np.testing.assert_array_equal(traced(jnp.asarray(6)), want)


def _mods(table, slopes, noise):
    return {
        "alibi": attnjax.alibi(slopes),
        "clipped": attnjax.relative_bias(table),
        "t5": attnjax.relative_bias(table, kind="t5", bidirectional=False, max_distance=9),
        "soft_cap": attnjax.soft_cap(2.0),
        "declared": attnjax.score_mod(
            lambda s, b, h, q, k, per_head, per_key: s * per_key + per_head * q,
            per_head=slopes,
            per_key=noise,
        ),
        "plain": lambda s, b, h, q, k: s + slopes[h] * jnp.cos(q * (b + 1.0)) * k,
    }


@pytest.mark.first(3)
@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
@pytest.mark.parametrize("offset", OFFSETS.values(), ids=OFFSETS)
@pytest.mark.parametrize("name", ["alibi", "clipped", "t5", "soft_cap", "declared", "plain"])
def test_shifted_score_mod_equals_rows_of_the_whole(name, offset, implementation):
    keys = iter(jax.random.split(jax.random.key(0), 9))
    q = jax.random.normal(next(keys), (B, S, N, H))
    k, v = (jax.random.normal(next(keys), (B, S, N, H)) for _ in range(2))
    weight = jax.random.normal(next(keys), (B, T, N, H))
    arrays = tuple(jax.random.normal(next(keys), shape) for shape in ((N, 5), (N,), (B, S)))
    rows = np.asarray(_positions(offset))[:, 0, :, 0] + np.zeros((B, 1), int)
    pick = np.arange(B)[:, None], rows

    def part(arrays):
        mod = shift_score_mod(_mods(*arrays)[name], offset)
        out = attnjax.attention(q[pick], k, v, score_mod=mod, implementation=implementation)
        return jnp.sum(weight * out), out

    def whole(arrays):
        mod = _mods(*arrays)[name]
        out = attnjax.attention(q, k, v, score_mod=mod, implementation="reference")[pick]
        return jnp.sum(weight * out), out

    (_, got), got_grads = jax.jit(jax.value_and_grad(part, has_aux=True))(arrays)
    (_, want), want_grads = jax.jit(jax.value_and_grad(whole, has_aux=True))(arrays)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    for a, b in zip(got_grads, want_grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["alibi", "clipped", "t5"])
@pytest.mark.parametrize("offset", OFFSETS.values(), ids=OFFSETS)
def test_shifted_score_mod_called_elementwise(name, offset):
    table = jnp.arange(15.0).reshape(N, 5)
    mod = _mods(table, jnp.arange(1.0, 4.0), jnp.ones(S))[name]
    b, h, q, k = (jnp.asarray(i) for i in _index(T, S))
    zero = jnp.zeros((B, N, T, S))
    got = shift_score_mod(mod, offset)(zero, b, h, q, k)
    np.testing.assert_allclose(got, mod(zero, b, h, jnp.asarray(_positions(offset)), k))
