"""A learned temperature per head."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import attnjax
from attnjax.nn import AttentionOptions, MultiHeadAttention, Rotary
from attnjax.sharding.rules import TRANSFORMER

B, T, F, N = 2, 6, 12, 4


def layer(**options):
    options = AttentionOptions(implementation="reference", position=Rotary(fraction=0.7), **options)
    return MultiHeadAttention(F, num_heads=N, num_kv_heads=2, options=options, rngs=nnx.Rngs(0))


def test_it_divides_the_scores_of_each_head():
    module, x = layer(temperature=True), jax.random.normal(jax.random.key(1), (B, T, F))
    plain = layer()
    assert module.log_temperature.shape == (N,)
    np.testing.assert_allclose(module(x), plain(x), rtol=1e-6)  # it starts at 1
    module.log_temperature[...] = jnp.array([-1.0, 0.0, 0.5, 2.0])
    expected = plain(x, score_mod=attnjax.temperature(jnp.exp(module.log_temperature[...])))
    np.testing.assert_allclose(module(x), expected, rtol=2e-5, atol=1e-6)
    capped = layer(temperature=True, soft_cap=1.5)
    capped.log_temperature[...] = module.log_temperature[...]
    mods = (attnjax.temperature(jnp.exp(module.log_temperature[...])), attnjax.soft_cap(1.5))
    np.testing.assert_allclose(capped(x), plain(x, score_mod=mods), rtol=2e-5, atol=1e-6)


def test_steps_equal_the_whole_and_heads_get_gradients():
    module, x = layer(temperature=True), jax.random.normal(jax.random.key(1), (B, T, F))
    module.log_temperature[...] = jnp.array([-1.0, 0.0, 0.5, 2.0])
    module.options = dataclasses.replace(module.options, implementation=None)
    whole = module(x, mask=attnjax.Causal())
    first, cache = module.decode(x[:, :4], module.init_cache(B, T))
    rest, _ = module.decode(x[:, 4:], cache)
    np.testing.assert_allclose(jnp.concatenate([first, rest], 1), whole, rtol=2e-4, atol=1e-5)
    grads = nnx.grad(lambda module: jnp.sum(module(x) ** 2))(module)
    assert (np.abs(grads["log_temperature"][...]) > 1e-6).all()


def test_it_is_laid_out_with_the_heads():
    assert TRANSFORMER.logical("encoder.attention.log_temperature", (N,)) == ("heads",)
