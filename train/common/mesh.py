"""`--mesh data=2,fsdp=2,model=2,seq=2`: the devices of a run, and what each axis of them splits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh

from attnjax.sharding.laying import lay_mesh

AXES = ("data", "fsdp", "model", "seq")
"""`data` and `fsdp` split the batch, `fsdp` also the parameters; `model` splits attention heads,
the inside of feed-forward layers and their parameters; `seq` splits sequences."""
BATCH_AXES = ("data", "fsdp")
"""The axes that split the batch, in the order of its examples."""


def parse_mesh(text: str) -> dict[str, int]:
    """Reads the sizes of a mesh.

    Args:
        text: `axis=size` pairs, separated by commas; one size may be -1 for the devices left over.

    Returns:
        The size of every axis, in the order of `AXES`; 1 where the text gives none.

    Raises:
        ValueError: the text is something else; names the part that is wrong.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in AXES:
            raise ValueError(
                f"mesh must be axis=size pairs of {', '.join(AXES)}, such as data=2,model=4; got "
                f"{part.strip()!r} in {text!r}"
            )
        if name in sizes:
            raise ValueError(f"mesh must give each axis once, got {name} twice in {text!r}")
        try:
            sizes[name] = int(number)
        except ValueError as error:
            raise ValueError(
                f"mesh must give {name} a whole number, got {number!r} in {text!r}"
            ) from error
        if sizes[name] < 1 and sizes[name] != -1:
            raise ValueError(
                f"mesh must give {name} a size of at least 1, or -1 for the devices left over; got "
                f"{number} in {text!r}"
            )
    if list(sizes.values()).count(-1) > 1:
        raise ValueError(f"mesh must have at most one size of -1, got {text!r}")
    return {name: sizes.get(name, 1) for name in AXES}


def mesh_sizes(text: str, devices: int) -> dict[str, int]:
    """The sizes of a mesh over a number of devices, -1 resolved.

    Args:
        text: as `parse_mesh` takes it.
        devices: how many devices there are, over all processes.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    sizes = parse_mesh(text)
    known = math.prod(size for size in sizes.values() if size != -1)
    if -1 in sizes.values():
        if devices % known:
            raise ValueError(
                f"mesh {text!r}: its sizes multiply to {known}, which must divide the number of "
                f"devices, {devices}"
            )
        return {name: devices // known if size == -1 else size for name, size in sizes.items()}
    if known != devices:
        raise ValueError(
            f"mesh {text!r} is for {known} devices, jax has {devices}; change a size, or give one "
            "of them as -1 for the devices left over"
        )
    return sizes


def build_mesh(text: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh, with all four axes, laid over the devices along their links.

    Args:
        text: as `parse_mesh` takes it.
        devices: all of them by default.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    sizes = mesh_sizes(text, jax.device_count() if devices is None else len(devices))
    return lay_mesh(sizes, devices)


def check_batch(
    sizes: Mapping[str, int], *, batch_size: int, accumulate: int, eval_batch_size: int
) -> None:
    """Raises where the examples of a batch cannot be dealt out evenly.

    Args:
        sizes: of the mesh's axes.
        batch_size: examples per step.
        accumulate: the parts that each batch is split into.
        eval_batch_size: examples per evaluation batch.

    Raises:
        ValueError: a number of examples is no multiple of the devices that split the batch.
    """
    ways = math.prod(sizes[name] for name in BATCH_AXES)
    axes = " times ".join(f"{name}={sizes[name]}" for name in BATCH_AXES)
    parts = f" in {accumulate} parts" if accumulate > 1 else ""
    for name, size, said in (
        ("batch_size", batch_size // accumulate, f"{batch_size}{parts}"),
        ("eval_batch_size", eval_batch_size, f"{eval_batch_size}"),
    ):
        if size % ways:
            raise ValueError(
                f"{name} must be a multiple of the {ways} ways that the mesh splits a batch in "
                f"({axes}), each part of it, too; got {said}"
            )
