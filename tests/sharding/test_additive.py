"""Additive attention over a mesh equals that on one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

import attnjax
from attnjax import Partition, additive_attention
from attnjax.nn import AdditiveAttention, spread

pytestmark = pytest.mark.mesh

B, T, N, H, D = 2, 16, 4, 3, 5
IDS = jnp.asarray(np.arange(T) // 6)


def _mesh():
    return jax.make_mesh((2, 2, 2), ("data", "model", "seq"), axis_types=(AxisType.Auto,) * 3)


def _arrays(K):
    shapes = ((B, T, N, H), (B, T, K, H), (B, T, K, D), (N, H), (N, H), (N,))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@functools.partial(jax.jit, static_argnames="partition")
@functools.partial(jax.value_and_grad, argnums=tuple(range(6)), has_aux=True)
def _values(q, k, v, w, bias, sinks, partition=None):
    out, stats = additive_attention(
        q,
        k,
        v,
        w,
        bias=bias,
        mask=attnjax.Causal() & attnjax.Segments(IDS),
        score_mod=attnjax.soft_cap(0.8),
        sinks=sinks,
        dropout=attnjax.Dropout(0.3, jax.random.key(1)),
        partition=partition,
        stats=True,
    )
    total = jnp.sum(jnp.sin(3 * out)) + jnp.sum(stats.entropy * jnp.cos(jnp.arange(T)))
    return total, (out, stats)


@pytest.mark.parametrize(
    ("method", "K"),
    [
        ("ring", N),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("ring", 1), ("ulysses", 2), ("ulysses", 1), ("allgather", 2))
        ),
    ],
)
def test_equals_the_call_on_one_device(method, K):
    arrays = _arrays(K)
    expected = _values(*arrays)
    with jax.set_mesh(_mesh()):
        found = _values(*arrays, partition=Partition("data", "model", "seq", method))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=3e-5, atol=3e-5)


def test_the_module_is_spread():
    x = jax.random.normal(jax.random.key(2), (B, T, 8))
    layer = AdditiveAttention(8, num_heads=2, rngs=nnx.Rngs(0))
    expected = layer(x, mask=attnjax.Causal())
    assert spread(layer, Partition(batch="data", sequence="seq")) == 1
    with jax.set_mesh(_mesh()):
        found = nnx.jit(lambda layer, x: layer(x, mask=attnjax.Causal()))(layer, x)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    with pytest.raises(ValueError, match="there is no mesh in context"):
        layer(x)


def test_explain_tells_of_the_mesh_and_the_reference_is_refused():
    q, k, v, w, *_ = _arrays(N)
    partition = Partition(sequence="seq")
    with jax.set_mesh(_mesh()):
        plan = attnjax.explain_additive(q, k, v, w, partition=partition)
        with pytest.raises(NotImplementedError, match="'reference' can't be spread over a mesh"):
            additive_attention(q, k, v, w, partition=partition, implementation="reference")
    alone = attnjax.explain_additive(q, k, v, w)
    assert plan.cost == alone.cost
    assert any("ring over seq" in note for note in plan.notes)
