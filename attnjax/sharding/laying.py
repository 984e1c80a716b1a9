"""Lays a mesh over devices, along the links between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh


def lay_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh whose axes the compiler may use as it likes.

    Where whole dimensions of the devices' network do not make up its axes, `jax.make_mesh` gives
    up; here they are split then.

    Args:
      sizes: number of devices along each axis, by name.
      devices: all of them by default; they need not be here.

    Returns:
      The mesh, with axes of type Auto.
    """
    # jax would make the axes explicit, and refuse every operation whose sharding is not written.
    kinds, shape, names = (AxisType.Auto,) * len(sizes), tuple(sizes.values()), tuple(sizes)
    try:
        return jax.make_mesh(shape, names, axis_types=kinds, devices=devices)
    except NotImplementedError:
        laid = mesh_utils.create_device_mesh(
            shape,
            jax.devices() if devices is None else devices,
            allow_split_physical_axes=True,
        )
        return Mesh(laid, names, axis_types=kinds)
