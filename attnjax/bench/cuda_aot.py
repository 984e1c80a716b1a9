"""Compiles for an H100 on a machine without one.

It needs the wheels `jax-cuda13-plugin` and `jax-cuda13-pjrt`, both of jax's version,
`nvidia-cuda-nvcc` and `nvidia-nvjitlink`, for cuDNN also `nvidia-cudnn-cu13` and `nvidia-cublas`;
no driver.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_TARGET = Path(__file__).parent / "targets" / "h100.textproto"


def missing() -> str | None:
    """Returns why nothing can be compiled for an H100 here, or None if it can."""
    for name in ("jax_cuda13_plugin", "jax_plugins.xla_cuda13", "nvidia.cu13"):
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return f"{name} is not installed; see the docstring of attnjax.bench.cuda_aot"
    return None


@functools.cache
def _mesh() -> Mesh:
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=_TARGET.read_text(), topology="1x1x1"
    )
    return Mesh(np.array(topology.devices[:1]), ("x",), axis_types=(AxisType.Auto,))


def compile_for_h100(function: Callable[..., Any], *arguments: Any) -> Any:
    """Compiles a function for one H100.

    Args:
      function: what to compile; trace it inside `attnjax.emulate("gpu", interpret=False)`.
      *arguments: arrays, `jax.ShapeDtypeStruct`s or pytrees of them.

    Returns:
      The `jax.stages.Compiled`.
    """
    sharding = NamedSharding(_mesh(), PartitionSpec())
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments
    )
    with jax.sharding.use_abstract_mesh(_mesh().abstract_mesh):
        return jax.jit(function).lower(*shapes).compile()
