"""Dropout: which weights it keeps, and that nothing but the key and the position decides it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from attnjax.dropout import _threefry, keep
from attnjax.typing import Index

SHAPE = (3, 4, 29, 31)


def index(*shape: int) -> Index:
    return Index(*jnp.meshgrid(*map(jnp.arange, shape), indexing="ij", sparse=True))


def pattern(key: int = 0, rate: float = 0.3, shared: str = "") -> np.ndarray:
    words = attnjax.Dropout(rate, jax.random.key(key)).words()
    return np.asarray(keep(words, rate, index(*SHAPE), shared))


def test_the_bits_are_those_of_threefry() -> None:
    # Known answers of Random123 for Threefry-2x32 with 13 rounds: counter, key, result.
    for counter, key, want in (
        ((0, 0), (0, 0), (0x9D1C5EC6, 0x8BD50731)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0xFD36D048, 0x2D17272C)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xBA3E4725, 0xF27D669E)),
    ):
        found = _threefry(*(jnp.uint32(x) for x in (*key, *counter)))
        assert tuple(int(x) for x in found) == want


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
def test_the_rate_is_kept_along_every_axis(rate: float) -> None:
    kept = pattern(rate=rate)
    for axis, size in enumerate(SHAPE):
        others = tuple(a for a in range(4) if a != axis)
        n = kept.size // size
        deviation = np.abs(kept.mean(others) - (1 - rate)) / np.sqrt(rate * (1 - rate) / n)
        np.testing.assert_array_less(deviation, 4.5)


def test_neighbours_are_independent() -> None:
    kept = pattern(rate=0.5) * 2.0 - 1
    for axis in range(4):
        a = np.delete(kept, 0, axis)
        b = np.delete(kept, -1, axis)
        assert abs((a * b).mean()) * np.sqrt(a.size) < 4.5


def test_another_key_gives_another_pattern() -> None:
    assert abs(np.mean(pattern(0, 0.5) == pattern(1, 0.5)) - 0.5) < 0.03


def test_the_pattern_depends_on_positions_alone() -> None:
    words = attnjax.Dropout(0.3, jax.random.key(0)).words()
    tile = Index(jnp.array(2), jnp.array(1), jnp.arange(7, 12)[:, None], jnp.arange(20, 31))
    found = jax.jit(lambda i: keep(words, 0.3, i, ""))(tile)
    np.testing.assert_array_equal(found, pattern()[2, 1, 7:12, 20:31])


@pytest.mark.parametrize("shared", ["B", "BN", "T", "S", "BNT"])
def test_shared_axes_share_one_fate(shared: str) -> None:
    kept = pattern(shared=shared)
    assert kept.shape == tuple(
        1 if letter in shared else n for letter, n in zip("BNTS", SHAPE, strict=True)
    )
    deviation = abs(kept.mean() - 0.7) / np.sqrt(0.21 / kept.size)
    assert deviation < 4.5


def test_raw_and_typed_keys_agree() -> None:
    key = jax.random.key(7)
    typed, raw = attnjax.Dropout(0.1, key), attnjax.Dropout(0.1, jax.random.key_data(key))
    np.testing.assert_array_equal(typed.words(), raw.words())


@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
def test_what_is_kept_is_scaled_and_statistics_ignore_dropout(implementation: str) -> None:
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(2, 5, 3, 4)), jnp.float32) for _ in range(2))
    v = jnp.broadcast_to(jnp.eye(5)[None, :, None], (2, 5, 3, 5))
    call = {"implementation": implementation, "stats": True}
    weights, stats = attnjax.attention(q, k, v, **call)
    dropout = attnjax.Dropout(0.4, jax.random.key(3))
    dropped, dropped_stats = attnjax.attention(q, k, v, dropout=dropout, **call)
    kept = jnp.swapaxes(keep(dropout.words(), 0.4, index(2, 3, 5, 5), ""), 1, 2)
    assert 0.3 < kept.mean() < 0.9
    np.testing.assert_allclose(dropped, jnp.where(kept, weights / 0.6, 0), rtol=2e-5, atol=1e-7)
    for found, want in zip(dropped_stats, stats, strict=True):
        np.testing.assert_array_equal(found, want)


def test_rate_zero_needs_no_key() -> None:
    x = jnp.ones((1, 3, 1, 2))
    np.testing.assert_array_equal(
        attnjax.attention(x, x, x, dropout=attnjax.Dropout(0, None)), attnjax.attention(x, x, x)
    )


def test_the_key_is_an_argument_like_any_other() -> None:
    x = jnp.ones((1, 9, 1, 2))
    keys = jax.random.split(jax.random.key(0), 3)

    def call(key: jax.Array) -> jax.Array:
        return attnjax.attention(x, x, x, dropout=attnjax.Dropout(0.5, key))

    mapped = jax.vmap(call)(keys)
    for key, out in zip(keys, mapped, strict=True):
        np.testing.assert_allclose(call(key), out, rtol=1e-6)
    assert not np.array_equal(mapped[0], mapped[1])
