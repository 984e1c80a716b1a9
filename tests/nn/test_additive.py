import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import attnjax
from attnjax.nn.additive import AdditiveAttention

B, T, S, F, G, K, GROUPS, H, D, OUT = 2, 5, 7, 11, 13, 3, 2, 17, 19, 23
N = K * GROUPS
SIZES = {
    "num_heads": N,
    "num_kv_heads": K,
    "hidden_features": H,
    "head_dim": D,
    "kv_features": G,
    "out_features": OUT,
}
LENGTHS = np.array([3, 7])
X = jax.random.normal(jax.random.key(0), (B, T, F))
KV = jax.random.normal(jax.random.key(1), (B, S, G))


def _module(**options):
    module = AdditiveAttention(F, **SIZES, rngs=nnx.Rngs(2), **options)
    module.score_bias[...] = jax.random.normal(jax.random.key(3), (N, H))
    return module


def _expected(module, x, kv):
    """Attends in NumPy, in float64."""

    def kernel(layer):
        return np.asarray(layer.kernel[...], np.float64)

    x, kv = np.asarray(x, np.float64), np.asarray(kv, np.float64)
    query = np.einsum("btf,fnh->bnth", x, kernel(module.query))
    key, value = (
        np.repeat(np.einsum("bsg,gkh->bksh", kv, kernel(layer)), GROUPS, axis=1)
        for layer in (module.key, module.value)
    )
    bias = np.asarray(module.score_bias[...], np.float64)[:, None, None]
    hidden = np.tanh(query[:, :, :, None] + key[:, :, None] + bias)
    scores = np.einsum("bntsh,nh->bnts", hidden, np.asarray(module.score_weight[...]))
    weights = np.exp(scores) * (np.arange(S) < LENGTHS[:, None, None, None])
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bnts,bnsd,ndo->bto", weights, value, kernel(module.out))


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-5), (jnp.bfloat16, 4e-2)])
def test_equals_numpy(dtype, tolerance):
    module = _module(dtype=dtype)
    out, stats = module(X, KV, mask=attnjax.Prefix(jnp.asarray(LENGTHS)), stats=True)
    assert out.shape == (B, T, OUT) and out.dtype == dtype
    assert stats.entropy.shape == (B, N, T)
    want = _expected(module, X, KV)
    np.testing.assert_allclose(
        out.astype(jnp.float32), want, rtol=tolerance, atol=tolerance * np.abs(want).max()
    )


def test_every_parameter_gets_a_gradient_and_self_attention_is_the_default():
    module = AdditiveAttention(F, hidden_features=H, rngs=nnx.Rngs(2))
    np.testing.assert_array_equal(module(X), module(X, X))

    def loss(module):
        return jnp.sum(jnp.sin(module(X, mask=attnjax.Causal())))

    for path, grad in nnx.to_flat_state(nnx.grad(loss)(module)):
        assert np.abs(grad[...]).max() > 0, path


def test_dropout_is_off_in_evaluation():
    module = _module(dropout_rate=0.5)
    assert not np.array_equal(module(X, KV), module(X, KV))
    module.eval()
    np.testing.assert_array_equal(module(X, KV), _module()(X, KV))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 4, "num_kv_heads": 3}, "num_heads: .*num_kv_heads=3"),
        ({"num_heads": 2}, "features: expected a multiple of num_heads=2.*features=11"),
        ({"dropout_rate": 1.0}, r"dropout_rate: expected a number in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        AdditiveAttention(F, **options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("x", "kv", "message"),
    [
        (X[0], KV, r"x: expected an array \[batch, time, 11\], got \(5, 11\)"),
        (X, None, r"kv: expected an array \[batch, time, 13\], got \(2, 5, 11\)"),
        (X, KV[:1], "k: expected 2, the batch size B of q, got 1"),
    ],
)
def test_wrong_inputs(x, kv, message):
    with pytest.raises(ValueError, match=message):
        _module()(x, kv)
