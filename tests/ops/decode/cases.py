"""Sequences, the full pass over them, and caches of them, for every implementation of decoding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import attnjax

B, K, G, H, D = 2, 3, 2, 5, 7
N = K * G
CAPACITY = 41
LENGTHS = np.array([37, 23])


def arrays(dtype: Any = jnp.float32, seed: int = 0) -> list[jax.Array]:
    """Queries, keys and values of whole sequences."""
    rng = np.random.default_rng(seed)
    return [
        jnp.asarray(rng.normal(size=(B, CAPACITY, n, width)), dtype)
        for n, width in ((N, H), (K, H), (K, D))
    ]


def last(x: jax.Array, T: int, axis: int) -> jax.Array:
    """The last T positions of each example."""
    rows = LENGTHS[:, None] - T + np.arange(T)
    shape = [B if a == 0 else T if a == axis else 1 for a in range(x.ndim)]
    return jnp.take_along_axis(x, rows.reshape(shape), axis)


def full_pass(q: jax.Array, k: jax.Array, v: jax.Array, T: int, **options: Any) -> tuple:
    mask = options.pop("mask", attnjax.Causal())
    held = attnjax.Lengths(None, jnp.asarray(LENGTHS))
    out, stats = attnjax.attention(
        q, k, v, mask=mask & held, stats=True, implementation="reference", **options
    )
    return last(out, T, 1), *(last(x, T, 2) for x in stats)


def assert_equal(got: tuple, want: tuple, tolerance: float = 2e-5) -> None:
    out, stats = got
    for x, y in zip((out, *stats), want, strict=True):
        x, y = (np.asarray(a, np.float32) for a in (x, y))
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def spoil_beyond(cache: jax.Array, value: float = np.nan) -> jax.Array:
    """Fills the slots that hold nothing."""
    beyond = np.arange(CAPACITY) >= LENGTHS[:, None]
    return jnp.where(beyond[..., None, None], jnp.asarray(value, cache.dtype), cache)


def paged(*caches: jax.Array, size: int = 6) -> tuple[attnjax.Paged, list[jax.Array]]:
    """The same caches in pages of random order, some of them nobody's."""
    pages = -(-CAPACITY // size)
    order = np.random.default_rng(3).permutation(B * pages + 4)[: B * pages].reshape(B, pages)
    layout = attnjax.Paged(jnp.asarray(order, jnp.int32))
    stored = []
    for cache in caches:
        padded = np.full((B, pages * size, *cache.shape[2:]), np.nan, np.float32)
        padded[:, :CAPACITY] = cache
        rest = np.full((B * pages + 4, size, *cache.shape[2:]), np.nan, np.float32)
        rest[order] = padded.reshape(B, pages, size, *cache.shape[2:])
        stored.append(jnp.asarray(rest, cache.dtype))
    return layout, stored


OPTIONS: dict[str, dict[str, Any]] = {
    "causal": {},
    "window": {"mask": attnjax.Causal() & attnjax.Window(9, 0)},
    "prefix and strided": {
        "mask": attnjax.Causal() & (attnjax.Prefix(4) | attnjax.Strided(3)),
    },
    "per key": {
        "mask": attnjax.Causal()
        & attnjax.Segments(jnp.asarray(np.arange(CAPACITY) // 17)[None].repeat(B, 0)),
    },
    "alibi and soft cap": {"score_mod": (attnjax.alibi(N), attnjax.soft_cap(3.0))},
    "relative bias": {
        "score_mod": attnjax.relative_bias(
            jnp.asarray(np.random.default_rng(1).normal(size=(N, 11)), jnp.float32)
        )
    },
    "dense bias": {
        "score_mod": attnjax.bias(
            jnp.asarray(np.random.default_rng(1).normal(size=(CAPACITY, CAPACITY)), jnp.float32)
        )
    },
    "sinks and scale": {"sinks": jnp.linspace(-2, 2, N), "scale": 0.3},
    "nothing to see": {"mask": attnjax.Window(3, -1) & ~attnjax.Strided(1)},
}
