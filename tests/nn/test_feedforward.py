"""The feed-forward layer against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax.nn import FeedForward

B, T, F, HIDDEN = 2, 3, 5, 7


@pytest.mark.parametrize("activation", ["gelu", "gelu_exact", "relu", "swiglu", "geglu"])
def test_equals_its_formula(activation):
    layer = FeedForward(F, HIDDEN, activation=activation, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (B, T, F))
    up = x @ layer.up.kernel[...]
    hidden = {
        "gelu": lambda: jax.nn.gelu(up),
        "gelu_exact": lambda: up * jax.scipy.stats.norm.cdf(up),
        "relu": lambda: jnp.maximum(up, 0),
        "swiglu": lambda: jax.nn.silu(x @ layer.gate.kernel[...]) * up,
        "geglu": lambda: jax.nn.gelu(x @ layer.gate.kernel[...]) * up,
    }[activation]()
    np.testing.assert_allclose(layer(x), hidden @ layer.down.kernel[...], rtol=1e-5, atol=1e-5)


def test_options_reach_the_parts():
    layer = FeedForward(
        F,
        HIDDEN,
        use_bias=False,
        dropout_rate=0.5,
        dtype=jnp.bfloat16,
        param_dtype=jnp.float16,
        kernel_init=nnx.initializers.ones_init(),
        rngs=nnx.Rngs(0),
    )
    assert layer.up.bias is None and layer.gate is None
    assert layer.down.kernel.dtype == jnp.float16 and np.all(layer.up.kernel[...] == 1)
    x = jax.random.normal(jax.random.key(0), (B, T, F))
    assert layer(x).dtype == jnp.bfloat16
    assert not np.allclose(layer(x), layer(x))
    layer.eval()
    np.testing.assert_array_equal(layer(x), layer(x))


def test_refuses_unknown_activations():
    with pytest.raises(ValueError, match=r"activation: expected one of gelu, .*swiglu, geglu; got"):
        FeedForward(F, HIDDEN, activation="tanh", rngs=nnx.Rngs(0))
