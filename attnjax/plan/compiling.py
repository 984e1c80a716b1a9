"""Compiles a workload for a machine that is not here."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from attnjax.plan import hlo, memory
from attnjax.plan.flops import Flops, count
from attnjax.plan.targets import Target
from attnjax.plan.workload import Workload
from attnjax.platform import emulate


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What came of compiling a workload.

    Attributes:
      memory: what it needs of a device.
      flops: what it computes, on all devices.
      program: the scheduled program; None where it does not fit, or its text is not to be had.
      missing: why there is no program; empty if there is one.
      seconds: how long tracing and compiling took.
    """

    memory: memory.Memory
    flops: Flops
    program: hlo.Program | None
    missing: str
    seconds: float


def compile_for(
    target: Target, workload: Workload, options: Mapping[str, Any] | None = None
) -> Compiled:
    """Compiles a workload for a target.

    Args:
      target: the machine.
      workload: made for a mesh of the target's devices.
      options: options of the compiler, as in `jax.stages.Lowered.compile`.

    Returns:
      What came of it, also where it needs more memory than there is.

    Raises:
      RuntimeError: if the compiler refuses it for another reason.
    """
    start, parts = time.monotonic(), workload.parts or workload.arguments
    with building_for(target, workload), tempfile.TemporaryDirectory() as folder:
        traced = workload.function.trace(*workload.arguments.values())
        flops = count(traced.jaxpr)
        if workload.attention is not None:
            flops = dataclasses.replace(flops, kernels=workload.attention(), notes=[])
        lowered = traced.lower()
        # The text that jax itself would give is read back from a form that libtpu 0.0.52 cannot
        # read where collectives run on SparseCores.
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            compiled = lowered.compile(compiler_options={**dump, **(options or {})})
        except jax.errors.JaxRuntimeError as error:
            refused = memory.of_refusal(str(error), parts)
            if refused is None:
                raise RuntimeError(
                    f"{target.name}: the compiler failed on {workload.title}: {error}"
                ) from error
            why = "it does not fit, so there is no program"
            return Compiled(refused, flops, None, why, time.monotonic() - start)
        text = next(pathlib.Path(folder).glob("*jit_*after_optimizations.txt"), None)
        program = None if text is None else hlo.parse(text.read_text())
    found = memory.of_compiled(compiled, parts, program)
    why = "" if program else "the compiler did not write it down"
    return Compiled(found, flops, program, why, time.monotonic() - start)


@contextlib.contextmanager
def building_for(target: Target, workload: Workload) -> Iterator[None]:
    """Compiles what is inside for the target's devices, with the workload's mesh in context."""
    with (
        warnings.catch_warnings(),
        emulate("tpu" if target.device.torus else "gpu", interpret=False),
        jax.sharding.use_abstract_mesh(workload.mesh.abstract_mesh),
    ):
        # A cache cannot give back what was compiled for a machine that is not here.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
        yield
