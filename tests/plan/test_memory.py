import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from attnjax.plan import memory

MESH = AbstractMesh((2, 4), ("data", "fsdp"))


def _shape(shape, dtype, *axes):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(MESH, PartitionSpec(*axes)))


def test_arguments_are_counted_by_kind_and_by_what_a_device_has():
    arguments = {
        "parameters": {"w": _shape((16, 8), jnp.float32, "fsdp"), "b": _shape((8,), jnp.float32)},
        "inputs: tokens": _shape((16, 3), jnp.int32, ("data", "fsdp")),
        "inputs: targets": _shape((16, 3), jnp.int32, "data"),
        "keys": jax.ShapeDtypeStruct((), jax.random.key(0).dtype),
    }
    assert memory.argument_bytes(arguments) == {
        "parameters": 4 * 8 * 4 + 8 * 4,
        "inputs": 2 * 3 * 4 + 8 * 3 * 4,
        "keys": 8,
    }


def test_a_refusal_says_how_much_was_wanted():
    # The words of libtpu 0.0.52.
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (39.22G) exceeds available HBM (15.75G). HLO module: jit_f."
    )
    found = memory.of_refusal(message, {"inputs": _shape((2**20,), jnp.float32)})
    assert found is not None and not found.compiled
    assert found.total == pytest.approx(39.22 * 2**30, rel=1e-9)
    assert sum(found.kinds.values()) == found.total
    assert found.kinds["inputs"] == 4 * 2**20


def test_another_refusal_is_none():
    assert memory.of_refusal("INTERNAL: Mosaic failed to compile TPU kernel", {}) is None
