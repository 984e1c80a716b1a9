"""What a partition refuses, and what explain says of one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

import attnjax
import attnjax.nn
from attnjax import Causal, Partition
from attnjax.operands import Operand
from attnjax.scores import ScoreMod


@pytest.fixture
def mesh():
    mesh = jax.make_mesh((2, 4), ("data", "seq"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        yield mesh


def _zeros(B=2, T=16, N=8, K=8, S=None):
    return (
        jnp.zeros((B, T, N, 4)),
        *(jnp.zeros((B, T if S is None else S, K, 4)) for _ in range(2)),
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"sequence": 3},
            "Partition.sequence: expected a mesh axis, a tuple of them or None, got 3",
        ),
        ({"batch": ("data", 1)}, r"Partition.batch: .*got \('data', 1\)"),
        ({"batch": "data", "heads": "data"}, "the mesh axis 'data' is named more than once"),
        ({"heads": ("seq", "seq")}, "the mesh axis 'seq' is named more than once"),
        ({"method": "star"}, "expected one of ring, ulysses, allgather; got 'star'"),
    ],
)
def test_what_is_no_partition(given, message):
    with pytest.raises(ValueError, match=message):
        Partition(**given)


@pytest.mark.parametrize("wrong", ["data", PartitionSpec("data"), {"batch": "data"}])
def test_what_is_given_for_a_partition(wrong):
    with pytest.raises(ValueError, match=r"partition: expected attnjax.Partition\(batch=.*, got"):
        attnjax.attention(*_zeros(), partition=wrong)
    with pytest.raises(ValueError, match=r"partition: expected attnjax.Partition"):
        attnjax.nn.AttentionOptions(partition=wrong)


def test_there_must_be_a_mesh():
    with pytest.raises(ValueError, match=r"no mesh in context.*jax.set_mesh"):
        attnjax.attention(*_zeros(), partition=Partition("data"))


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("given", "shape", "message"),
    [
        (
            {"batch": "rows"},
            {},
            r"Partition.batch: the mesh .* no axis 'rows'; it has data=2, seq=4",
        ),
        ({"batch": "data"}, {"B": 3}, "Partition.batch: B=3 .* 'data' of size 2. Pad the batch"),
        ({"heads": "seq"}, {"N": 6, "K": 6}, "Partition.heads: N=6 .* 'seq' of size 4"),
        ({"sequence": "seq"}, {"T": 18}, "Partition.sequence: T=18 .*Pad .*Lengths"),
        ({"sequence": "seq"}, {"S": 18}, "Partition.sequence: S=18"),
        ({"sequence": ("data", "seq")}, {"T": 12}, "T=12 .* 'data x seq' of size 8"),
        (
            {"sequence": "seq", "method": "ulysses"},
            {"N": 6, "K": 6},
            "N=6 .*heads of its own: use method='ring'",
        ),
    ],
)
def test_what_does_not_fit_the_mesh(mesh, given, shape, message):
    for call in (attnjax.attention, attnjax.explain):
        with pytest.raises(ValueError, match=message):
            call(*_zeros(**shape), partition=Partition(**given))


@pytest.mark.mesh
def test_an_axis_that_a_shard_map_has_taken(mesh):
    def inside(q):
        return attnjax.attention(q, q, q, partition=Partition("data"))

    spec = PartitionSpec("data")
    with pytest.raises(ValueError, match=r"'data' is already divided by the jax.shard_map"):
        jax.shard_map(inside, in_specs=spec, out_specs=spec)(_zeros()[0])


@pytest.mark.mesh
def test_the_reference_in_a_ring(mesh):
    with pytest.raises(NotImplementedError, match=r"reference.*method='allgather'"):
        attnjax.attention(
            *_zeros(), partition=Partition(sequence="seq"), implementation="reference"
        )


@pytest.mark.mesh
def test_an_array_that_cannot_be_cut(mesh):
    class Hidden(ScoreMod):
        def __init__(self):
            self.slopes = jnp.ones(8)

        def operands(self, sizes):
            return (Operand("hidden.slopes", self.slopes, "N"),)

        def apply(self, score, index, *tiles):
            return score * tiles[0]

    with pytest.raises(NotImplementedError, match=r"hidden.slopes of Hidden .*pytree"):
        attnjax.attention(*_zeros(), score_mod=Hidden(), partition=Partition("data"))


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("ring", r"ring over seq, queries in zigzag order: .*of 4 devices visits 1.00 times"),
        ("ulysses", "sequence is exchanged for heads over seq"),
        ("allgather", "keys and values are collected from 4 devices over seq"),
    ],
)
def test_explain(mesh, method, said):
    x = jax.ShapeDtypeStruct((2, 4096, 8, 64), jnp.bfloat16)
    kv = jax.ShapeDtypeStruct((2, 4096, 2, 64), jnp.bfloat16)
    given = {"mask": Causal(), "score_mod": attnjax.relative_bias(jnp.zeros((8, 33)))}
    plan = attnjax.explain(x, kv, kv, **given, partition=Partition("data", None, "seq", method))
    whole = attnjax.explain(x, kv, kv, **given)
    assert plan.implementation == "blockwise"
    assert plan.cost == whole.cost
    text = " | ".join(plan.notes)
    assert "which 8 devices share" in text
    assert re.search(said, text)
    assert re.search(r"a device sends about \d.* MiB forward", text)


@pytest.mark.mesh
def test_explain_counts_as_far_as_it_knows_and_names_idle_axes(mesh):
    x = jax.ShapeDtypeStruct((2, 4096, 8, 64), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((4096,), jnp.int32)
    plan = attnjax.explain(
        x, x, x, mask=Causal() & attnjax.Segments(ids), partition=Partition(sequence="seq")
    )
    text = " | ".join(plan.notes)
    assert "as far as the mask is known while tracing" in text
    assert "repeated along data=2" in text


@pytest.mark.mesh
def test_a_module_over_a_mesh(mesh):
    x = jax.random.normal(jax.random.key(0), (2, 16, 32))

    def out(partition):
        options = attnjax.nn.AttentionOptions(partition=partition, sinks=True)
        module = attnjax.nn.MultiHeadAttention(
            32, num_heads=8, num_kv_heads=2, options=options, rngs=nnx.Rngs(0)
        )
        return module(x, mask=Causal(), stats=True)

    want, got = out(None), out(Partition("data", None, "seq"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=2e-5, atol=2e-5), want, got)
