"""Gradients by attention weights, against dense attention whose weights can be changed freely."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax import Prefix
from attnjax.focus.faithful import pooling_attention, received_attention
from attnjax.nn import (
    AdditiveAttention,
    AttentionOptions,
    AttentionPooling,
    Encoder,
    MultiHeadAttention,
    TransformerConfig,
)

B, T, F = 3, 7, 12
LENGTHS = np.array([7, 2, 5])


def drawn(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)


def head(pooled: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin(pooled * jnp.arange(1, F + 1)), axis=1)


@pytest.mark.first(1)
@pytest.mark.parametrize("heads", [3, 1])
def test_gradients_by_pooling_weights_are_those_of_free_weights(heads: int) -> None:
    pooling, x = AttentionPooling(F, num_heads=heads, rngs=nnx.Rngs(0)), drawn(B, T, F)
    outside = np.arange(T) >= LENGTHS[:, None]
    x = jnp.where(outside[..., None], jnp.nan, x)
    found = pooling_attention(pooling, x, head, lengths=LENGTHS)
    values = jnp.where(outside[..., None], 0, x).reshape(B, T, heads, -1)

    def dense(weights: jax.Array) -> jax.Array:
        return jnp.sum(head(jnp.einsum("bnt,btnd->bnd", weights, values).reshape(B, F)))

    expected = jax.grad(dense)(found.weights)
    np.testing.assert_allclose(found.gradients, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.weights.sum(axis=2), 1, rtol=1e-5)
    np.testing.assert_allclose(found.raw, found.weights.mean(axis=1), rtol=1e-6)
    product = (found.weights * expected).sum(axis=1)
    np.testing.assert_allclose(found.gradient_weighted, product, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(found.gradient_weighted)[outside], 0)


def score_of(out: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin(out * jnp.arange(out.shape[-1])), axis=(1, 2))


def test_received_is_the_column_sum_of_weight_times_gradient() -> None:
    options = AttentionOptions(soft_cap=5.0)
    module = MultiHeadAttention(F, num_heads=4, num_kv_heads=2, options=options, rngs=nnx.Rngs(0))
    module.eval()
    x, mask = drawn(B, T, F), Prefix(jnp.asarray(LENGTHS))
    before = nnx.state(module)
    found = received_attention(module, lambda m: score_of(m(x, mask=mask)), lengths=LENGTHS)

    q, k, v = module.query(x), module.key(x), jnp.repeat(module.value(x), 2, axis=2)
    scores = jnp.einsum("btnh,bsnh->bnts", q, jnp.repeat(k, 2, axis=2)) * q.shape[-1] ** -0.5
    allowed = (np.arange(T) < LENGTHS[:, None])[:, None, None]
    weights = jax.nn.softmax(jnp.where(allowed, 5 * jnp.tanh(scores / 5), -jnp.inf), axis=-1)

    def dense(weights: jax.Array) -> jax.Array:
        return jnp.sum(score_of(module.out(jnp.einsum("bnts,bsnh->btnh", weights, v))))

    product = (weights * jax.grad(dense)(weights)).sum(axis=2).reshape(B, 2, 2, T).sum(axis=2)
    np.testing.assert_allclose(
        found[""].gradient_weighted, product.transpose(0, 2, 1), rtol=1e-4, atol=1e-4
    )
    counting = jnp.where(allowed.transpose(0, 1, 3, 2), weights, 0)
    raw = counting.sum(axis=2).reshape(B, 2, 2, T).sum(axis=2)
    np.testing.assert_allclose(found[""].raw, raw.transpose(0, 2, 1), rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(module))
    assert isinstance(module.value, nnx.LinearGeneral)


@pytest.mark.first(1)
@pytest.mark.parametrize("remat", ["full", "none"])
def test_scanned_layers_receive_what_listed_ones_do(remat) -> None:
    x, found = drawn(B, T, F), {}
    for scanned in (True, False):
        config = TransformerConfig(
            features=F,
            num_heads=2,
            num_layers=3,
            scan_layers=scanned,
            remat=remat,
            dropout_rate=0.1,
        )
        model = Encoder(config, rngs=nnx.Rngs(0))
        model.eval()
        if scanned:
            stacked = nnx.state(model.stack.layers, nnx.Param)
        else:
            for n, layer in enumerate(model.stack.layers):
                nnx.update(layer, jax.tree.map(lambda leaf, n=n: leaf[n], stacked))
        graph, state = nnx.split(model)
        found[scanned] = jax.jit(
            lambda state, graph=graph: received_attention(
                nnx.merge(graph, state), lambda m: score_of(m(x))
            )
        )(state)
    assert list(found[True]) == [f"stack.layers.{n}.attention" for n in range(3)]
    for name, expected in found[False].items():
        for scanned, listed in zip(found[True][name], expected, strict=True):
            assert listed.shape == (B, T, 2) and np.abs(listed).max() > 0.01
            np.testing.assert_allclose(scanned, listed, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(expected.raw.sum(axis=(1, 2)), T * 2, rtol=1e-5)


class Both(nnx.Module):
    def __init__(self) -> None:
        self.one = AdditiveAttention(F, rngs=nnx.Rngs(0))
        self.unused = MultiHeadAttention(F, num_heads=2, rngs=nnx.Rngs(1))


def test_modules_that_are_not_called_are_left_out() -> None:
    x, model = drawn(B, T, F), Both()
    model.eval()
    found = received_attention(model, lambda m: score_of(m.one(x)))
    assert found.keys() == {"one"} and found["one"].raw.shape == (B, T, 1)


def test_what_has_no_single_answer_is_refused() -> None:
    x, model = drawn(B, T, F), Both()
    with pytest.raises(NotImplementedError, match="several shapes"):
        received_attention(model, lambda m: score_of(m.one(x)) + score_of(m.one(x[:, 1:])))
    with pytest.raises(ValueError, match="found none"):
        received_attention(nnx.Linear(F, F, rngs=nnx.Rngs(0)), lambda m: score_of(m(x)))
