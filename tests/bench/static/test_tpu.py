"""Static profiles of TPU kernels; they need the TPU compiler, not a TPU."""

import collections
import pathlib
import runpy

import numpy as np
import pytest

from attnjax.bench.static.tpu import Job, profile

PROBES = str(pathlib.Path(__file__).with_name("probes.py"))
JOBS = {
    "words": Job(f"{PROBES}:branching", {"dtype": "int32", "flat": False}),
    "list": Job(f"{PROBES}:branching", {"dtype": "int32", "flat": True}),
    "bytes": Job(f"{PROBES}:branching", {"dtype": "int8", "flat": False}),
    "wrong": Job(f"{PROBES}:failing"),
    "unaligned": Job(f"{PROBES}:branching", {"dtype": "int32", "flat": True, "block": 100}),
    "loop": Job(f"{PROBES}:looping", {"dtype": "int32"}),
}


@pytest.fixture(scope="module")
def profiles():
    pytest.importorskip("libtpu")
    return dict(zip(JOBS, profile(list(JOBS.values()), "v6e"), strict=True))


@pytest.mark.parametrize("name", ["words", "list", "bytes"])
def test_counts_branches_on_data_in_smem(profiles, name):
    assert profiles[name].error is None
    (kernel,) = profiles[name].kernels
    kinds = runpy.run_path(PROBES)["kinds"](np.int32)
    counts = collections.Counter(kinds.ravel().tolist())
    products = [x.times for x in kernel.stretches if x.units["MATMUL"]]
    exponentials = [x.times for x in kernel.stretches if x.units["EUP"]]
    assert (products, exponentials) == ([counts[1]], [counts[2]])
    assert kernel.name == "probe" and kernel.grid == (10, 16)
    assert kernel.cycles == sum(x.times * x.bundles for x in kernel.stretches)
    assert profiles[name].cycles == kernel.cycles
    assert kernel.inner_spills == kernel.spill_stores == kernel.spill_loads == 0
    # Two buffers each of the input and the output.
    assert 4 * 128 * 128 * 4 <= kernel.vmem < 8 * 128 * 128 * 4
    assert 0 < kernel.busy["MATMUL"] < 1


def test_counts_loops_of_a_length_in_smem(profiles):
    (kernel,) = profiles["loop"].kernels
    kinds = runpy.run_path(PROBES)["kinds"](np.int32)
    assert [x.times for x in kernel.stretches if x.units["MATMUL"]] == [kinds.sum()]


def test_a_job_that_fails_says_why_and_stops_no_other(profiles):
    assert profiles["wrong"].error == "ValueError: no such case"
    assert "divisible" in profiles["unaligned"].error
    with pytest.raises(ValueError, match="failed: ValueError: no such case"):
        _ = profiles["wrong"].cycles


def test_an_unknown_target_is_refused():
    with pytest.raises(ValueError, match="expected one of v5e, v5p, v6e, tpu7x"):
        profile([], "v3")
