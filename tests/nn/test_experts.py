"""The mixture of experts against a loop over positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax.nn import Encoder, ExpertOptions, MixtureOfExperts, TransformerConfig

B, T, F, HIDDEN, EXPERTS, CHOSEN = 2, 3, 5, 7, 4, 2


def _layer(**options):
    layer = MixtureOfExperts(
        F, HIDDEN, options=ExpertOptions(EXPERTS, CHOSEN, **options), rngs=nnx.Rngs(0)
    )
    for n, bias in enumerate((layer.gate_bias, layer.up_bias, layer.down_bias, layer.router.bias)):
        bias[...] = jax.random.normal(jax.random.key(n), bias.shape)
    return layer


@nnx.jit
def _run(layer, x):
    return layer(x)


def _loop(layer, x):
    """One position and one expert after the other, in float64."""
    weights = {
        name: np.asarray(getattr(layer, name)[...], np.float64)
        for name in ("gate", "gate_bias", "up", "up_bias", "down", "down_bias")
    }
    router = [np.asarray(p[...], np.float64) for p in (layer.router.kernel, layer.router.bias)]
    options, out = layer.options, np.zeros(x.shape)
    for at in np.ndindex(x.shape[:-1]):
        token = np.asarray(x[at], np.float64)
        logits = token @ router[0] + router[1]
        best = np.argsort(-logits)[: options.per_token]
        share = np.exp(logits[best]) / np.sum(np.exp(logits[best]))
        for expert, weight in zip(best, share, strict=True):
            gate = token @ weights["gate"][expert] + weights["gate_bias"][expert]
            up = token @ weights["up"][expert] + weights["up_bias"][expert]
            if options.limit is not None:
                gate, up = np.minimum(gate, options.limit), np.clip(up, *_around(options.limit))
            hidden = gate / (1 + np.exp(-options.alpha * gate)) * (up + options.shift)
            out[at] += weight * (hidden @ weights["down"][expert] + weights["down_bias"][expert])
    return out


def _around(limit):
    return -limit, limit


@pytest.mark.first(1)
@pytest.mark.parametrize("options", [{}, {"alpha": 1.7, "shift": 1.0, "limit": 0.5}])
@pytest.mark.parametrize("shape", [(B, T, F), (2, 1, F)], ids=["sequences", "steps"])
def test_equals_a_loop(options, shape):
    layer, x = _layer(**options), 2 * jax.random.normal(jax.random.key(9), shape)
    np.testing.assert_allclose(_run(layer, x), _loop(layer, x), rtol=1e-4, atol=1e-5)


def test_all_positions_may_choose_the_same_experts():
    layer, x = _layer(), jax.random.normal(jax.random.key(9), (B, T, F))
    layer.router.bias[...] = jnp.array([100.0, 0.0, 0.0, 50.0])
    np.testing.assert_allclose(_run(layer, x), _loop(layer, x), rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_chosen_experts_only():
    layer, x = _layer(), jax.random.normal(jax.random.key(9), (B, T, F))
    layer.router.bias[...] = jnp.array([100.0, 0.0, 0.0, 99.0])
    grads = nnx.jit(nnx.grad(lambda layer: jnp.sum(layer(x) ** 2)))(layer)
    for name in ("gate", "up", "down", "gate_bias", "up_bias", "down_bias"):
        size = np.abs(grads[name][...]).reshape(EXPERTS, -1).sum(-1)
        assert np.all(size[[0, 3]] > 0) and np.all(size[[1, 2]] == 0), name
    assert np.all(np.abs(grads["router"]["kernel"][...][:, [0, 3]]) > 0)


@pytest.mark.slow
def test_a_stack_is_scanned_with_experts():
    config = TransformerConfig(
        F, 1, 2, hidden=HIDDEN, experts=ExpertOptions(3, 1), use_bias=False, scan_layers=True
    )
    model = Encoder(config, rngs=nnx.Rngs(0))
    layers = model.stack.layers.feed_forward
    assert layers.gate.shape == (2, 3, F, HIDDEN) and layers.gate_bias is None
    assert not np.allclose(layers.gate[...][:, 0], layers.gate[...][:, 1])
    assert np.all(np.isfinite(model(jnp.ones((B, T, F)))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 2, "per_token": 3}, "per_token: expected 1 to count, got per_token=3, count=2"),
        ({"count": 2, "per_token": 0}, "per_token: expected 1 to count"),
        ({"count": 2, "per_token": 1, "limit": 0.0}, "limit: expected a positive number or None"),
    ],
)
def test_refuses_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        ExpertOptions(**options)
