"""The mesh of a training step: its axes, their sizes as text, and how it lies over devices."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from attnjax.sharding.partition import Method, Partition

AXES = ("data", "fsdp", "model", "seq")
"""`data` and `fsdp` split the batch, `fsdp` also the parameters; `model` splits attention heads,
the inside of feed-forward layers and their parameters; `seq` splits sequences."""
BATCH_AXES = ("data", "fsdp")
"""The axes that split the batch, in the order of its examples."""


def parse_mesh(text: str) -> dict[str, int]:
    """Reads the sizes of a mesh.

    Args:
      text: `axis=size` pairs, separated by commas; one size may be -1, for the devices left over.

    Returns:
      The size of every axis, in the order of `AXES`; 1 where the text gives none.

    Raises:
      ValueError: if the text is something else; names the part that is wrong.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in AXES:
            raise ValueError(
                f"mesh: expected axis=size pairs of {', '.join(AXES)}, such as data=2,model=4; got "
                f"{part.strip()!r} in {text!r}."
            )
        if name in sizes:
            raise ValueError(f"mesh: expected each axis once, got {name} twice in {text!r}.")
        if not re.fullmatch(r"-1|0*[1-9]\d*", number):
            raise ValueError(
                f"mesh: expected a size of at least 1 for {name}, or -1 for the devices left over; "
                f"got {number!r} in {text!r}."
            )
        sizes[name] = int(number)
    if list(sizes.values()).count(-1) > 1:
        raise ValueError(f"mesh: expected at most one size of -1, got {text!r}.")
    return {name: sizes.get(name, 1) for name in AXES}


def mesh_sizes(text: str, devices: int) -> dict[str, int]:
    """Returns the sizes of a mesh over a number of devices, -1 resolved.

    Args:
      text: as `parse_mesh` takes it.
      devices: how many devices there are, over all processes.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices.
    """
    given = parse_mesh(text)
    known = math.prod(size for size in given.values() if size != -1)
    sizes = {name: devices // known if size == -1 else size for name, size in given.items()}
    if math.prod(sizes.values()) != devices:
        raise ValueError(
            f"mesh: expected sizes that multiply to the {devices} devices, got {known} of "
            f"{text!r}; change a size, or give one as -1 where the others divide {devices}."
        )
    return sizes


def lay_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh whose axes the compiler may use as it likes, laid along the devices' links.

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


def partition_on(sizes: Mapping[str, int], method: Method) -> Partition:
    """Returns how attention is spread over a mesh; axes of size 1 are left away.

    Args:
      sizes: of every axis of `AXES`.
      method: how sequences are split.
    """
    batch = tuple(name for name in BATCH_AXES if sizes[name] > 1)
    return Partition(
        batch=batch or None,
        heads="model" if sizes["model"] > 1 else None,
        sequence="seq" if sizes["seq"] > 1 else None,
        method=method,
    )
