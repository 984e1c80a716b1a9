"""Compiles for an H100 on a machine without one, and says what the kernels take of it.

`python -m attnjax.bench.cuda_aot` compiles the GPU kernels, forward and backward, for chosen calls,
and prints registers, spills and the assembler's warnings of each kernel. It fails if a register is
spilled or a matrix product is serialised.

It needs the wheels `jax-cuda13-plugin` and `jax-cuda13-pjrt`, both of jax's version,
`nvidia-cuda-nvcc` and `nvidia-nvjitlink`, for cuDNN also `nvidia-cudnn-cu13` and `nvidia-cublas`;
no driver. From jax 0.12 on leave out `nvidia-nvjitlink`: kernels that are assembled by it keep the
registers that they start with, whatever they ask for (C7504), and spill; `ptxas` heeds them.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import attnjax

_TARGET = Path(__file__).parent / "targets" / "h100.textproto"


def missing() -> str | None:
    """Returns why nothing can be compiled for an H100 here, or None if it can."""
    for name in ("jax_cuda13_plugin", "jax_plugins.xla_cuda13", "nvidia.cu13"):
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return f"{name} is not installed; see the docstring of attnjax.bench.cuda_aot"
    return None


def spills_by_linking() -> str | None:
    """Returns why kernels would spill here that do not elsewhere, or None."""
    if jax.__version_info__ < (0, 12):
        return None
    found = importlib.util.find_spec("nvidia.cu13")
    folders = [] if found is None else found.submodule_search_locations or []
    if any(list(Path(folder).glob("lib/libnvJitLink.so*")) for folder in folders):
        return (
            f"jax {jax.__version__} assembles by libnvJitLink, which ignores how kernels share "
            "their registers: uninstall nvidia-nvjitlink for this"
        )
    return None


def topology(devices: int = 1) -> Any:
    """Returns a host of H100s that is not here, to compile for.

    Args:
      devices: how many it has.

    Returns:
      The `jax.experimental.topologies.TopologyDescription`.
    """
    return topologies.get_topology_desc(
        platform="cuda", target_config=_TARGET.read_text(), topology=f"1x1x{devices}"
    )


@functools.cache
def _mesh() -> Mesh:
    return Mesh(np.array(topology().devices[:1]), ("x",), axis_types=(AxisType.Auto,))


def compile_for_h100(function: Callable[..., Any], *arguments: Any) -> Any:
    """Compiles a function for one H100.

    Args:
      function: what to compile; call this inside `attnjax.emulate("gpu", interpret=False)`.
      *arguments: arrays, `jax.ShapeDtypeStruct`s or pytrees of them.

    Returns:
      The `jax.stages.Compiled`.
    """
    sharding = NamedSharding(_mesh(), PartitionSpec())
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments
    )
    with jax.sharding.use_abstract_mesh(_mesh().abstract_mesh):
        return jax.jit(function).lower(*shapes).compile()


class Kernel(NamedTuple):
    """What the assembler says of a kernel.

    Attributes:
      name: its name.
      registers: registers per thread at its start; warpgroups exchange them afterwards.
      spilled: bytes of registers spilled to memory, stores and loads.
      warnings: the assembler's warnings, and its notes on serialised matrix products.
    """

    name: str
    registers: int
    spilled: int
    warnings: tuple[str, ...]


def kernels_of(function: Callable[..., Any], *arguments: Any) -> list[Kernel]:
    """Compiles a function as `compile_for_h100` does, and reports on its Mosaic GPU kernels.

    Args:
      function: as in `compile_for_h100`.
      *arguments: as in `compile_for_h100`.

    Returns:
      The kernels, in the order in which they were compiled.

    Raises:
      RuntimeError: if the compiler left no report.
    """
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("MOSAIC_GPU_DUMP_TO")
        os.environ["MOSAIC_GPU_DUMP_TO"] = folder
        try:
            compile_for_h100(function, *arguments)
        finally:
            if before is None:
                del os.environ["MOSAIC_GPU_DUMP_TO"]
            else:
                os.environ["MOSAIC_GPU_DUMP_TO"] = before
        reports = sorted(Path(folder).glob("*.ptxas"), key=lambda path: path.stat().st_mtime_ns)
        if not reports:
            raise RuntimeError(
                "the compiler wrote no report; has the function a Mosaic GPU kernel?"
            )
        return [_read(path) for path in reports]


def _read(path: Path) -> Kernel:
    text = path.read_text()
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", text))
    registers = max((int(n) for n in re.findall(r"Used (\d+) registers", text)), default=0)
    bad = re.compile(r"warning|serializ|\(C75\d\d\)", flags=re.IGNORECASE)
    warnings = tuple(line.strip() for line in text.splitlines() if bad.search(line))
    return Kernel(re.sub(r"_\d+$", "", path.stem), registers, spilled, warnings)


class Call(NamedTuple):
    """A call to compile, at B=2, T=S=1024, N=8, K=4.

    Attributes:
      mask: a mask of shapes or arrays.
      score_mod: score_mods.
      sinks: whether there are sinks.
      stats: whether statistics are wanted, with gradients.
    """

    mask: Any = None
    score_mod: Any = None
    sinks: bool = False
    stats: bool = False


B, T, N, K = 2, 1024, 8, 4


def calls() -> dict[str, Call]:
    """Returns the calls that the command compiles: every kind of mask and of score_mod."""
    documents = jnp.arange(T, dtype=jnp.int32) // 100
    lengths = jnp.full(B, 1000, jnp.int32)
    causal = attnjax.Causal()
    return {
        "full": Call(),
        "causal": Call(causal),
        "window": Call(attnjax.Window(255, 0)),
        "documents": Call(attnjax.Segments(documents) & causal),
        "lengths": Call(attnjax.Lengths(lengths, lengths) & causal),
        "prefix": Call(attnjax.Prefix(200) | causal),
        "strided": Call(attnjax.Strided(4) & causal),
        "where": Call(attnjax.Where(lambda b, h, q, k: documents[q] == documents[k])),
        "dense": Call(jnp.ones((T, T), bool)),
        "sinks": Call(causal, sinks=True),
        "soft cap": Call(causal, attnjax.soft_cap(30.0)),
        "alibi": Call(causal, attnjax.alibi(N)),
        "bias": Call(causal, attnjax.bias(jnp.zeros((N, T, T)))),
        "statistics": Call(causal, stats=True),
        "documents, stats": Call(attnjax.Segments(documents) & causal, stats=True),
        "all": Call(attnjax.Window(255, 0), attnjax.soft_cap(30.0), sinks=True, stats=True),
        "soft cap, sinks": Call(attnjax.Window(255, 0), attnjax.soft_cap(30.0), sinks=True),
    }


def reports(width: int, dtype: Any, call: Call) -> list[Kernel]:
    """Compiles a call, forward and backward, and reports on its kernels."""
    q, k = (jax.ShapeDtypeStruct((B, T, n, width), dtype) for n in (N, K))
    sinks = jax.ShapeDtypeStruct((N,), jnp.float32) if call.sinks else None

    def run(q: Any, k: Any, v: Any, sinks: Any, d_out: Any) -> Any:
        def attend(q: Any, k: Any, v: Any, sinks: Any) -> Any:
            return attnjax.attention(
                q,
                k,
                v,
                mask=call.mask,
                score_mod=call.score_mod,
                sinks=sinks,
                stats=call.stats,
                implementation="gpu",
            )

        out, pull = jax.vjp(attend, q, k, v, sinks)
        d_stats = jax.tree.map(jnp.ones_like, out[1]) if call.stats else None
        return out, pull((d_out, d_stats) if call.stats else d_out)

    with attnjax.emulate("gpu", interpret=False):
        return kernels_of(run, q, k, k, sinks, q)


def _lines() -> Iterator[tuple[str, bool]]:
    for dtype in (jnp.bfloat16, jnp.float16):
        for width in (64, 128):
            for name, call in calls().items():
                for kernel in reports(width, dtype, call):
                    where = f"{jnp.dtype(dtype).name:9} H={width:<4} {name:16} {kernel.name:18}"
                    good = not kernel.spilled and not kernel.warnings
                    told = f"{kernel.registers:4} registers {kernel.spilled:4} bytes spilled"
                    yield " ".join([where, told, *kernel.warnings]), good


def main() -> int:
    """Prints one line per kernel; returns 1 if one of them is not as it should be."""
    if why := missing() or spills_by_linking():
        print(why)
        return 1
    count = bad = 0
    for line, good in _lines():
        print(line, flush=True)
        count, bad = count + 1, bad + (not good)
    print(f"{count} kernels for sm_90a, {bad} with spills or warnings")
    return 1 if bad or not count else 0


if __name__ == "__main__":
    sys.exit(main())
