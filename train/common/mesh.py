"""`--mesh data=2,fsdp=2,model=2,seq=2`: over the devices at hand, and the batches on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh

from attnjax.sharding.laying import BATCH_AXES, lay_mesh, mesh_sizes


def build_mesh(text: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh, with all four axes, laid over the devices along their links.

    Args:
        text: as `attnjax.sharding.laying.parse_mesh` takes it.
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
