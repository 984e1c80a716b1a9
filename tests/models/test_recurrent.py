"""Recurrent layers: they are Flax' cells, and read each sequence as if it stood alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax.models.recurrent import GRU, LSTM, Bidirectional

B, T, F, H = 3, 7, 5, 6


def _normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _flax_lstm(ours):
    # Flax: one projection of the input without bias, one of the state with it; gates i, f, g, o.
    cell = nnx.OptimizedLSTMCell(F, H, rngs=nnx.Rngs(0))
    cell.dense_i.kernel[...] = ours.inputs.kernel[...]
    cell.dense_h.kernel[...] = ours.recurrent[...]
    cell.dense_h.bias[...] = ours.inputs.bias[...] + jnp.repeat(jnp.array([0.0, 1, 0, 0]), H)
    return cell, (jnp.zeros((B, H)), jnp.zeros((B, H)))


def _flax_gru(ours):
    cell = nnx.GRUCell(F, H, rngs=nnx.Rngs(0))  # gates r, z, n
    cell.dense_i.kernel[...] = ours.inputs.kernel[...]
    cell.dense_i.bias[...] = ours.inputs.bias[...]
    cell.dense_h.kernel[...] = ours.recurrent[...]
    return cell, jnp.zeros((B, H))


@pytest.mark.parametrize(("layer", "flax"), [(LSTM, _flax_lstm), (GRU, _flax_gru)])
def test_a_layer_equals_flax_own_cell(layer, flax):
    ours = layer(F, H, rngs=nnx.Rngs(0))
    ours.inputs.bias[...] = _normal(0, ours.gates * H)
    cell, state = flax(ours)
    x = _normal(1, B, T, F)
    wanted = []
    for t in range(T):
        state, out = cell(state, x[:, t])
        wanted.append(out)
    found = ours(x, jnp.ones((B, T), bool), jnp.ones((B, H)))
    np.testing.assert_allclose(found, jnp.stack(wanted, axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.first(1)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_both_directions_read_each_sequence_as_if_it_stood_alone(cell):
    reader = Bidirectional(F, H, cell=cell, dropout=0.5, rngs=nnx.Rngs(0))
    reader.eval()
    x = _normal(2, B, T, F)
    together = reader(x, jnp.array([7, 1, 4]))
    for b, n in enumerate([7, 1, 4]):
        alone = reader(x[b : b + 1, :n], jnp.array([n]))
        np.testing.assert_allclose(together[b, :n], alone[0], rtol=1e-5, atol=1e-6)
        last = jnp.broadcast_to(alone[0, -1, :H], (T - n, H))
        np.testing.assert_allclose(together[b, n:, :H], last, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(together[b, n:, H:], 0)


def test_every_position_sees_both_sides():
    reader = Bidirectional(F, H, dropout=0.0, rngs=nnx.Rngs(0))
    gradient = jax.grad(lambda x: jnp.sum(reader(x, jnp.array([T]))[0, 3]))(_normal(3, 1, T, F))
    assert (np.abs(np.asarray(gradient)).sum(axis=-1) > 0).all()


@pytest.mark.parametrize("layer", [LSTM, GRU])
def test_the_recurrent_product_never_sees_a_dropped_unit(layer):
    ours, x, inside = layer(F, H, rngs=nnx.Rngs(0)), _normal(4, B, T, F), jnp.ones((B, T), bool)
    for kept, same in ((jnp.zeros(H).at[0].set(2.0), True), (jnp.ones(H), False)):
        keep = jnp.broadcast_to(kept, (B, H))
        before = ours(x, inside, keep)
        ours.recurrent[...] = ours.recurrent[...].at[1:].add(1.0)  # what the other units lead to
        assert np.allclose(before, ours(x, inside, keep), rtol=1e-5) == same
