"""Maps of every mask, score_mod and kind of weights equal a dense computation in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from attnjax.focus import maps
from attnjax.focus.maps import readings
from tests.focus.maps import dense
from tests.focus.maps.cases import MASKS, MODS, B, H, N, S, T
from tests.focus.maps.checking import BLOCK, KEYS, QUERIES, TOLERANCE, arrays, check, dense_call

CAUSAL = attnjax.Causal()


@pytest.mark.first(2)
@pytest.mark.parametrize("name", MASKS)
def test_masks(name: str) -> None:
    case, a = MASKS[name], arrays(K=2)
    x, logsumexp, seen = dense_call(a, case.allowed)
    found = maps.weights(a["q"], a["k"], mask=case.mask, logsumexp=logsumexp)
    check(found, x, seen, a, every=False)


@pytest.mark.first(1)
@pytest.mark.parametrize("name", MASKS)
def test_every_map_in_one_pass(name: str) -> None:
    case, a = MASKS[name], arrays(K=N)
    x, logsumexp, seen = dense_call(a, case.allowed)
    found = maps.weights(a["q"], a["k"], mask=case.mask, logsumexp=logsumexp)
    check(found, x, seen, a, every=True)


@pytest.mark.first(1)
@pytest.mark.parametrize("name", MODS)
def test_score_mods_and_sinks_whose_logsumexp_is_computed(name: str) -> None:
    case, a, mask = MODS[name], arrays(K=1), MASKS["causal"]
    sinks = np.array([-1, 0, 1.5, -np.inf], np.float32)
    x, logsumexp, seen = dense_call(a, mask.allowed, case.plain, sinks)
    found = maps.weights(a["q"], a["k"], mask=mask.mask, score_mod=case.mods, sinks=sinks)
    np.testing.assert_allclose(found.logsumexp, logsumexp, **TOLERANCE)
    check(found, x, seen, a, every=False)


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "kind", ["both", "values", "projected values", "gradient", "positive gradient"]
)
def test_weights_by_values_and_gradients_with_nan_behind_the_mask(kind: str) -> None:
    a, case = arrays(K=2), MASKS["lengths"]
    x, logsumexp, seen = dense_call(a, case.allowed)
    v = np.repeat(a["v"].astype(np.float64), 2, axis=2)
    d_out, out = a["d_out"].astype(np.float64), a["out"].astype(np.float64)
    for b in range(B):
        for name in ("q", "d_out", "start"):
            a[name][b, ~seen[b, 0].any(1)] = np.nan
        for name in ("k", "v", "vectors"):
            a[name][b, ~seen[b, 0].any(0)] = np.nan
    found = maps.weights(a["q"], a["k"], mask=case.mask, logsumexp=logsumexp)
    if kind in ("values", "projected values", "both"):
        plain = kind == "values"
        found = maps.by_values(found, a["v"], None if plain else a["out"])
        long = v if plain else np.einsum("bsnd,ndo->bsno", v, out)
        x = x * np.moveaxis(np.linalg.norm(long, axis=-1), 2, 1)[:, :, None]
    if kind in ("gradient", "positive gradient", "both"):
        positive = kind == "positive gradient"
        found = maps.by_gradient(found, a["v"], a["d_out"], positive=positive)
        slopes = np.einsum("btnd,bsnd->bnts", d_out, v)
        x = x * (np.maximum(slopes, 0) if positive else slopes)
    check(found, x, seen, a, every=kind == "both")


@pytest.mark.first(1)
@pytest.mark.parametrize("K", [2, N])
def test_additive_attention(K: int) -> None:
    a, case, rng = arrays(K), MASKS["causal-segments"], np.random.default_rng(3)
    w, bias = (rng.normal(size=(N, H)).astype(np.float32) for _ in range(2))
    sinks = np.array([-1, 0, 1.5, 0.5], np.float32)
    hidden = np.moveaxis(a["q"], 2, 1)[:, :, :, None].astype(np.float64)
    hidden = hidden + np.moveaxis(np.repeat(a["k"], N // K, axis=2), 2, 1)[:, :, None]
    scores = np.einsum("bntsh,nh->bnts", np.tanh(hidden + bias[:, None, None]), w)
    x, logsumexp = dense.softmax(scores, case.allowed, MODS["relative"].plain, sinks)
    found = maps.additive_weights(
        a["q"], a["k"], w, bias=bias, mask=case.mask, score_mod=MODS["relative"].mods, sinks=sinks
    )
    np.testing.assert_allclose(found.logsumexp, logsumexp, **TOLERANCE)
    seen = np.broadcast_to(case.allowed(*dense.indices(scores.shape)), scores.shape)
    check(found, x, seen, a, every=False)


def test_nan_reaches_only_what_sees_it() -> None:
    a, mask = arrays(K=2), attnjax.Window(20, 9)
    x, _, seen = dense_call(a, lambda b, h, i, j: (i - 20 <= j) & (j <= i + 9))
    a["k"][0, 5, 1], a["q"][0, 200, 0] = np.nan, np.inf
    spoiled = np.zeros(seen.shape, bool)
    # Key head 1 belongs to query heads 2 and 3. What sees it can't have a logsumexp.
    spoiled[0, 2:] = seen[0, 2:, :, 5:6]
    spoiled[0, 0, 200] = True
    x = np.where(spoiled & seen, np.nan, x)
    found = maps.weights(a["q"], a["k"], mask=mask)
    pooled, received, gathered, edges = maps.look(
        found,
        maps.Pooled(T, S),
        maps.Received(),
        maps.Gathered(jnp.ones((B, S, 1))),
        maps.TopEdges(3),
    )
    np.testing.assert_allclose(pooled, x, **TOLERANCE)
    np.testing.assert_allclose(received, x.sum(2), **TOLERANCE)
    np.testing.assert_allclose(gathered[..., 0], x.sum(3), **TOLERANCE)
    np.testing.assert_allclose(maps.rows(found, np.arange(T)), x, **TOLERANCE)
    bad = np.isnan(x).any(-1)
    np.testing.assert_array_equal(np.isnan(edges.weights).all(-1), bad)
    np.testing.assert_array_equal(np.isnan(edges.weights).any(-1), bad)
    np.testing.assert_array_equal(np.asarray(edges.keys)[bad], -1)
    good = [np.where(bad[..., None], fill, e) for fill, e in zip((0, -1), edges, strict=True)]
    dense.check_edges(good, np.nan_to_num(x), seen & ~bad[..., None], TOLERANCE)


@pytest.mark.slow
def test_a_key_whose_value_is_nan_weighs_nan_where_it_is_seen() -> None:
    a, mask = arrays(K=2), attnjax.Causal()
    x, logsumexp, seen = dense_call(a, lambda b, h, i, j: i >= j)
    a["v"][1, 7, 0, 2] = np.nan
    found = maps.weights(a["q"], a["k"], mask=mask, logsumexp=logsumexp)
    norms = np.linalg.norm(np.repeat(a["v"], 2, axis=2).astype(np.float64), axis=-1)
    expected = np.where(seen, x * np.moveaxis(norms, 2, 1)[:, :, None], 0)
    assert np.isnan(expected[1, :2, 7:, 7]).all() and np.isnan(expected).sum() == 2 * (T - 7)
    (received,) = maps.look(maps.by_values(found, a["v"]), maps.Received())
    np.testing.assert_allclose(received, expected.sum(2), **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_inputs(dtype: jnp.dtype) -> None:
    a, case = arrays(K=2), MASKS["causal"]
    rounded = a | {x: np.asarray(jnp.asarray(a[x], dtype), np.float32) for x in "qk"}
    x, _, seen = dense_call(rounded, case.allowed)
    q, k = (jnp.asarray(a[x], dtype) for x in "qk")
    check(maps.weights(q, k, mask=case.mask), x, seen, a, every=False)


@pytest.mark.slow
def test_tiles_are_shrunk_where_rows_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "_KEPT_BYTES", 1 << 18)
    a, case = arrays(K=2), MASKS["either"]
    x, logsumexp, seen = dense_call(a, case.allowed)
    found = maps.weights(a["q"], a["k"], mask=case.mask, logsumexp=logsumexp)
    few = dataclasses.replace(found, block=BLOCK)
    assert readings.choose_tiling(few, [maps.TopEdges(9)]).block_q < BLOCK
    assert readings.choose_tiling(few, [maps.Received()]).block_q == BLOCK
    check(found, x, seen, a, every=False)


@pytest.mark.slow
def test_under_vmap() -> None:
    a = arrays(K=2)
    x, _, _ = dense_call(a, lambda b, h, i, j: i >= j)

    def one(q: jax.Array, k: jax.Array) -> jax.Array:
        (received,) = maps.look(maps.weights(q[None], k[None], mask=CAUSAL), maps.Received())
        return received[0]

    np.testing.assert_allclose(jax.vmap(one)(a["q"], a["k"]), x.sum(2), **TOLERANCE)


@pytest.mark.slow
def test_gradients_stop() -> None:
    a = arrays(K=2)

    def total(q: jax.Array, k: jax.Array, v: jax.Array, d_out: jax.Array) -> jax.Array:
        found = maps.by_gradient(maps.by_values(maps.weights(q, k, mask=CAUSAL), v), v, d_out)
        start, vectors = d_out[:, :, 0], v[:, :, 0]
        sums = maps.look(found, maps.Received(start), maps.Gathered(vectors))
        lines = maps.rows(found, QUERIES), maps.columns(found, KEYS)
        return sum(jnp.sum(x) for x in (*sums, *lines))

    slopes = jax.grad(total, argnums=(0, 1, 2, 3))(a["q"], a["k"], a["v"], a["d_out"])
    for slope in slopes:
        np.testing.assert_array_equal(slope, 0)
