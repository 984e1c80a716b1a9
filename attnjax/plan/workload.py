"""What is planned: a function of abstract arguments, which know where they lie on a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, get_args

import jax
from jax.sharding import Mesh

from attnjax.api import explain
from attnjax.masks import Mask
from attnjax.plan.language_model import Remat
from attnjax.plan.targets import Target
from attnjax.sharding.laying import lay_mesh

Change = tuple[str, str, Any]
"""The kind of a change, the option that makes it, and the job with it."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """A function to compile.

    Attributes:
      title: what it is, in a few words.
      function: jitted.
      arguments: its positional arguments in their order, by what they hold: pytrees of
        `ShapeDtypeStruct`s with shardings. What stands before a colon is their kind.
      mesh: the mesh.
      settings: what was asked for.
      parts: the arguments by kind, where one argument holds several kinds; empty otherwise.
      attention: counts the operations of all attention, called where kernels are chosen for the
        target; None leaves it to what the kernels look like.
    """

    title: str
    function: jax.stages.Wrapped
    arguments: Mapping[str, Any]
    mesh: Mesh
    settings: Mapping[str, Any]
    parts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    attention: Callable[[], int] | None = None


class Job(Protocol):
    """What can be planned, in every size and on every mesh."""

    def make(self, mesh: Mesh) -> Workload:
        """Returns what is compiled; raises a ValueError where sizes do not divide."""
        ...

    def takes(self, mesh: Mapping[str, int]) -> bool:
        """Whether its sizes divide by those of a mesh."""
        ...

    def size(self, axis: str) -> int:
        """Returns its size along `batch` or `sequence`; raises a ValueError where it has none."""
        ...

    def granule(self, axis: str, mesh: Mapping[str, int]) -> int:
        """Returns the steps in which that size can grow on a mesh."""
        ...

    def resized(self, axis: str, size: int) -> Job:
        """Returns the same with another size."""
        ...

    def option(self, axis: str) -> str:
        """Returns the option that asks for its size along an axis."""
        ...

    def changes(self, mesh: Mapping[str, int]) -> Iterator[Change]:
        """Yields changes that need less memory for the same batch, the gentlest first."""
        ...


def lighter(batch: int, remat: Remat, accumulate: int) -> Iterator[tuple[str, str | int]]:
    """Yields settings with which a step needs less memory for the same batch.

    Args:
      batch: examples in an update.
      remat: what backward passes keep now.
      accumulate: the parts that the batch is run in now.

    Yields:
      `remat` or `accumulate` and a value, the gentlest first.
    """
    levels = get_args(Remat)
    yield from (("remat", level) for level in levels[levels.index(remat) + 1 :])
    parts = 2 * accumulate
    while batch % parts == 0 and parts <= 32 * accumulate:
        yield "accumulate", parts
        parts *= 2


def make_mesh(target: Target, sizes: Mapping[str, int]) -> Mesh:
    """Lays a mesh over the devices of a target."""
    return lay_mesh(sizes, [*target.topology_devices()])


def attention_flops(q: Any, k: Any, mask: Mask, *, forward: int, backward: int) -> int:
    """Returns the operations of attention calls, as `attnjax.explain` counts them.

    Args:
      q: shape of the queries of the whole call.
      k: that of the keys and values.
      mask: of known arrays.
      forward: how many forward passes there are that no backward pass belongs to.
      backward: how many forward and backward passes there are.
    """
    cost = explain(q, k, k, mask=mask).cost
    return forward * cost.flops_forward + backward * cost.flops_backward
