"""Compiles calls for TPUs that are not here, with the TPU's own compiler (the package libtpu)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import attnjax

TARGETS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}

Arrays = dict[str, jax.ShapeDtypeStruct]


def lower_for(target: str, function: Callable[[Any], Any], arrays: Arrays) -> Any:
    """Lowers a function of arrays by name for one core of a TPU.

    Args:
      target: one of `TARGETS`.
      function: the function.
      arrays: their shapes and dtypes.

    Returns:
      A `jax.stages.Lowered`, which still is to be compiled.
    """
    mesh = _mesh(target)
    place = NamedSharding(mesh, PartitionSpec())
    given = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for n, x in arrays.items()}
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.jit(function).lower(given)


@functools.cache
def topology_devices(target: str) -> Any:
    """Returns the devices of a target, which are not here."""
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install libtpu")
    return topologies.get_topology_desc(platform="tpu", topology_name=TARGETS[target]).devices


@functools.cache
def _mesh(target: str) -> Mesh:
    return Mesh(np.array(topology_devices(target)[:1]), ("one",), axis_types=(AxisType.Auto,))


def with_gradients(attend: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns a function that also gives the gradients of all float arrays, built for a TPU.

    Args:
      attend: from arrays by name to the output, and the statistics or None.
    """

    def run(arrays: dict[str, jax.Array]) -> Any:
        floats = {n: x for n, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}

        def loss(floats: dict[str, jax.Array]) -> Any:
            out, stats = attend(arrays | floats)
            total = jnp.sum(jnp.square(out.astype(jnp.float32)))
            if stats is not None:
                total += jnp.sum(stats.entropy) + jnp.sum(jnp.sin(stats.logsumexp))
            return total, (out, stats)

        with attnjax.emulate("tpu", interpret=False):
            return jax.grad(loss, has_aux=True)(floats)

    return run
