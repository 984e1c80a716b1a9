"""Decoding against the last rows of the full pass, whatever the layout of the cache."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from tests.ops.decode.cases import (
    CAPACITY,
    LENGTHS,
    OPTIONS,
    B,
    D,
    H,
    K,
    N,
    arrays,
    assert_equal,
    full_pass,
    last,
    paged,
    spoil_beyond,
)


@pytest.mark.first(6)
@pytest.mark.parametrize("T", [2, 19])  # few rows, and more than the products with zeros serve
@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_equals_the_full_pass(name: str, T: int) -> None:
    q, k, v = arrays()
    want = full_pass(q, k, v, T, **OPTIONS[name])
    run = jax.jit(lambda q, k, v, n: attnjax.decode(q, k, v, length=n, stats=True, **OPTIONS[name]))
    assert_equal(run(last(q, T, 1), spoil_beyond(k, 50.0), spoil_beyond(v, 50.0), LENGTHS), want)


@pytest.mark.parametrize("T", [1, 3])
def test_arrays_along_queries_may_belong_to_those_at_hand(T: int) -> None:
    q, k, v = arrays()
    rng = np.random.default_rng(5)
    seen = jnp.asarray(rng.random((B, N, CAPACITY, CAPACITY)) < 0.6)
    ids = jnp.asarray(rng.integers(0, 3, (B, CAPACITY)))
    added, per_query = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((N, CAPACITY, CAPACITY), (B, CAPACITY))
    )
    rows = LENGTHS[:, None] - T + np.arange(T)

    def options(here: bool) -> dict[str, Any]:
        dense = last(seen, T, 2) if here else seen
        own = last(ids, T, 1) if here else ids
        query = last(per_query, T, 1) if here else per_query
        bias = jnp.moveaxis(added[:, rows], 1, 0) if here else added
        mods = (
            attnjax.bias(bias),
            attnjax.score_mod(lambda s, b, h, i, j, x: s * x + j, per_query=query),
        )
        return {
            "mask": attnjax.Causal() & (dense | attnjax.Segments(own, ids)),
            "score_mod": mods,
        }

    run = jax.jit(lambda q, k, v, n: attnjax.decode(q, k, v, length=n, stats=True, **options(True)))
    assert_equal(run(last(q, T, 1), k, v, LENGTHS), full_pass(q, k, v, T, **options(False)), 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("T", [2, pytest.param(19, marks=pytest.mark.slow)])
def test_gradients_equal_those_of_the_full_pass(T: int) -> None:
    rng = np.random.default_rng(7)
    shapes = ((B, T, N, D), (B, N, T), (B, N, T), (N,), (N, 11), (B, CAPACITY))
    weight, *of_stats, sinks, table, per_key = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes
    )
    mask = attnjax.Causal() & ~attnjax.Prefix(4)

    def options(arrays: dict[str, jax.Array]) -> dict[str, Any]:
        slope = arrays["slope"]
        mods = (
            attnjax.relative_bias(arrays["table"]),
            lambda s, b, h, i, j: jnp.tanh(s) * slope[h] + arrays["per_key"][b, j],
        )
        return {"score_mod": mods, "sinks": arrays["sinks"], "scale": arrays["scale"], "mask": mask}

    def total(out: jax.Array, logsumexp: jax.Array, entropy: jax.Array) -> jax.Array:
        stats = sum(jnp.sum(w * x) for w, x in zip(of_stats, (logsumexp, entropy), strict=True))
        return jnp.sum(weight * out) + stats

    def stepwise(arrays: dict[str, jax.Array]) -> jax.Array:
        # What no row may see is spoilt: hidden keys, and slots that hold nothing.
        k, v = (spoil_beyond(arrays[x]).at[:, 2].set(jnp.inf) for x in "kv")
        out, stats = attnjax.decode(
            last(arrays["q"], T, 1), k, v, length=LENGTHS, stats=True, **options(arrays)
        )
        return total(out, stats.logsumexp, stats.entropy)

    def full(arrays: dict[str, jax.Array]) -> jax.Array:
        out, logsumexp, _, entropy, *_ = full_pass(
            *(arrays[x] for x in "qkv"), T, **options(arrays)
        )
        return total(out, logsumexp, entropy)

    given = dict(zip("qkv", arrays(), strict=True)) | {
        "sinks": sinks,
        "table": table,
        "per_key": per_key,
        "scale": jnp.float32(0.4),
        "slope": jnp.linspace(0.5, 2, N),
    }
    got, want = (jax.jit(jax.value_and_grad(f))(given) for f in (stepwise, full))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-4)
    for name in given:
        np.testing.assert_allclose(got[1][name], want[1][name], rtol=1e-3, atol=1e-4, err_msg=name)
    _, change = jax.jvp(stepwise, (given,), (given,))
    slope = sum(jnp.vdot(got[1][name], given[name]) for name in given)
    np.testing.assert_allclose(change, slope, rtol=1e-3)


def test_functions_of_the_caller_are_never_stale() -> None:
    q, k, v = arrays()
    outs = []
    for factor in (1.0, 3.0):

        def mod(score: jax.Array, *index: jax.Array, factor: float = factor) -> jax.Array:
            return score * factor

        got = attnjax.decode(q[:, :1], k, v, length=7, score_mod=mod)
        want = attnjax.decode(q[:, :1], k, v, length=7, scale=factor / np.sqrt(H))
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
        outs.append(got)
    assert not np.allclose(*outs, atol=1e-3)


def test_every_key_but_a_ragged_rest_is_summed_in_parts() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 331, n, H)), jnp.float32) for n in (N, K, K))
    want = attnjax.attention(q, k, v, mask=attnjax.Causal(), implementation="reference")
    out = attnjax.decode(q[:, -2:], k, v, length=331)
    np.testing.assert_allclose(out, want[:, -2:], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 2e-2), (jnp.float16, 2e-3)])
@pytest.mark.parametrize("T", [1, 19])
def test_sixteen_bits(dtype: Any, tolerance: float, T: int) -> None:
    q, k, v = arrays(dtype)
    want = full_pass(*(x.astype(jnp.float32) for x in (q, k, v)), T)
    got = attnjax.decode(last(q, T, 1), k, v, length=LENGTHS, stats=True)
    assert got[0].dtype == dtype
    assert_equal(got, want, tolerance)


@pytest.mark.parametrize("T", [1, 3])
def test_a_ring_holds_the_window(T: int) -> None:
    q, k, v = arrays()
    slots, window = 11, 11 - T
    mask = attnjax.Causal() & attnjax.Window(window, 0)
    rings = []
    for cache in (k, v):
        ring = np.full((B, slots, *cache.shape[2:]), np.nan, np.float32)
        for b in range(B):
            for p in range(LENGTHS[b]):
                ring[b, p % slots] = cache[b, p]
        rings.append(jnp.asarray(ring))
    run = jax.jit(
        lambda q, k, v, n: attnjax.decode(
            q, k, v, length=n, layout=attnjax.Ring(), mask=mask, stats=True
        )
    )
    assert_equal(run(last(q, T, 1), *rings, LENGTHS), full_pass(q, k, v, T, mask=mask))
    # Before the ring is full for the first time, its other slots hold nothing.
    early = attnjax.decode(
        q[:, 5 - T : 5],
        spoil_beyond(k)[:, :slots].at[:, 5:].set(jnp.nan),
        spoil_beyond(v)[:, :slots].at[:, 5:].set(jnp.nan),
        length=5,
        layout=attnjax.Ring(),
        mask=mask,
    )
    want = attnjax.attention(q[:, :5], k[:, :5], v[:, :5], mask=mask)
    np.testing.assert_allclose(early, want[:, -T:], rtol=2e-5, atol=2e-5)


def test_a_ring_knows_distances_and_the_queries_at_hand() -> None:
    q, k, v = arrays()
    T, slots = 3, 11
    mask = attnjax.Causal() & attnjax.Window(slots - T, 0)
    table = jnp.asarray(np.random.default_rng(1).normal(size=(N, 17)), jnp.float32)
    rows = attnjax.Dense(jnp.asarray([True, False, True])[:, None])
    ring = [
        jnp.stack(
            [
                x[b, n - slots : n][np.argsort(np.arange(n - slots, n) % slots)]
                for b, n in enumerate(LENGTHS)
            ]
        )
        for x in (k, v)
    ]
    out, stats = attnjax.decode(
        last(q, T, 1),
        *ring,
        length=LENGTHS,
        layout=attnjax.Ring(),
        mask=mask & rows,
        score_mod=attnjax.relative_bias(table),
        stats=True,
    )
    want = full_pass(q, k, v, T, mask=mask, score_mod=attnjax.relative_bias(table))
    seen = np.array([0, 2])
    assert_equal(
        (out[:, seen], [x[..., seen] for x in stats]),
        (want[0][:, seen], *(x[..., seen] for x in want[1:])),
    )
    np.testing.assert_array_equal(out[:, 1], 0)


def test_a_ring_refuses_what_it_no_longer_holds() -> None:
    q, k, v = arrays()
    for mask in (None, attnjax.Causal() & attnjax.Window(11, 0), attnjax.Window(None, 0)):
        with pytest.raises(ValueError, match="reaches back at most 10 positions"):
            attnjax.decode(
                q[:, :1], k[:, :11], v[:, :11], length=30, layout=attnjax.Ring(), mask=mask
            )
    with pytest.raises(ValueError, match=r"Segments.*no array along positions"):
        attnjax.decode(
            q[:, :1],
            k[:, :11],
            v[:, :11],
            length=30,
            layout=attnjax.Ring(),
            mask=attnjax.Window(5, 0) & attnjax.Segments(jnp.zeros((B, 11), jnp.int32)),
        )


@pytest.mark.parametrize("T", [1, 19])
def test_pages_in_any_order(T: int) -> None:
    q, k, v = arrays()
    layout, (k_pages, v_pages) = paged(k, v)
    run = jax.jit(
        lambda q, k, v, n, layout: attnjax.decode(q, k, v, length=n, layout=layout, stats=True)
    )
    assert_equal(run(last(q, T, 1), k_pages, v_pages, LENGTHS, layout), full_pass(q, k, v, T))


@pytest.mark.first(2)
@pytest.mark.parametrize("dtype", [jnp.int8, jnp.float8_e4m3fn, jnp.float8_e5m2])
@pytest.mark.parametrize("T", [1, 19])
def test_eight_bits_equal_the_numbers_that_they_stand_for(dtype: Any, T: int) -> None:
    q, k, v = arrays()
    (k8, k_scale), (v8, v_scale) = (attnjax.quantize_kv(x, dtype) for x in (k, v))
    meant = [x8.astype(jnp.float32) * s[..., None] for x8, s in ((k8, k_scale), (v8, v_scale))]
    step = 1 / 127 if dtype == jnp.int8 else 0.07 if dtype == jnp.float8_e4m3fn else 0.13
    for x, y in zip((k, v), meant, strict=True):
        assert np.max(np.abs(x - y) / np.max(np.abs(x), axis=-1, keepdims=True)) <= step
    got = attnjax.decode(
        last(q, T, 1), k8, v8, length=LENGTHS, k_scale=k_scale, v_scale=v_scale, stats=True
    )
    assert_equal(got, full_pass(q, *meant, T))
    layout, (k_pages, v_pages, *scales) = paged(
        *(x.astype(jnp.float32) for x in (k8, v8)), k_scale, v_scale
    )
    pages = [jnp.nan_to_num(x).astype(dtype) for x in (k_pages, v_pages)]
    again = attnjax.decode(
        last(q, T, 1),
        *pages,
        length=LENGTHS,
        layout=layout,
        k_scale=scales[0],
        v_scale=scales[1],
        stats=True,
    )
    assert_equal(again, full_pass(q, *meant, T))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("T", [2, 19])
def test_a_nan_reaches_the_rows_that_see_it_and_no_other(value: float, T: int) -> None:
    q, k, v = arrays()
    heads = np.arange(N).reshape(1, N, 1, 1)
    for bad_k, bad_v in ((k.at[0, 7, 1, 2].set(value), v), (k, v.at[0, 7, 1, 2].set(value))):
        # Of the two heads that read key head 1, one may look at position 7.
        mask = attnjax.Causal() & attnjax.Dense((heads != 3) | (np.arange(CAPACITY) != 7))
        got = attnjax.decode(last(q, T, 1), bad_k, bad_v, length=LENGTHS, mask=mask, stats=True)
        want = full_pass(q, k, v, T, mask=mask)
        spoilt = np.zeros((B, T, N), bool)
        spoilt[0, :, 2] = True
        assert np.isnan(np.asarray(got[0])[spoilt]).all()
        np.testing.assert_allclose(
            np.asarray(got[0])[~spoilt], np.asarray(want[0])[~spoilt], rtol=2e-5, atol=2e-5
        )
    bad_q = q.at[1, LENGTHS[1] - 1, 4, 0].set(value)
    out = np.asarray(attnjax.decode(last(bad_q, T, 1), k, v, length=LENGTHS))
    spoilt = np.zeros((B, T, N), bool)
    spoilt[1, -1, 4] = True
    assert np.isnan(out[spoilt]).all()
    np.testing.assert_allclose(
        out[~spoilt], np.asarray(full_pass(q, k, v, T)[0])[~spoilt], rtol=2e-5, atol=2e-5
    )


def test_a_traced_length_that_is_wrong_gives_nan() -> None:
    q, k, v = arrays()
    run = jax.jit(lambda n: attnjax.decode(q[:, :2], k, v, length=n, stats=True))
    for wrong in ([1, 5], [5, CAPACITY + 1], [0, 5]):
        out, stats = run(np.array(wrong))
        bad = np.array(wrong) != 5
        for x in (out, *stats):
            assert (np.isnan(x).reshape(B, -1).all(-1) == bad).all()


def test_steps_under_scan_equal_the_full_pass() -> None:
    q, k, v = arrays()

    def step(cache: tuple, x: tuple) -> tuple:
        position, q, *new = x
        cache = tuple(c.at[:, position].set(n) for c, n in zip(cache, new, strict=True))
        return cache, attnjax.decode(q[:, None], *cache, length=position + 1)[:, 0]

    empty = (jnp.full_like(k, jnp.nan), jnp.full_like(v, jnp.nan))
    over = (jnp.arange(CAPACITY), *(jnp.moveaxis(x, 1, 0) for x in (q, k, v)))
    _, out = jax.jit(lambda: jax.lax.scan(step, empty, over))()
    want = attnjax.attention(q, k, v, mask=attnjax.Causal())
    np.testing.assert_allclose(jnp.moveaxis(out, 0, 1), want, rtol=2e-5, atol=2e-5)
