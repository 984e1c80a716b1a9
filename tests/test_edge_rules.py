"""The edge rules of the contract, on every implementation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from tests import oracle
from tests.conformance import Attend
from tests.edges import ATTENDS, B, D, K, N, S, T, arrays, assert_empty, differentiate


@pytest.fixture(
    # The interpreter takes its time: by default kernels meet drawn cases only.
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if name == "tpu" else [])
        for name in sorted(ATTENDS)
    ]
)
def attend(request: pytest.FixtureRequest) -> Attend:
    return ATTENDS[request.param]


EVEN = np.arange(T) % 2 == 0
EMPTYING = {
    "mask": {"mask": attnjax.Lengths(6, None) & attnjax.Dense(EVEN[:, None])},
    "score": {"score_mod": lambda s, b, h, q, k: jnp.where(q % 2 == 0, s, -jnp.inf)},
    "both": {
        "mask": attnjax.Prefix(3),
        "score_mod": attnjax.bias(jnp.where(EVEN[:, None], 0.5, -jnp.inf)),
    },
}


@pytest.mark.first(2)
@pytest.mark.parametrize("how", sorted(EMPTYING))
def test_a_row_with_nothing_to_attend_to(attend: Attend, how: str) -> None:
    primals = (*arrays(), None if how == "score" else jnp.linspace(-1, 2, N))
    rate = attnjax.Dropout(0.3, jax.random.key(0))

    def f(q: Any, k: Any, v: Any, sinks: Any) -> Any:
        return attend(q, k, v, sinks=sinks, dropout=rate, **EMPTYING[how])

    run = differentiate(f)
    (out, stats), gradients = run(*primals, rows=~EVEN)
    assert_empty(out, stats, ~EVEN)
    assert np.isfinite(stats.logsumexp[:, :, 0]).all()
    for gradient in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(gradient, 0)
    _, gradients = run(*primals)
    np.testing.assert_array_equal(gradients[0][:, ~EVEN], 0)
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all()
        assert np.asarray(gradient).any()


def test_every_row_empty(attend: Attend) -> None:
    q, k, v = arrays()
    bias = jnp.ones((T, S))

    def f(q: Any, k: Any, v: Any, bias: Any, sinks: Any) -> Any:
        return attend(q, k, v, sinks=sinks, score_mod=attnjax.bias(bias), mask=~attnjax.Full())

    (out, stats), gradients = differentiate(f)(q, k, v, bias, jnp.ones(N))
    assert_empty(out, stats, slice(None))
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(("empty_T", "empty_S"), [(0, 5), (7, 0), (0, 0)])
def test_an_empty_sequence(empty_T: int, empty_S: int) -> None:
    q, k, v = arrays(T=empty_T, S=empty_S)

    def f(q: Any, k: Any, v: Any) -> Any:
        return attnjax.attention(
            q, k, v, mask=attnjax.Causal(), score_mod=attnjax.alibi(N), stats=True
        )

    (out, stats), gradients = differentiate(f)(q, k, v)
    assert out.shape == (B, empty_T, N, D)
    assert_empty(out, stats, slice(None))
    for gradient, array in zip(gradients, (q, k, v), strict=True):
        np.testing.assert_array_equal(gradient, jnp.zeros_like(array))


def test_no_batch_and_no_heads() -> None:
    q, k, v = arrays()
    out, stats = attnjax.attention(q[:0], k[:0], v[:0], stats=True)
    assert out.shape == (0, T, N, D)
    assert stats.entropy.shape == (0, N, T)
    out = attnjax.attention(q[:, :, :0], k[:, :, :0], v[:, :, :0])
    assert out.shape == (B, T, 0, D)


@pytest.mark.first(1)
@pytest.mark.parametrize(("one_T", "one_S"), [(1, 5), (7, 1), (1, 1)])
def test_sequences_of_one(attend: Attend, one_T: int, one_S: int) -> None:
    q, k, v = arrays(T=one_T, S=one_S)
    table = jnp.linspace(0, 1, N * 3).reshape(N, 3)
    out, stats = attend(q, k, v, score_mod=attnjax.relative_bias(table))
    want = oracle.attention(
        *(np.asarray(x) for x in (q, k, v)),
        score_mods=[lambda s, b, h, i, j: s + float(table[h, min(max(j - i, -1), 1) + 1])],
    )
    np.testing.assert_allclose(out, want.out, rtol=2e-5, atol=1e-6)
    for x, y in zip(stats, want[1:], strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6)


@pytest.mark.first(2)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_extreme_logits(attend: Attend, dtype: Any) -> None:
    run = differentiate(attend)
    tolerance = 2e-5 if dtype == jnp.float32 else 2e-2
    q, drawn, v = arrays(dtype=dtype)
    # At 2000 the scores leave the range of float16; at 1e-7 the inputs are subnormal there.
    for size in (2000.0, 1e-7, 0.0):
        k = drawn * jnp.asarray(size, dtype)
        (out, stats), gradients = run(10 * q, k, v)
        want = oracle.attention(*(np.asarray(x, np.float64) for x in (10 * q, k, v)))
        assert out.dtype == dtype
        np.testing.assert_allclose(
            out.astype(jnp.float32), want.out, rtol=tolerance, atol=tolerance
        )
        assert {x.dtype for x in stats} == {jnp.dtype(jnp.float32)}
        for name, x, y in zip(stats._fields, stats, want[1:], strict=True):
            atol = 2e-5 * max(1, np.abs(y).max())
            np.testing.assert_allclose(x, y, rtol=2e-5, atol=atol, err_msg=name)
        for gradient in gradients:
            assert np.isfinite(gradient.astype(jnp.float32)).all()


def test_entropy_does_not_cancel_where_scores_are_large(attend: Attend) -> None:
    q, k, v = arrays(S=23)
    # Sums that float32 holds exactly, so that only the softmax itself can lose digits.
    steps = jnp.asarray(np.random.default_rng(0).integers(0, 16, (T, 23)) / 8, jnp.float32)
    run = jax.jit(lambda bias: attend(0 * q, k, v, score_mod=attnjax.bias(bias))[1])
    want = run(steps)
    for offset in (1e3, 1e4, -1e4):
        stats = run(steps + offset)
        np.testing.assert_allclose(stats.entropy, want.entropy, rtol=2e-5)
        np.testing.assert_allclose(stats.distance, want.distance, rtol=2e-5)


def test_minus_infinity_from_a_score_mod_masks(attend: Attend) -> None:
    q, k, v = arrays()
    window = attnjax.Window(1, 1)

    def hide(s: jax.Array, b: Any, h: Any, q: Any, k: Any) -> jax.Array:
        return jnp.where((k >= q - 1) & (k <= q + 1), s, -jnp.inf)

    found = differentiate(lambda *x: attend(*x, score_mod=hide))(q, k, v)
    want = differentiate(lambda *x: attend(*x, mask=window))(q, k, v)
    assert_empty(*found[0], [6])
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6)


@pytest.mark.slow
def test_a_huge_negative_bias_is_no_mask(attend: Attend) -> None:
    q, k, v = arrays()
    run = differentiate(lambda q, k, v, bias: attend(q, k, v, score_mod=attnjax.bias(bias)))
    hidden, _ = attend(q, k, v, mask=attnjax.Prefix(2))
    uniform = np.repeat(np.asarray(v).mean(1), N // K, axis=1)
    for low in (-1e9, -1e30, float(np.finfo(np.float32).min)):
        lowered = jnp.zeros((T, S)).at[:4, 2:].set(low).at[6].set(low)
        (out, stats), gradients = run(q, k, v, lowered)
        # Some keys lowered: they vanish. All keys lowered: their scores round to one value.
        np.testing.assert_allclose(out[:, :4], hidden[:, :4], rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(out[:, 6], uniform, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(stats.entropy[:, :, 6], np.log(S), rtol=2e-5)
        np.testing.assert_allclose(stats.logsumexp[:, :, 6], low, rtol=1e-6)
        for x in jax.tree.leaves((out, stats, gradients)):
            assert np.isfinite(x).all()


def test_extreme_sinks(attend: Attend) -> None:
    q, k, v = arrays()
    run = differentiate(lambda *x: attend(*x[:3], sinks=x[3], score_mod=attnjax.bias(x[4])))
    for sink, low in ((-np.inf, 0.0), (-np.inf, -1e4), (1e4, 0.0), (0.0, -1e4)):
        sinks = jnp.full(N, sink, jnp.float32)
        (out, stats), gradients = run(q, k, v, sinks, jnp.full((T, S), low, jnp.float32))
        want = oracle.attention(
            *(np.asarray(x) for x in (q, k, v)),
            sinks=np.asarray(sinks),
            score_mods=[lambda s, b, h, i, j, low=low: s + low],
        )
        # A score of -1e4 in float32 is good to 1e-3.
        close = {"rtol": 2e-3, "atol": 2e-3} if low else {"rtol": 2e-5, "atol": 1e-5}
        np.testing.assert_allclose(out, want.out, **close)
        for x, y in zip(stats, want[1:], strict=True):
            np.testing.assert_allclose(x, y, **close)
        for gradient in gradients:
            assert np.isfinite(gradient).all()


def test_any_finite_scale(attend: Attend) -> None:
    q, k, v = arrays()
    run = jax.jit(lambda scale: attend(q, k, v, scale=scale)[0])
    for scale in (0.0, -1.0, 3.0):
        want = oracle.attention(*(np.asarray(x) for x in (q, k, v)), scale=scale)
        np.testing.assert_allclose(run(jnp.float32(scale)), want.out, rtol=2e-5, atol=1e-6)
        found = attnjax.attention(q, k, v, scale=scale)
        np.testing.assert_allclose(found, want.out, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("mask", [attnjax.Where(lambda b, h, q, k: q >= k), attnjax.Causal()])
def test_numpy_float64_is_taken_as_jax_takes_it(mask: attnjax.Mask) -> None:
    q, k, v = (np.asarray(x, np.float64) for x in arrays())
    out = attnjax.attention(q, k, v, mask=mask)
    assert out.dtype == jnp.float32
    want = oracle.attention(q, k, v, allowed=lambda b, h, i, j: i >= j)
    np.testing.assert_allclose(out, want.out, rtol=2e-5, atol=1e-6)
