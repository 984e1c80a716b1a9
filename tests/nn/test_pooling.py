import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

import attnjax
from attnjax.nn.pooling import AttentionPooling

B, T, N, WIDTH, HIDDEN = 2, 7, 3, 5, 11
F = N * WIDTH


def _softmax(scores, allowed):
    weights = np.where(allowed, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    total = weights.sum(-1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)


def _expected(pool, x, allowed):
    """Pools head by head in NumPy."""
    x = np.asarray(x, np.float64)
    query = np.asarray(pool.query[...], np.float64)
    pooled, weights = [], []
    for n in range(pool.num_heads):
        width = pool.features // pool.num_heads
        part = x[:, :, n * width : (n + 1) * width]
        if pool.score == "additive":
            hidden = np.tanh(x @ np.asarray(pool.hidden.kernel[...], np.float64))
            units = query.shape[1]
            scores = hidden[:, :, n * units : (n + 1) * units] @ query[n]
        else:
            scores = part @ query[n] / np.sqrt(width)
        weights.append(_softmax(scores, allowed))
        pooled.append(np.einsum("bt,btf->bf", weights[-1], part))
    return np.concatenate(pooled, axis=-1), np.stack(weights, axis=1)


def _pool(score, num_heads=N, **options):
    if score == "additive":
        options["hidden_features"] = HIDDEN * num_heads
    return AttentionPooling(F, num_heads=num_heads, score=score, rngs=nnx.Rngs(3), **options)


X = jax.random.normal(jax.random.key(0), (B, T, F))
LENGTHS = jnp.array([3, 7])
INSIDE = np.arange(T) < np.asarray(LENGTHS)[:, None]
SPOTTED = np.array([[1, 0, 1, 0, 0, 0, 1], [0, 1, 1, 1, 0, 0, 0]], bool)


@pytest.mark.first(5)
@pytest.mark.parametrize("score", ["additive", "dot"])
@pytest.mark.parametrize("num_heads", [1, N])
@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({}, np.ones((B, T), bool)),
        ({"lengths": LENGTHS}, INSIDE),
        ({"mask": jnp.asarray(SPOTTED)}, SPOTTED),
        ({"mask": attnjax.Prefix(2) | jnp.asarray(SPOTTED)[:, None, None]}, None),
        ({"mask": jnp.asarray(SPOTTED), "lengths": LENGTHS}, SPOTTED & INSIDE),
    ],
)
def test_equals_numpy(score, num_heads, options, allowed):
    if allowed is None:
        allowed = (np.arange(T) < 2) | SPOTTED
    pool = _pool(score, num_heads)
    pooled, weights = pool(X, return_weights=True, **options)
    want_pooled, want_weights = _expected(pool, X, allowed)
    np.testing.assert_allclose(pooled, want_pooled, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weights, want_weights, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(pool(X, **options), pooled, rtol=1e-6)
    assert pooled.shape == (B, F) and weights.shape == (B, num_heads, T)


def test_mask_may_differ_between_heads():
    by_head = attnjax.Where(lambda b, h, q_idx, k_idx: k_idx == h + q_idx)
    pooled, weights = _pool("additive")(X, mask=by_head, return_weights=True)
    np.testing.assert_allclose(weights, np.broadcast_to(np.eye(N, T), (B, N, T)), rtol=1e-6)
    slices = np.asarray(X).reshape(B, T, N, WIDTH)
    np.testing.assert_allclose(
        pooled.reshape(B, N, WIDTH), slices[:, np.arange(N), np.arange(N)], rtol=1e-6
    )


def test_bfloat16():
    pool = _pool("additive", dtype=jnp.bfloat16)
    pooled, weights = pool(X, lengths=LENGTHS, return_weights=True)
    want_pooled, want_weights = _expected(pool, X, INSIDE)
    assert pooled.dtype == jnp.bfloat16 and weights.dtype == jnp.float32
    np.testing.assert_allclose(pooled.astype(jnp.float32), want_pooled, rtol=2e-2, atol=2e-2)
    np.testing.assert_allclose(weights, want_weights, rtol=2e-2, atol=2e-2)


def _loss(pool, x, lengths):
    pooled, weights = pool(x, lengths=lengths, return_weights=True)
    return jnp.sum(pooled**2) + jnp.sum(weights**2)


@pytest.mark.first(1)
@pytest.mark.parametrize("score", ["additive", "dot"])
def test_empty_sequence_and_masked_nan(score):
    pool, lengths = _pool(score), jnp.array([0, 4])
    spoiled = X.at[0].set(jnp.nan).at[1, 4:].set(jnp.inf)
    pooled, weights = pool(spoiled, lengths=lengths, return_weights=True)
    np.testing.assert_array_equal(pooled[0], 0)
    np.testing.assert_array_equal(weights[0], 0)
    gradients = nnx.jit(nnx.grad(_loss, argnums=(0, 1)))
    got, want = gradients(pool, spoiled, lengths), gradients(pool, X[:, :4], lengths)
    np.testing.assert_array_equal(got[1][:, 4:], 0)
    np.testing.assert_array_equal(got[1][0], 0)
    np.testing.assert_allclose(got[1][:, :4], want[1], rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got[0], want[0]
    )


@pytest.mark.slow
def test_gradients_are_those_of_finite_differences():
    pool = _pool("additive")
    graphdef, params = nnx.split(pool)

    def loss(params, x):
        return _loss(nnx.merge(graphdef, params), x, LENGTHS)

    check_grads(loss, (params, X), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda r: AttentionPooling(7, num_heads=2, rngs=r), "features: .*num_heads=2, got 7"),
        (lambda r: AttentionPooling(4, num_heads=0, rngs=r), "features: .*num_heads=0"),
        (
            lambda r: AttentionPooling(4, num_heads=2, hidden_features=3, rngs=r),
            "hidden_features: .*got 3",
        ),
        (lambda r: AttentionPooling(4, score="cosine", rngs=r), "additive, dot; got 'cosine'"),
        (lambda r: AttentionPooling(4, score="dot", hidden_features=4, rngs=r), "no hidden layer"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make(nnx.Rngs(0))


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (X[0], {}, r"x: expected an array \[B, T, F=15\], got shape \(7, 15\)"),
        (X[..., :4], {}, r"F=15\], got shape \(2, 7, 4\)"),
        (X, {"mask": jnp.ones((B, T))}, r"bool array \[B=2, T=7\].*dtype float32.*astype\(bool\)"),
        (X, {"mask": jnp.ones((B, T - 1), bool)}, r"got shape \(2, 6\), dtype bool"),
        (X, {"mask": [True] * T}, "got list"),
        (X, {"mask": attnjax.Prefix(jnp.arange(3))}, r"Prefix.length: expected shape \[B=2\]"),
        (X, {"lengths": jnp.ones((B, T), int)}, r"lengths: expected integers \[B=2\]"),
        (X, {"lengths": jnp.ones(B)}, "expected an integer array, got dtype float32"),
    ],
)
def test_wrong_inputs(x, options, message):
    with pytest.raises(ValueError, match=message):
        _pool("additive")(x, **options)
