"""Machines by name: what their compiler needs to know, and what their public data sheets say.

A name is that of Cloud TPU's accelerator types. They count chips for v5e and v6e, which have one
TensorCore each, and TensorCores for v5p and tpu7x, which have two: `v5p-512` has 256 chips. JAX
shows one device per chip, but two on tpu7x.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.util
import math
import os
from typing import Any

import jax
from jax.experimental import topologies

from attnjax.bench import cuda_aot

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Device:
    """What a program sees as one device.

    Attributes:
      name: the generation.
      hbm: bytes of memory that a program may use: of a TPU what its compiler says when a program
        takes more, which is a little less than the data sheet's.
      flops: matrix products in bfloat16, FLOP/s at the peak.
      hbm_bandwidth: bytes per second.
      link_bandwidth: bytes per second of one link to a neighbour, in one direction.
      torus: number of dimensions of the network; each has two links. 0 for a switch, to which
        there is one link.
      cores: how much of the number in a target's name one device stands for.
      per_chip: devices that share a chip and its links.
      per_host: devices of one host.
      source: where the numbers are from.
    """

    name: str
    hbm: int
    flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    torus: int
    cores: int
    per_chip: int
    per_host: int
    source: str


# Peaks, bandwidths and sizes of chips are those of the pages named as sources, as of 2026. A chip's
# bandwidth to others is given there for both directions and all its links: two for each dimension.
DEVICES = {
    "v5e": Device(
        "v5e", int(15.75 * GIB), 197e12, 819e9, 400e9 / 2 / 4, 2, 1, 1, 4,
        "cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB, 819 GB/s, 400 GB/s over 4 links",
    ),
    "v6e": Device(
        "v6e", int(31.24 * GIB), 918e12, 1638e9, 800e9 / 2 / 4, 2, 1, 1, 4,
        "cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 32 GB, 1638 GB/s, 800 GB/s over 4 links",
    ),
    "v5p": Device(
        "v5p", int(95.73 * GIB), 459e12, 2765e9, 1200e9 / 2 / 6, 3, 2, 1, 4,
        "cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GiB, 2765 GB/s, 1200 GB/s over 6 links",
    ),
    "tpu7x": Device(
        "tpu7x", int(94.74 * GIB), 2307e12 / 2, 7380e9 / 2, 1200e9 / 2 / 6, 3, 1, 2, 8,
        "docs.cloud.google.com/tpu/docs/tpu7x: a chip of two devices has 2307 TFLOP/s, 192 GiB, "
        "7380 GB/s, 1200 GB/s over 6 links",
    ),
    "h100": Device(
        "h100", 80 * 10**9, 989e12, 3350e9, 450e9, 0, 1, 1, 8,
        "NVIDIA H100 SXM data sheet: 989 TFLOP/s dense, 80 GB, 3.35 TB/s, NVLink 900 GB/s",
    ),
}  # fmt: skip

# Shapes of slices by number of chips, from the same pages.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    1024: "8x8x16",
    2048: "8x16x16",
    4096: "16x16x16",
    6144: "16x16x24",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine to plan for.

    Attributes:
      name: as it was asked for.
      device: each of its devices.
      shape: chips along each dimension of its network, such as `4x8x8`.
      devices: how many devices it has.
    """

    name: str
    device: Device
    shape: str
    devices: int

    @property
    def chips(self) -> int:
        """How many chips it has."""
        return self.devices // self.device.per_chip

    @property
    def hosts(self) -> int:
        """How many hosts it has; slices of at most one host's chips have one."""
        return -(-self.devices // self.device.per_host)

    def describe(self) -> str:
        """One line: the number of chips, devices and hosts and how they are wired."""
        cores = self.devices * self.device.cores
        counted = f" ({cores} TensorCores)" if cores != self.chips else ""
        hosts = "1 host" if self.hosts == 1 else f"{self.hosts} hosts"
        wires = f"{self.shape} torus" if self.device.torus else "one NVLink switch"
        return (
            f"{self.name}: {self.chips} chips{counted}, {self.devices} devices, {hosts}, "
            f"{wires}; per device {self.device.hbm / GIB:.2f} GiB for a program, "
            f"{self.device.flops / 1e12:.0f} TFLOP/s, {self.device.hbm_bandwidth / 1e9:.0f} GB/s"
        )

    def topology_devices(self) -> Any:
        """Returns the devices as the compiler sees them.

        Raises:
          RuntimeError: if the compiler is not installed; it says what to install.
        """
        return _devices(self.device.name, self.shape, self.devices)


def names() -> list[str]:
    """Returns the names of all targets."""
    return [*_targets()]


def find(name: str) -> Target:
    """Returns a target by its name.

    Args:
      name: one of `names()`.

    Raises:
      ValueError: if there is none of that name; it says which are near.
    """
    known = _targets()
    if name in known:
        return known[name]
    family, _, count = name.partition("-")
    alike = [x for x in known if x.startswith(f"{family}-")]
    if alike and count.isdigit():
        alike = sorted(
            alike, key=lambda x: abs(math.log(int(x.split("-")[1]) / max(int(count), 1)))
        )
        near = sorted(alike[:3], key=[*known].index)
    else:
        near = alike or difflib.get_close_matches(name, known, n=4, cutoff=0.3) or [*known]
    counts = f" {family} counts TensorCores, two to a chip." if family in ("v5p", "tpu7x") else ""
    raise ValueError(f"target: there is no {name!r}; near it: {', '.join(near)}.{counts}")


@functools.cache
def _targets() -> dict[str, Target]:
    found = []
    for family, shapes in (("v5e", _FLAT), ("v6e", _FLAT), ("v5p", _CUBES), ("tpu7x", _CUBES)):
        device = DEVICES[family]
        for chips, shape in shapes.items():
            devices = chips * device.per_chip
            found.append(Target(f"{family}-{devices * device.cores}", device, shape, devices))
    for count in (1, 2, 4, 8):
        found.append(Target(f"h100x{count}", DEVICES["h100"], str(count), count))
    return {target.name: target for target in found}


@functools.cache
def _devices(family: str, shape: str, count: int) -> Any:
    if family == "h100":
        if why := cuda_aot.missing():
            version = jax.__version__
            raise RuntimeError(
                f"h100x{count} needs NVIDIA's compiler ({why}): pip install --no-deps "
                f"jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version} nvidia-cuda-nvcc "
                "nvidia-nvjitlink nvidia-cudnn-cu13 nvidia-cublas"
            )
        return cuda_aot.topology(count).devices
    if importlib.util.find_spec("libtpu") is None:
        raise RuntimeError(f"{family} needs the TPU compiler: pip install libtpu")
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    return topologies.get_topology_desc(platform="tpu", topology_name=f"{family}:{shape}").devices


# Without these libtpu looks for a TPU of this machine, takes a lock as if it had one, and says at
# length on stderr that it found none.
_QUIET = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
