"""How long a step would take if every part of a device reached its data sheet's peak."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from attnjax.plan.collectives import Collective
from attnjax.plan.targets import Device, Target

ASSUMPTIONS = (
    "compute: all matrix products at the bfloat16 peak, spread evenly over the devices; nothing "
    "for what is not a matrix product",
    "HBM: every instruction of the compiled schedule reads and writes its arrays once, and nothing "
    "for those that the compiler keeps in fast memory; kernels that read a block again read more; "
    "a branch that a device may skip, as those of a ring under a causal mask, counts as taken",
    "network: rings over the links of those dimensions of the torus along which a group lies, both "
    "ways where a dimension closes, one link for a permutation; no latency, no contention",
)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step on one device, each at the peak of the data sheet.

    Attributes:
      compute: matrix products.
      hbm: what is read from memory and written to it.
      network: all collectives.
      exposed: those collectives that the schedule does not overlap.
    """

    compute: float
    hbm: float
    network: float
    exposed: float

    @property
    def overlapped(self) -> float:
        """If everything overlaps."""
        return max(self.compute, self.hbm, self.network)

    @property
    def scheduled(self) -> float:
        """If those collectives overlap that the schedule overlaps, and memory with compute."""
        return max(self.compute, self.hbm, self.network - self.exposed) + self.exposed

    @property
    def total(self) -> float:
        """If nothing overlaps."""
        return self.compute + self.hbm + self.network

    @property
    def bound(self) -> str:
        """Which of the three takes longest."""
        parts = {"compute": self.compute, "HBM": self.hbm, "network": self.network}
        return max(parts, key=lambda name: parts[name])


def roofline(
    target: Target, mesh: Mesh, *, flops: int, moved: int, collectives: Sequence[Collective]
) -> Roofline:
    """Estimates the time of a step.

    Args:
      target: the machine.
      mesh: over all of its devices.
      flops: of a step, on all devices.
      moved: bytes that a device reads and writes in a step.
      collectives: of a step.

    Returns:
      The times, under `ASSUMPTIONS`.
    """
    times = [(seconds(c, mesh, target), c.overlaps) for c in collectives]
    return Roofline(
        flops / target.devices / target.device.flops,
        moved / target.device.hbm_bandwidth,
        sum(time for time, _ in times),
        sum(time for time, overlaps in times if not overlaps),
    )


def seconds(collective: Collective, mesh: Mesh, target: Target) -> float:
    """Returns how long all occurrences of a collective take at the links' peak.

    Sources: Austin et al., "How to Scale Your Model" (2025), on rings and on which dimensions
    close: on 2D slices those of a whole pod's 16 chips, on 3D slices those of whole cubes of 4.

    Args:
      collective: what is exchanged, and between whom.
      mesh: over all devices of the target.
      target: the machine.
    """
    device, sent = target.device, collective.bytes
    if not device.torus:
        return sent / device.link_bandwidth
    at = np.array([mesh.devices.ravel()[n].coords for n in collective.group])
    sizes = [int(n) for n in target.shape.split("x")]
    # Links of each dimension along which the group lies, and how far it reaches there.
    links, reach = [], []
    for dimension, size in enumerate(sizes):
        count = len({*at[:, dimension].tolist()})
        if count > 1:
            links.append(2 if count == size and _closes(device, size) else 1)
            reach.append(count)
    if not links:
        # The halves of a chip talk on the chip, at no less than the speed of a link.
        return sent / device.link_bandwidth
    # Devices that share a chip share its links.
    link = device.link_bandwidth / device.per_chip
    if collective.kind == "collective-permute":
        return sent / link
    if collective.kind == "all-to-all":
        # Half of what one half of the group sends crosses to the other half, along the worst of
        # the dimensions.
        return max(sent * n / (4 * count * link) for n, count in zip(reach, links, strict=True))
    return sent / (sum(links) * link)


def _closes(device: Device, size: int) -> bool:
    return size == 16 if device.torus == 2 else size % 4 == 0
