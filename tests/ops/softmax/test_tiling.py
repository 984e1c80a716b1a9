"""The tiles that blockwise attention chooses, and a call large enough for every kind of them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from attnjax.ops.softmax import blockwise
from attnjax.ops.softmax.tiling import make_tiling
from attnjax.validate import make_problem


def tiling(B: int, T: int, S: int, N: int, K: int):
    q, k = jax.ShapeDtypeStruct((B, T, N, 8), jnp.float32), jnp.zeros((B, S, K, 8))
    unset = dict.fromkeys(("mask", "score_mod", "scale", "sinks", "dropout", "precision"), None)
    return make_tiling(make_problem(jnp.zeros(q.shape), k, k, **unset, stats=False))


@pytest.mark.parametrize(("N", "K"), [(1, 1), (7, 7), (11, 1), (12, 4), (16, 2), (22, 11), (32, 8)])
def test_tiles_divide_the_heads(N: int, K: int) -> None:
    for B, T in itertools.product((1, 6, 37), (5, 130, 520)):
        t = tiling(B, T, T, N, K)
        groups = N // K
        assert B % t.block_b == 0
        assert N % (t.block_n * t.streams) == 0
        assert t.block_n % groups == 0 or groups % t.block_n == 0
        assert t.heads[0] * t.heads[1] == t.block_n


def test_long_sequences_are_cut_to_the_cache() -> None:
    t = tiling(2, 1100, 1100, 32, 8)
    assert (t.block_b, t.block_n, t.streams) == (1, 2, 4)
    # Heads beyond those side by side have their turn in the loop.
    assert t.counts == (2, 4, 3, 3)


def test_short_sequences_share_a_tile_and_tiny_calls_are_one() -> None:
    assert tiling(32, 128, 128, 8, 8).block_b == 32
    assert tiling(256, 128, 128, 8, 8).block_b == 32
    t = tiling(4, 16, 16, 8, 8)
    assert (t.block_b, t.block_n, t.streams) == (4, 8, 1)


@pytest.mark.first(1)
@pytest.mark.parametrize("stats", [False, True])
def test_a_call_with_tiles_of_every_kind(stats: bool) -> None:
    # Batch tiles of two whose masks differ, two turns over the heads, three tiles side by side.
    B, T, N, K, H = 4, 512, 12, 6, 3
    rng = np.random.default_rng(0)
    q, k, v, cotangent = (
        jnp.asarray(rng.normal(size=(B, T, n, H)), jnp.float32) for n in (N, K, K, N)
    )
    ids = jnp.asarray(np.sort(rng.integers(0, 5, (B, T)), axis=1), jnp.int32)
    slopes = jnp.asarray(rng.uniform(0.001, 0.1, N), jnp.float32)
    t = tiling(B, T, T, N, K)
    assert 1 < t.block_b < B
    assert t.streams > 1

    def run(implementation: str):
        def loss(q, k, v, slopes):
            result = attnjax.attention(
                q,
                k,
                v,
                mask=attnjax.Causal() & attnjax.Segments(ids),
                score_mod=attnjax.alibi(slopes),
                stats=stats,
                implementation=implementation,
            )
            out = result[0] if stats else result
            extra = jnp.sum(result[1].entropy) if stats else 0
            return jnp.vdot(out, cotangent) + extra, result

        grads, result = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(q, k, v, slopes)
        return jax.tree.leaves((grads, result))

    for found, wanted in zip(run("blockwise"), run("reference"), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-4 * float(abs(wanted).max()))


@pytest.mark.parametrize("size", [1.0, 300.0])
def test_statistics_of_small_and_of_large_scores(size: float) -> None:
    # Whole blocks of plain scores: small ones take a shorter way to the entropy.
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 1024, 2, 8)), jnp.float32) for _ in range(3))
    call = jax.jit(attnjax.attention, static_argnames=("stats", "implementation"))
    mask = attnjax.Causal() | attnjax.Prefix(512)
    _, found = call(size * q, k, v, mask=mask, stats=True, implementation="blockwise")
    _, wanted = call(size * q, k, v, mask=mask, stats=True, implementation="reference")
    for name, x, y in zip(found._fields, found, wanted, strict=True):
        # Large scores have larger errors of rounding themselves.
        atol = 2e-5 * max(1.0, float(abs(wanted.max_logit).max()) / 10)
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=atol, err_msg=name)
    assert (found.entropy > -1e-5).all()


@pytest.mark.parametrize("mask", [None, attnjax.Causal()])
def test_small_distances_keep_their_digits(mask: attnjax.Mask | None) -> None:
    # Blocks of 512 positions in float32, and heads that look at their neighbours only.
    T, N = 1543, 2
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(rng.normal(size=(1, T, N, 3)), jnp.float32) for _ in range(3))
    slopes = jnp.asarray([1.0, 5.0])

    def distance(implementation: str) -> np.ndarray:
        _, stats = attnjax.attention(
            q,
            k,
            v,
            mask=mask,
            score_mod=attnjax.alibi(slopes),
            stats=True,
            implementation=implementation,
        )
        return np.asarray(stats.distance)

    np.testing.assert_allclose(distance("blockwise"), distance("reference"), rtol=2e-5)


@pytest.mark.slow
def test_cotangents_of_tiles_are_added_before_they_are_rounded() -> None:
    # One key takes all weight, so the slope's gradient is the sum of `-cotangent * distance`.
    T = 64
    q, k, v = jnp.ones((1, T, 1, 2)), jnp.ones((1, 1, 1, 2)), jnp.ones((1, 1, 1, 2))
    # Large sums in each tile, of which little is left.
    pulled, distance = 3 * np.random.default_rng(3).normal(size=T), np.arange(T)
    pulled += (1e-4 - pulled @ distance / (distance @ distance)) * distance
    unset = dict.fromkeys(("mask", "scale", "sinks", "dropout", "precision"), None)

    def logsumexp(slopes: jax.Array) -> jax.Array:
        mod = attnjax.alibi(slopes)
        problem = make_problem(q, k, v, **unset, score_mod=mod, stats=True)
        stats = blockwise.attend(problem, block_q=4, block_k=3)[1]
        return jnp.vdot(stats.logsumexp.reshape(-1), jnp.asarray(pulled, jnp.float32))

    gradient = jax.grad(logsumexp)(jnp.ones(1, jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16
    want = -pulled @ distance
    assert abs(float(gradient[0]) - want) <= 2**-8 * abs(want)
