"""Plans one workload on one target: compiles it, and puts together what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from attnjax.plan import collectives, roofline
from attnjax.plan.compiling import compile_for
from attnjax.plan.memory import Memory
from attnjax.plan.targets import Target
from attnjax.plan.traffic import traffic
from attnjax.plan.workload import Job, make_mesh

UNKNOWN = (
    "real clocks, and what of the peaks kernels and fusions reach: measure on the device",
    "the host: reading, preparing and transferring inputs, dispatch, checkpoints",
    "the network between slices and hosts outside of a slice: one slice is planned",
    "memory that the runtime keeps, and fragmentation by other programs beside the step",
    "what another version of the compiler, or other flags, would do",
)


@dataclasses.dataclass(frozen=True)
class Request:
    """What to plan; the search and the fixes make others from it.

    Attributes:
      target: the machine.
      mesh: the sizes of the mesh's axes.
      job: what runs on it.
      options: options of the compiler.
    """

    target: Target
    mesh: Mapping[str, int]
    job: Job
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def replace(self, **changes: Any) -> Request:
        """Returns the same with other fields."""
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step would need and cost.

    Attributes:
      request: what was planned.
      title: the workload's.
      settings: the workload's.
      mesh: the mesh.
      memory: of a device.
      flops: matrix products of a step, on all devices.
      attention: those of them in kernels.
      collectives: None where there is no program to read them from.
      roofline: None likewise.
      notes: what was not known.
      seconds: how long tracing and compiling took.
    """

    request: Request
    title: str
    settings: Mapping[str, Any]
    mesh: Mesh
    memory: Memory
    flops: int
    attention: int
    collectives: list[collectives.Collective] | None
    roofline: roofline.Roofline | None
    notes: tuple[str, ...]
    seconds: float

    @property
    def headroom(self) -> int:
        """Bytes of a device that are left; negative where it does not fit."""
        return self.request.target.device.hbm - self.memory.total

    @property
    def fits(self) -> bool:
        """Whether it fits the memory that a program may use."""
        return self.memory.compiled and self.headroom >= 0


def make_plan(request: Request) -> Plan:
    """Compiles what is asked for and describes it.

    Raises:
      ValueError: if the job does not fit the mesh.
      RuntimeError: if the compiler is missing, or fails on something other than memory.
    """
    mesh = make_mesh(request.target, request.mesh)
    workload = request.job.make(mesh)
    compiled = compile_for(request.target, workload, request.options)
    found = bound = None
    notes = [*compiled.flops.notes]
    if compiled.program is None:
        notes.append(f"no collectives and no times: {compiled.missing}")
    else:
        found = collectives.find(compiled.program, mesh)
        bound = roofline.roofline(
            request.target,
            mesh,
            flops=compiled.flops.total,
            moved=traffic(compiled.program),
            collectives=found,
        )
        if unknown := compiled.program.times()[1]:
            notes.append(
                f"{len(unknown)} loops of the program do not say how often they run; what is in "
                "them is counted once"
            )
    return Plan(
        request,
        workload.title,
        workload.settings,
        mesh,
        compiled.memory,
        compiled.flops.total,
        compiled.flops.kernels,
        found,
        bound,
        tuple(notes),
        compiled.seconds,
    )
