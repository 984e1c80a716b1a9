"""How a call is spread over a mesh: what the caller asks for, and what that means on the mesh."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

import jax
from jax.sharding import AxisType

Axes = str | tuple[str, ...] | None
Method = Literal["ring", "ulysses", "allgather"]


@dataclasses.dataclass(frozen=True)
class Partition:
    """Which mesh axes an attention call is spread over, and how the sequence is.

    The names are axes of the mesh in context, `jax.set_mesh(mesh)`. Masks, score_mods, dropout and
    statistics see positions in the whole sequence, so the result is that of the unsharded call.
    Devices along axes of the mesh that are not named do the same work.

    Args:
      batch: axis or axes that B is divided over, or None.
      heads: axis or axes that the query heads are divided over, and the key heads as far as there
        are enough.
      sequence: axis or axes that T and S are divided over.
      method: what devices exchange along `sequence`. `ring` passes keys and values around while
        computing, and needs the memory of one device's share only; queries are re-ordered where the
        mask would leave devices idle otherwise. `ulysses` exchanges sequence for heads, needs as
        many query heads as devices, and the memory of a whole sequence for its heads. `allgather`
        collects all keys and values on every device.

    Raises:
      ValueError: if a name is no string, is given twice, or the method is unknown.

    Sources: Liu et al., "Ring Attention with Blockwise Transformers" (2023); Jacobs et al.,
    "DeepSpeed Ulysses" (2023); Brandon et al., "Striped Attention" (2023) for the idle devices.
    """

    batch: Axes = None
    heads: Axes = None
    sequence: Axes = None
    method: Method = "ring"

    def __post_init__(self) -> None:
        for name in ("batch", "heads", "sequence"):
            value = getattr(self, name)
            if not all(isinstance(a, str) for a in names(value)):
                raise ValueError(
                    f"Partition.{name}: expected a mesh axis, a tuple of them or None, "
                    f"got {value!r}."
                )
        every = [a for name in ("batch", "heads", "sequence") for a in names(getattr(self, name))]
        for axis in every:
            if every.count(axis) > 1:
                raise ValueError(f"Partition: the mesh axis {axis!r} is named more than once.")
        if self.method not in get_args(Method):
            known = ", ".join(get_args(Method))
            raise ValueError(f"Partition.method: expected one of {known}; got {self.method!r}.")


def names(axes: Any) -> tuple[Any, ...]:
    """Returns an entry of a `Partition` as a tuple."""
    if axes is None:
        return ()
    return axes if isinstance(axes, tuple) else (axes,)


@dataclasses.dataclass(frozen=True)
class Spread:
    """A `Partition` on a mesh.

    Attributes:
      batch, heads, sequence: mesh axes.
      sizes: number of devices along each of these three.
      method: as in `Partition`.
    """

    batch: tuple[str, ...]
    heads: tuple[str, ...]
    sequence: tuple[str, ...]
    sizes: tuple[int, int, int]
    method: Method

    @property
    def axes(self) -> tuple[str, ...]:
        """All mesh axes that are named."""
        return self.batch + self.heads + self.sequence

    @property
    def ring(self) -> bool:
        """Whether keys and values travel from device to device."""
        return bool(self.sequence) and self.method == "ring"

    @property
    def exchanged(self) -> bool:
        """Whether devices exchange their share of the sequence for a share of the heads."""
        return bool(self.sequence) and self.method == "ulysses"

    @property
    def rows(self) -> tuple[tuple[str, ...], int]:
        """Mesh axes that divide the query heads while they are computed, and their devices."""
        _, heads, devices = self.sizes
        if self.exchanged:
            return self.heads + self.sequence, heads * devices
        return self.heads, heads

    @property
    def times(self) -> tuple[str, ...]:
        """Mesh axes that divide the queries while they are computed."""
        return () if self.exchanged else self.sequence


def check_partition(partition: Any) -> Partition:
    """Returns a partition, or raises a ValueError that says what it must be."""
    if isinstance(partition, Partition):
        return partition
    raise ValueError(
        "partition: expected attnjax.Partition(batch=..., heads=..., sequence=...) or None, "
        f"got {partition!r}."
    )


def spread(partition: Partition, sizes: dict[str, int]) -> Spread:
    """Finds a partition's axes on the mesh in context.

    Args:
      partition: what the caller asks for.
      sizes: axis sizes B, T, S, N and K of the call.

    Returns:
      The axes and their sizes.

    Raises:
      ValueError: if there is no mesh, it lacks an axis, an axis belongs to a `jax.shard_map` that
        the call is inside of, or a size does not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        raise ValueError(
            "partition: there is no mesh in context. Put the call, or the jitted function that "
            "makes it, into `with jax.set_mesh(mesh):`."
        )
    counts = []
    for name in ("batch", "heads", "sequence"):
        for axis in names(getattr(partition, name)):
            if axis not in mesh.shape:
                known = ", ".join(f"{a}={n}" for a, n in mesh.shape.items())
                raise ValueError(
                    f"Partition.{name}: the mesh in context has no axis {axis!r}; it has {known}."
                )
            if dict(zip(mesh.axis_names, mesh.axis_types, strict=True))[axis] == AxisType.Manual:
                raise ValueError(
                    f"Partition.{name}: the mesh axis {axis!r} is already divided by the "
                    "jax.shard_map around this call. Leave it away, or call from outside."
                )
        counts.append(math.prod(mesh.shape[a] for a in names(getattr(partition, name))))
    found = Spread(
        names(partition.batch),
        names(partition.heads),
        names(partition.sequence),
        (counts[0], counts[1], counts[2]),
        partition.method,
    )
    _check_sizes(found, sizes)
    return found


def _check_sizes(found: Spread, sizes: dict[str, int]) -> None:
    batch, heads, sequence = found.sizes
    checks = [
        ("batch", found.batch, "B", batch, "Pad the batch"),
        ("heads", found.heads, "N", heads, "Use fewer devices along it"),
        ("sequence", found.sequence, "TS", sequence, "Pad the sequence and mask with Lengths"),
    ]
    if found.exchanged:
        remedy = "method='ulysses' gives every device heads of its own: use method='ring'"
        checks.append(("sequence", found.rows[0], "N", found.rows[1], remedy))
    for name, axes, letters, count, remedy in checks:
        for letter in letters:
            if sizes[letter] % count:
                where = " x ".join(axes)
                raise ValueError(
                    f"Partition.{name}: {letter}={sizes[letter]} does not divide over the mesh "
                    f"axis {where!r} of size {count}. {remedy}."
                )
