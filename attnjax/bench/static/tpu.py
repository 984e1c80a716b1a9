"""Profiles TPU kernels without a TPU: compiles them, and counts the cycles of their machine code.

What is counted. libtpu compiles for a described chip and lists each kernel's bundles; one bundle
takes one cycle. `machine.py` runs the scalar part of that code on the block schedule that the
kernel would be given, and so knows how often each bundle runs: grid loops, `pl.when` and branches
on data in SMEM go as on the device. (The compiler's own `estimated_cycles` takes every branch on
SMEM as untaken, for other libraries' kernels as for ours, and aborts on some copies.) All
libraries' kernels are counted alike, each as it is, so no variant with a static grid is needed.

What is not counted: waits for memory, and what XLA does around the kernels. Where all branches
depend on the grid alone the compiler's estimate can be compared: for `flash_attention`, v6e,
T=8192, 512x512 blocks, it says 1,584,423 where 1,448,995 bundles run; it models those waits.
The counts are uncalibrated: compare kernels under one libtpu and on one target only.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from attnjax.bench.fingerprint import cores

TARGETS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
_PASSES = ".*(final|pre-finalize).*"


@dataclasses.dataclass(frozen=True)
class Job:
    """One function to compile.

    Attributes:
      maker: `module:function` or `file.py:function`; called with the options in a process of its
        own, it returns the function to compile and its arguments, arrays or
        `ShapeDtypeStruct`s. Those that block schedules depend on must be arrays.
      options: keyword arguments of the maker; numbers, strings, booleans.
    """

    maker: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Neighbouring bundles that run equally often.

    Attributes:
      times: how often.
      bundles: how many.
      units: operations in it by unit, once through.
    """

    times: int
    bundles: int
    units: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What is known of one compiled kernel.

    Attributes:
      name: its name.
      cycles: bundles that run.
      bundles: bundles that there are.
      grid: steps along each axis of its grid; -1 where it is dynamic.
      units: operations that run, by unit.
      busy: the share of each unit's slots that they fill.
      spill_stores: vector registers written to spill slots, as often as they are.
      spill_loads: vector registers read back.
      vmem: bytes of vector memory.
      stretches: where the cycles are, in the order of the code.
    """

    name: str
    cycles: int
    bundles: int
    grid: tuple[int, ...]
    units: dict[str, int]
    busy: dict[str, float]
    spill_stores: int
    spill_loads: int
    vmem: int
    stretches: tuple[Stretch, ...]

    @property
    def inner_spills(self) -> int:
        """Spill stores and loads in stretches with matrix products, once through each."""
        return sum(
            x.units.get("VSTORE:SPILL", 0) + x.units.get("VLOAD:FILL", 0)
            for x in self.stretches
            if x.units.get("MATMUL", 0)
        )


@dataclasses.dataclass(frozen=True)
class Profile:
    """What came of a job.

    Attributes:
      job: what was asked.
      kernels: its kernels; empty where it failed.
      temporaries: bytes that XLA allots besides inputs and outputs.
      seconds: to trace and compile.
      error: why it failed, or None.
    """

    job: Job
    kernels: tuple[Kernel, ...]
    temporaries: int
    seconds: float
    error: str | None

    @property
    def cycles(self) -> int:
        """The cycles of all kernels."""
        if self.error is not None:
            raise ValueError(f"{self.job} has no cycles, for it failed: {self.error}")
        return sum(kernel.cycles for kernel in self.kernels)


def profile(
    jobs: Sequence[Job], target: str, *, timeout: float = 400.0, keep: str | None = None
) -> list[Profile]:
    """Compiles functions for a TPU, in processes of their own, and profiles their kernels.

    Args:
      jobs: what to compile.
      target: `v5e`, `v5p`, `v6e` or `tpu7x`.
      timeout: seconds that a job may take on average.
      keep: a folder in which to leave the compiler's listings.

    Returns:
      One profile for each job. A job that does not compile, or that ends the process, says why.

    Raises:
      ValueError: for an unknown target.
      RuntimeError: if libtpu is missing.
    """
    if target not in TARGETS:
        raise ValueError(f"target: expected one of {', '.join(TARGETS)}; got {target!r}.")
    # Every other job for each process: neighbours are alike, and so are the times they take.
    workers = max(1, min(cores() // 2, len(jobs) // 2))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        parts = pool.map(lambda k: _all(jobs[k::workers], target, timeout, keep), range(workers))
        found = dict(zip(range(workers), parts, strict=True))
    return [found[k % workers][k // workers] for k in range(len(jobs))]


def _all(jobs: Sequence[Job], target: str, timeout: float, keep: str | None) -> list[Profile]:
    """Runs jobs in one process after the other, a new one where one ended early."""
    done: list[Profile] = []
    while len(done) < len(jobs):
        left = jobs[len(done) :]
        found, failure = _run(left, target, timeout * len(left), keep)
        done += found
        if failure is not None and len(found) < len(left):
            done.append(Profile(left[len(found)], (), 0, 0.0, failure))
    return done


def _run(
    jobs: Sequence[Job], target: str, timeout: float, keep: str | None
) -> tuple[list[Profile], str | None]:
    """Runs one process; returns the profiles that it made and how it ended early, if so."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        if keep:
            pathlib.Path(keep).mkdir(parents=True, exist_ok=True)
        dump = pathlib.Path(tempfile.mkdtemp(dir=keep or folder))
        order, answers = folder / "jobs.json", folder / "profiles.jsonl"
        order.write_text(
            json.dumps(
                {
                    "topology": TARGETS[target],
                    "dump": str(dump),
                    "answers": str(answers),
                    "jobs": [dataclasses.asdict(job) for job in jobs],
                }
            )
        )
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "TPU_SKIP_MDS_QUERY": "1",
            "LIBTPU_INIT_ARGS": (
                f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true "
                f"--xla_jf_dump_llo_pass_label_regex={_PASSES}"
            ),
        }
        command = [sys.executable, "-m", "attnjax.bench.static.compile", str(order)]
        try:
            ended = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=timeout
            )
            failure = None
            if ended.returncode:
                failure = f"ended with {ended.returncode}: {ended.stderr.strip()[-2000:]}"
        except subprocess.TimeoutExpired:
            failure = f"took more than {timeout:g} s"
        lines = answers.read_text().splitlines() if answers.exists() else []
    if failure is not None and "No module named 'libtpu'" in failure:
        raise RuntimeError("static profiles need the TPU compiler: pip install libtpu")
    return [_profile(json.loads(line)) for line in lines], failure


def _profile(answer: dict[str, Any]) -> Profile:
    kernels = tuple(
        Kernel(
            **{
                **kernel,
                "grid": tuple(kernel["grid"]),
                "stretches": tuple(Stretch(**x) for x in kernel["stretches"]),
            }
        )
        for kernel in answer["kernels"]
    )
    return Profile(**{**answer, "job": Job(**answer["job"]), "kernels": kernels})
