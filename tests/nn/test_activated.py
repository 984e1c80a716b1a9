import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import attnjax
from attnjax.nn.activated import ActivatedAttention

B, T, S, F, G, N, H, OUT = 2, 5, 7, 11, 13, 3, 17, 19
X = jax.random.normal(jax.random.key(0), (B, T, F))
KV = jax.random.normal(jax.random.key(1), (B, S, G))
ACTIVATIONS = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "identity": lambda x: x,
}


def _module(**options):
    module = ActivatedAttention(
        F, num_heads=N, head_dim=H, kv_features=G, out_features=OUT, rngs=nnx.Rngs(2), **options
    )
    module.score_bias[...] = jax.random.normal(jax.random.key(3), (N,))
    return module


def _expected(module, activation):
    """Attends in NumPy, in float64."""
    x, kv = np.asarray(X, np.float64), np.asarray(KV, np.float64)
    parts = module.attention
    query, key, value, out = (
        np.asarray(layer.kernel[...], np.float64)
        for layer in (parts.query, parts.key, parts.value, parts.out)
    )
    scores = np.einsum("btf,fnh,bsg,gnh->bnts", x, query, kv, key, optimize=True) / np.sqrt(H)
    scores += np.einsum("bsg,gn->bns", kv, np.asarray(module.per_key.kernel[...]))[:, :, None]
    scores = activation(scores + np.asarray(module.score_bias[...])[:, None, None])
    weights = np.exp(scores) * np.tril(np.ones((T, S)), S - T)
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bnts,bsg,gnh,nho->bto", weights, kv, value, out, optimize=True)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_equals_numpy(name):
    module = _module(activation=name)
    out, stats = module(X, KV, mask=attnjax.Causal(S - T), stats=True)
    want = _expected(module, ACTIVATIONS[name])
    np.testing.assert_allclose(out, want, rtol=2e-5, atol=2e-6)
    assert stats.entropy.shape == (B, N, T)


def test_bfloat16():
    module = _module(dtype=jnp.bfloat16)
    out, want = module(X, KV, mask=attnjax.Causal(S - T)), _expected(module, ACTIVATIONS["sigmoid"])
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), want, rtol=4e-2, atol=4e-2)


def test_every_parameter_gets_a_gradient_and_self_attention_is_the_default():
    module = ActivatedAttention(F, rngs=nnx.Rngs(2))
    np.testing.assert_array_equal(module(X), module(X, X))

    def loss(module):
        return jnp.sum(jnp.sin(module(X, mask=attnjax.Causal())))

    for path, grad in nnx.to_flat_state(nnx.grad(loss)(module)):
        assert np.abs(grad[...]).max() > 0, path


def test_wrong_activation():
    with pytest.raises(ValueError, match="expected one of identity, relu, sigmoid, tanh; got 'si'"):
        ActivatedAttention(F, activation="si", rngs=nnx.Rngs(0))
