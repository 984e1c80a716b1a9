"""The process that compiles for a TPU: flags of its compiler are read once in a process's life."""

from __future__ import annotations

import collections
import importlib
import itertools
import json
import pathlib
import re
import runpy
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from attnjax.bench.static import capture, listing, machine

_VMEM = re.compile(r"space=vmem, size = (0x[0-9a-f]+)")


def main(path: str) -> int:
    """Runs the jobs of a file and appends what came of each to another."""
    order = json.loads(pathlib.Path(path).read_text())
    topology = topologies.get_topology_desc(platform="tpu", topology_name=order["topology"])
    mesh = Mesh(np.array(topology.devices[:1]), ("x",), axis_types=(AxisType.Auto,))
    dump = pathlib.Path(order["dump"])
    for job in order["jobs"]:
        answer = {"job": job, **_answer(job, mesh, dump)}
        with open(order["answers"], "a") as answers:
            answers.write(json.dumps(answer) + "\n")
    return 0


def _answer(job: dict[str, Any], mesh: Mesh, dump: pathlib.Path) -> dict[str, Any]:
    start = time.perf_counter()
    before = set(dump.iterdir())
    kernels: list[dict[str, Any]] = []
    temporaries, error = 0, None
    try:
        function, arguments = _maker(job["maker"])(**job["options"])
        compiled = compile_for(mesh, function, arguments)
        analysis: Any = compiled.memory_analysis()
        temporaries = analysis.temp_size_in_bytes
        seconds = time.perf_counter() - start
        filled = [
            jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x
            for x in jax.tree.leaves(arguments)
        ]
        filled = jax.tree.unflatten(jax.tree.structure(arguments), filled)
        new = sorted(set(dump.iterdir()) - before)
        kernels = _kernels(capture.calls(function, *filled), new)
    except Exception as caught:
        # Compilers raise whatever they like; the one who asked sees all of it.
        seconds = time.perf_counter() - start
        error = f"{type(caught).__name__}: {caught}"[:2000]
    return {"kernels": kernels, "temporaries": temporaries, "seconds": seconds, "error": error}


def _maker(place: str) -> Any:
    module, name = place.rsplit(":", 1)
    if module.endswith(".py"):
        return runpy.run_path(module)[name]
    return getattr(importlib.import_module(module), name)


def compile_for(mesh: Mesh, function: Any, arguments: Any) -> Any:
    """Compiles a function for the device of a mesh, which need not be here."""
    sharding = NamedSharding(mesh, PartitionSpec())
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments
    )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.jit(function).lower(*shapes).compile()


def _kernels(calls: list[capture.Call], files: list[pathlib.Path]) -> list[dict[str, Any]]:
    """Returns the profile of each call, by its listing."""
    left = collections.deque(calls)
    kernels = []
    for path in files:
        stamp, name = path.name.split("-", 1)
        base = re.match(r"(.*)-\d+-final_bundles\.txt$", name)
        if base is None:
            continue
        code = listing.read(path.read_text(errors="replace"))
        same = [x for x in left if dict(enumerate(x.operands)) == code.operands]
        if not same:
            continue
        named = (x for x in same if x.name is not None and base[1].startswith(x.name))
        call = next(named, same[0])
        if any(not _alike(call, x) for x in same if x.name == call.name):
            raise NotImplementedError(f"kernels {call.name!r} can't be told apart.")
        left.remove(call)
        kernels.append(_kernel(call, code, path.parent, f"{stamp}-{base[1]}"))
    if left:
        raise NotImplementedError(f"the compiler listed no kernel {[x.name for x in left]}.")
    return kernels


def _alike(one: capture.Call, other: capture.Call) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(one.scalars, other.scalars, strict=True))


def _kernel(
    call: capture.Call, code: listing.Listing, folder: pathlib.Path, prefix: str
) -> dict[str, Any]:
    times = machine.Machine(code).run(call.scalars)
    (utilisation,) = folder.glob(f"{_escaped(prefix)}-*utilization.txt")
    names, capacity, rows = _units(utilisation.read_text())
    if len(rows) != len(times):
        raise NotImplementedError(f"{len(rows)} rows of utilisation for {len(times)} bundles.")
    cycles = int(times.sum())
    units = dict(zip(names, (times @ rows).tolist(), strict=True))
    (allocations,) = folder.glob(f"{_escaped(prefix)}-*pre-finalize*.txt")
    stretches = []
    for count, group in itertools.groupby(range(len(times)), key=lambda k: int(times[k])):
        lines = rows[list(group)]
        stretches.append(
            {
                "times": count,
                "bundles": len(lines),
                "units": dict(zip(names, lines.sum(0).tolist(), strict=True)),
            }
        )
    return {
        "name": call.name or prefix.split("-", 1)[1],
        "cycles": cycles,
        "bundles": len(times),
        "grid": call.grid,
        "units": units,
        "busy": {
            n: round(units[n] / (cycles * c), 4) for n, c in zip(names, capacity, strict=True)
        },
        "spill_stores": units["VSTORE:SPILL"],
        "spill_loads": units["VLOAD:FILL"],
        "vmem": sum(int(size, 16) for size in _VMEM.findall(allocations.read_text())),
        "stretches": stretches,
    }


def _escaped(prefix: str) -> str:
    return re.sub(r"([\[\]*?])", r"[\1]", prefix)


def _units(text: str) -> tuple[list[str], list[int], np.ndarray]:
    """Returns the units, how many operations each can start in a bundle, and those of each one."""
    head, body = text.split("== UTILIZATION:")
    _, names, capacity = head.strip().splitlines()
    rows = np.array([[int(x) for x in line.split()] for line in body.strip().splitlines()])
    return [x.strip() for x in names.split(",")], [int(x) for x in capacity.split()], rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
