"""Axes of the mesh that a partition does not name: the same work is done along them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import attnjax
from attnjax import Causal, Partition
from attnjax.nn import AttentionPooling, spread
from tests.aot import topology_devices

AXES = ("data", "fsdp", "model", "seq")


@pytest.mark.mesh
@pytest.mark.parametrize("partition", [Partition(), Partition(batch="data", sequence="seq")])
def test_values_and_gradients_are_those_of_one_device(partition):
    mesh = jax.make_mesh((2, 1, 2, 2), AXES, axis_types=(AxisType.Auto,) * 4)
    q, k, v = (
        jax.random.normal(jax.random.key(n), (2, 16, heads, 8)) for n, heads in enumerate((4, 2, 2))
    )

    def loss(q, k, v, partition):
        out, stats = attnjax.attention(q, k, v, mask=Causal(), partition=partition, stats=True)
        return jnp.sum(jnp.sin(out)) + jnp.sum(stats.entropy)

    gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)), static_argnums=3)
    expected = gradients(q, k, v, None)
    with jax.set_mesh(mesh):
        found = gradients(q, k, v, partition)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("sizes", [(4, 1, 1, 1), (2, 1, 2, 1), (1, 1, 2, 2)])
def test_kernels_compile_whatever_axes_are_left(sizes):
    mesh = Mesh(
        np.array(topology_devices("v5e")).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 4
    )
    model = nnx.eval_shape(lambda: AttentionPooling(64, rngs=nnx.Rngs(0)))
    assert spread(model, Partition(batch="data", heads="model", sequence="seq")) == 0
    graph, params = nnx.split(model)
    place = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((4, 128, 64), jnp.float32, sharding=place)

    def pool(params, x):
        with attnjax.emulate("tpu", interpret=False):
            return nnx.merge(graph, params)(x)

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        text = jax.jit(pool).lower(params, x).compile().as_text()
    assert "attnjax_forward" in text
