"""Calls over a mesh under transformations, on both kinds of axes, and beside broken numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import attnjax
from attnjax import Causal, Partition

pytestmark = pytest.mark.mesh
PARTITION = Partition("data", None, "seq")


def mesh_of(kind=AxisType.Auto):
    return jax.make_mesh((2, 4), ("data", "seq"), axis_types=(kind,) * 2)


def attend(x, partition=None):
    return attnjax.attention(x, x, x, mask=Causal(), partition=partition)


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(0), (2, 16, 2, 8))


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("method", ["ring", "ulysses", "allgather"])
def test_explicit_axes(x, method, sharded):
    x = jnp.concatenate([x, x], axis=2)
    want = jax.grad(lambda x: jnp.sum(attend(x) ** 2))(x)
    mesh, partition = mesh_of(AxisType.Explicit), Partition("data", None, "seq", method)
    with jax.set_mesh(mesh):
        given = x
        if sharded:
            given = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data", "seq")))
        got = jax.jit(jax.grad(lambda x: jnp.sum(attend(x, partition) ** 2)))(given)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_scan_of_checkpoint(x):
    def loss(x, partition):
        step = jax.checkpoint(lambda x, _: (attend(x, partition), None))
        return jnp.sum(jax.lax.scan(step, x, None, length=2)[0] ** 2)

    want = jax.grad(loss)(x, None)
    with jax.set_mesh(mesh_of()):
        got = jax.jit(jax.grad(lambda x: loss(x, PARTITION)))(x)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_vmap(x):
    both = jnp.stack([x, 0.5 * x])
    with jax.set_mesh(mesh_of()):
        got = jax.vmap(lambda x: attend(x, PARTITION))(both)
    np.testing.assert_allclose(got, jax.vmap(attend)(both), atol=2e-6)


def test_a_nan_reaches_the_rows_that_may_see_it_and_no_other(x):
    def grad(x, partition):
        def loss(x):
            out = attend(x, partition)
            return jnp.sum(jnp.where(jnp.isnan(out), 0, out)), out

        return jax.jit(jax.grad(loss, has_aux=True))(x)

    broken = x.at[0, 9, 1, 3].set(jnp.nan)
    want = grad(broken, None)
    assert np.isnan(want[1][0, 9:, 1]).all()
    with jax.set_mesh(mesh_of()):
        got = grad(broken, PARTITION)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(np.isnan(got[1]), np.isnan(want[1]))


def test_the_eager_call_compiles_once(x):
    with jax.set_mesh(mesh_of()):
        attend(x, PARTITION)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("attnjax.sharding.context.take_apart", _fail)
            attend(x, PARTITION)


def _fail(problem):
    raise AssertionError("traced anew")
