"""The suites that need no device: `tpu-static`, `gpu-static`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import attnjax
from attnjax.bench import cases
from attnjax.bench.report import entry
from attnjax.bench.static import contestants as kernels_of_peers
from attnjax.bench.static import tpu

_UNITS = ("MATMUL", "XLU", "VALU", "EUP", "VLOAD", "VSTORE")
Log = Callable[[str], None]
# The first one is what the others are compared with.
_TPU: dict[str, dict[str, Any]] = {
    "attnjax": {"peer": "ours"},
    "attnjax stats": {"peer": "ours", "stats": True},
    "splash": {"peer": "splash"},
    "flash_attention": {"peer": "flash"},
}


def tpu_static(
    *,
    names: Sequence[str] | None,
    directions: Sequence[str],
    length: int | None,
    heads: int | None,
    width: int | None,
    targets: Sequence[str] | None,
    contestants: Sequence[str] | None,
    log: Log,
) -> dict[str, Any]:
    """Counts the cycles of TPU kernels, each peer at its best block sizes.

    Args:
      names: cases, `causal`, `documents` and `window` by default.
      directions: `fwd`, `fwdbwd`.
      length: T, 8192 by default.
      heads: N, 8 by default.
      width: H, 128 by default.
      targets: chips, v5e and v6e by default.
      contestants: who takes part; all by default.
      log: where progress goes.

    Returns:
      `settings`, `unit`, `rows` and `seconds`; rows as of `attnjax.bench.report.entry`.
    """
    start = time.perf_counter()
    shape: dict[str, Any] = {"length": length or 8192, "heads": heads or 8, "width": width or 128}
    chosen = {n: x for n, x in _TPU.items() if contestants is None or n in contestants}
    rows = []
    for target in targets or ("v5e", "v6e"):
        for case in names or ("causal", "documents", "window"):
            for direction in directions:
                first = None
                for name, options in chosen.items():
                    row = _tpu_row(name, options, target, case, direction, shape)
                    if row["status"] == "ok":
                        first = row["median"] if name == "attnjax" else first
                        row["ratio"] = None if first is None else row["median"] / first
                    log(_line(row, "cycles"))
                    rows.append(row)
    spent = time.perf_counter() - start
    return {"settings": shape, "unit": "cycles", "rows": rows, "seconds": spent}


def gpu_static(
    *,
    names: Sequence[str] | None,
    directions: Sequence[str],
    length: int | None,
    heads: int | None,
    width: int | None,
    targets: Sequence[str] | None,
    contestants: Sequence[str] | None,
    log: Log,
) -> dict[str, Any]:
    """Compiles our GPU kernels for an H100 and says what the assembler says of them.

    The arguments and the result are those of `tpu_static`, but for `width`, which is 64 and 128 by
    default, and `contestants`, who are us alone: kernels of others report to nobody here. `targets`
    has no meaning. What counts is the bytes of registers that are spilled, which should be none.
    """
    from attnjax.bench import cuda_aot

    start = time.perf_counter()
    widths = [width] if width else [64, 128]
    T, N = length or 8192, heads or 8
    rows = []
    if (why := cuda_aot.missing()) is not None:
        rows.append(entry("attnjax gpu", "all", "all", "absent", why))
    else:
        for H in widths:
            shape = cases.Shape(1, T, N, H, "bfloat16")
            for case in names or cases.NAMES:
                work = cases.make(case, shape)
                for direction in directions:
                    rows.append(_gpu_row(work, direction))
    for row in rows:
        log(_line(row, "bytes spilled"))
    spent = time.perf_counter() - start
    settings = {"length": T, "heads": N, "widths": widths}
    return {"settings": settings, "unit": "bytes spilled", "rows": rows, "seconds": spent}


SUITES = {"tpu-static": tpu_static, "gpu-static": gpu_static}


def _tpu_row(
    name: str,
    options: dict[str, Any],
    target: str,
    case: str,
    direction: str,
    shape: dict[str, Any],
) -> dict[str, Any]:
    label = f"{case} {target}"
    if case not in kernels_of_peers.CASES:
        why = f"profiled are {', '.join(kernels_of_peers.CASES)}"
        return entry(name, label, direction, "refused", why)
    try:
        best, tried = kernels_of_peers.best(
            target=target, case=case, direction=direction, **options, **shape
        )
    except RuntimeError as error:
        return entry(name, label, direction, "absent", str(error))
    if not best:
        reasons = dict.fromkeys(x.error or "no kernels" for x in tried)
        status = "refused" if all("NotImplementedError" in x for x in reasons) else "failed"
        return entry(name, label, direction, status, "; ".join(reasons)[:1000])
    kernels = [kernel for _, kernel in best]
    cycles = sum(kernel.cycles for kernel in kernels)
    return {
        **entry(name, label, direction, "ok", ""),
        "samples": [cycles],
        "median": cycles,
        "ratio": None,
        "spills": sum(kernel.spill_stores for kernel in kernels),
        "inner_spills": sum(kernel.inner_spills for kernel in kernels),
        "detail": "; ".join(_told(options, kernel) for options, kernel in best),
    }


def _told(options: dict[str, Any], kernel: tpu.Kernel) -> str:
    sizes = "x".join(str(options[n]) for n in ("block_q", "block_k", "compute") if n in options)
    busiest = max(_UNITS, key=lambda unit: kernel.busy[unit])
    return (
        f"{kernel.name} {sizes} {kernel.cycles:,} cycles, {kernel.vmem / 2**20:.1f} MiB, "
        f"{busiest} {kernel.busy[busiest]:.0%}"
    )


def _gpu_row(work: cases.Work, direction: str) -> dict[str, Any]:
    from attnjax.bench import cuda_aot

    def attend(q: Any, k: Any, v: Any, extras: Any) -> Any:
        return attnjax.attention(
            q,
            k,
            v,
            mask=work.mask(extras),
            score_mod=work.score_mod(extras),
            implementation="gpu",
        )

    label = f"{work.name} H={work.shape.H}"
    name = "attnjax gpu"
    try:
        with attnjax.emulate("gpu", interpret=False):
            kernels = cuda_aot.kernels_of(
                cases.directed(attend, direction), *work.inputs, work.cotangent, work.extras
            )
    except NotImplementedError as error:
        return entry(name, label, direction, "refused", str(error))
    except Exception as error:
        # Compilers raise whatever they like.
        return entry(name, label, direction, "failed", f"{type(error).__name__}: {error}"[:1000])
    spilled = sum(kernel.spilled for kernel in kernels)
    return {
        **entry(name, label, direction, "ok", ""),
        "samples": [spilled],
        "median": spilled,
        "ratio": None,
        "spills": spilled,
        "detail": "; ".join(_assembled(x.name, x.registers, x.warnings) for x in kernels),
    }


def _assembled(name: str, registers: int, warnings: Sequence[str]) -> str:
    return " ".join([f"{name} {registers} registers", *warnings])


def _line(row: dict[str, Any], unit: str) -> str:
    head = f"{row['case']:14} {row['direction']:7} {row['contestant']:16}"
    if row["status"] != "ok":
        return f"{head} {row['status']}: {' '.join(row['reason'].split())[:120]}"
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f} x attnjax "
    return f"{head} {row['median']:12,} {unit} {ratio}{row['spills']:,} spills"
