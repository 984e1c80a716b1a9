"""Rings of TPUs: numbers in the interpreter, and what the TPU's compiler makes of a ring."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import attnjax
from attnjax import Causal, Partition, Segments


@pytest.mark.mesh
def test_kernels_in_a_ring_equal_the_call_on_one_device():
    T, N = 32, 4
    q, k, v = (jax.random.normal(jax.random.key(n), (1, T, N, 8)) for n in range(3))
    mask = Causal() & Segments(jnp.arange(T) // 13)

    def loss(implementation, partition, q, k, v):
        out, stats = attnjax.attention(
            q,
            k,
            v,
            mask=mask,
            score_mod=attnjax.alibi(N),
            sinks=jnp.zeros(N),
            stats=True,
            partition=partition,
            implementation=implementation,
        )
        total = jnp.sum(jnp.sin(out)) + jnp.sum(stats.entropy) + jnp.sum(stats.logsumexp)
        return total, (out, stats)

    def run(*how):
        grad = jax.grad(lambda *x: loss(*how, *x), argnums=(0, 1, 2), has_aux=True)
        return jax.jit(grad)(q, k, v)

    want = run("blockwise", None)
    mesh = jax.make_mesh((2,), ("seq",), devices=jax.devices()[:2], axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh), attnjax.emulate("tpu"):
        got = run("tpu", Partition(sequence="seq"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=3e-5, atol=3e-5), got, want)


@pytest.mark.parametrize("backward", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_transfers_run_beside_kernels(backward):
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install libtpu")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4")
    devices = np.array(topology.devices).reshape(2, 8)
    mesh = Mesh(devices, ("data", "seq"), axis_types=(AxisType.Auto,) * 2)
    place = NamedSharding(mesh, PartitionSpec("data", "seq"))
    x = jax.ShapeDtypeStruct((2, 16384, 2, 128), jnp.bfloat16, sharding=place)

    def loss(q, k, v):
        partition = Partition("data", None, "seq")
        return jnp.sum(attnjax.attention(q, k, v, mask=Causal(), partition=partition))

    run = jax.grad(loss, argnums=(0, 1, 2)) if backward else loss
    abstract = jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
    with abstract, attnjax.emulate("tpu", interpret=False):
        text = jax.jit(run).lower(x, x, x).compile().as_text()
    assert "all-gather" not in text
    rings = [found for found in _schedules(text) if "start" in found and found[0] == "in a loop"]
    assert len(rings) == (2 if backward else 1)
    for found in rings:
        # Two kernels in each step, both with transfers on their way.
        assert found.count("kernel") == 2
        under_way = 0
        for event in found[1:]:
            under_way += {"start": 1, "done": -1, "kernel": 0}[event]
            assert event != "kernel" or under_way >= 2
        assert under_way == 0


def _schedules(text: str) -> list[list[str]]:
    """Returns starts and ends of transfers, and kernels, of each computation, in their order."""
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"(?:ENTRY )?(%[\w.\-]+) \(.*\{$", line):
            lines = bodies.setdefault(match[1], [])
        elif line.startswith("  "):
            lines.append(line.strip())
    loops = set(re.findall(r"body=(%[\w.\-]+)", text))

    def has_kernel(line: str) -> bool:
        called = re.findall(r"(?:body|calls|to_apply)=(%[\w.\-]+)", line)
        return "tpu_custom_call" in line or any(
            has_kernel(inner) for name in called for inner in bodies.get(name, ())
        )

    found = []
    for name, own in bodies.items():
        events = ["in a loop" if name in loops else "once"]
        for line in own:
            if match := re.match(r"%collective-permute-(start|done)[\w.]* =", line):
                events.append(match[1])
            elif has_kernel(line):
                events.append("kernel")
        found.append(events)
    return found
