import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import attnjax
from attnjax.plan import flops


def _counted(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    return flops.count(jax.make_jaxpr(function)(*arrays))


def test_products_loops_and_branches():
    def layer(x, w):
        return jnp.tanh(x @ w), None

    def run(x, ws, pick):
        x, _ = jax.lax.scan(layer, x, ws)
        return jax.lax.cond(pick[0] > 0, lambda x: x @ ws[0] @ ws[1], lambda x: x @ ws[0], x)

    found = _counted(run, (3, 5), (7, 5, 5), (1,))
    assert (found.others, found.kernels, found.notes) == ((7 + 2) * 2 * 3 * 5 * 5, 0, [])


def test_recomputation_is_counted_again():
    def loss(x, w):
        return jnp.sum(jnp.tanh(x @ w))

    once = 2 * 3 * 5 * 7
    plain = _counted(jax.grad(loss, (0, 1)), (3, 5), (5, 7))
    again = _counted(jax.grad(jax.checkpoint(loss), (0, 1)), (3, 5), (5, 7))
    assert (plain.others, again.others) == (3 * once, 4 * once)


def test_a_loop_of_unknown_length_is_noted():
    def run(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x)

    found = _counted(run, (3, 3))
    assert found.others == 2 * 27 and "decided when it runs" in found.notes[0]


def test_every_device_of_a_shard_map_counts():
    mesh = jax.sharding.AbstractMesh((4,), ("x",), axis_types=(AxisType.Auto,))
    both = PartitionSpec("x")
    with jax.sharding.use_abstract_mesh(mesh):
        found = _counted(
            jax.shard_map(lambda a: a @ a.T, in_specs=both, out_specs=both, check_vma=False),
            (8, 3),
        )
    assert found.others == 4 * 2 * 2 * 2 * 3


def test_convolutions():
    found = _counted(
        lambda x, k: jax.lax.conv_general_dilated(x, k, (1,), "SAME"), (2, 3, 11), (5, 3, 7)
    )
    assert found.others == 2 * (2 * 5 * 11) * 3 * 7


@pytest.mark.parametrize(
    "mask", [attnjax.Full(), attnjax.Causal(), attnjax.Causal() & attnjax.Window(300, 0)]
)
@pytest.mark.parametrize(("T", "N", "K"), [(1024, 4, 2), (640, 3, 3)])
def test_kernels_count_what_explain_says(mask, T, N, K):
    shapes = (2, T, N, 64), (2, T, K, 64), (2, T, K, 64)

    def attend(q, k, v):
        return attnjax.attention(q, k, v, mask=mask)

    def loss(q, k, v):
        return jnp.sum(attend(q, k, v).astype(jnp.float32))

    with attnjax.emulate("tpu", interpret=False):
        arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
        plan = attnjax.explain(*arrays, mask=mask)
        forward, both = (_counted(f, *shapes) for f in (attend, jax.grad(loss, (0, 1, 2))))
    assert plan.implementation == "tpu"
    assert (forward.kernels, both.kernels) == (plan.cost.flops_forward, plan.cost.flops_backward)
    assert np.isclose(forward.others, 0)
