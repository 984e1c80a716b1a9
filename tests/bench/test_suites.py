"""The suites of devices, run on the CPU in tiny sizes by the code that GPUs and TPUs run."""

import dataclasses
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from attnjax.bench import cases, contestants, suites
from attnjax.bench.contestants import Contestant, of_jax, roster
from attnjax.bench.prepared import Prepared
from attnjax.bench.timing import Clock

SHAPE = cases.Shape(2, 96, 2, 16, "bfloat16")
TINY = dataclasses.replace(
    suites.SUITES["gpu"], platform="cpu", shape=SHAPE, matrix=64, rounds=2, limit=300.0
)


def _silent(text):
    assert text


def _here(platform):
    return None


def _ok(rows):
    return {(x["case"], x["direction"], x["contestant"]) for x in rows if x["status"] == "ok"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [("documents", "soft_cap"), pytest.param(cases.NAMES, marks=pytest.mark.slow, id="all")],
)
def test_all_contestants_do_all_cases_or_say_why_not(names):
    # FlexAttention compiles C++ for seconds on a CPU; a slow test runs it.
    everyone = [x for x in roster() if x.name != "torch flex"]
    result = suites.measure(
        TINY, names=names, directions=["fwdbwd"], contestants=everyone, log=_silent
    )
    rows = result["rows"]
    assert result["matrix_tflops"] > 0 and result["unit"] == "s"
    absent = {x["contestant"] for x in rows if x["status"] == "absent"}
    assert {"splash", "flash_attention", "jax.nn cudnn"} <= absent
    listed = {(x["contestant"], x["case"]) for x in rows}
    for contestant in everyone:
        if contestant.name not in absent:
            assert {(contestant.name, name) for name in names} <= listed
    assert all(x["status"] in ("ok", "refused", "absent") for x in rows), rows
    done = _ok(rows)
    for name in names:
        assert (name, "fwdbwd", "attnjax") in done
        assert (name, "fwdbwd", "attnjax stats") in done
        for peer in ("jax.nn xla", "flax"):
            assert ((name, "fwdbwd", peer) in done) == (name != "soft_cap")
    for row in rows:
        assert row["status"] == "ok" or row["reason"]
        if row["status"] == "ok":
            assert len(row["samples"]) == 2 and min(row["samples"]) > 0 and row["tflops"] > 0
            assert row["share"] == row["tflops"] / result["matrix_tflops"]
    ours = [x for x in rows if x["contestant"] == "attnjax" and x["status"] == "ok"]
    assert all(x["ratio"] == 1 and x["note"] == "blockwise" and x["temporaries"] for x in ours)


@pytest.mark.slow
# torch warns of its own parts.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_flex_attention_does_all_cases_forward():
    pytest.importorskip("torch")
    flex = [x for x in roster() if x.name == "torch flex"]
    shape = dataclasses.replace(SHAPE, T=256, dtype="float32")
    result = suites.measure(
        dataclasses.replace(TINY, shape=shape), contestants=flex, directions=["fwd"], log=_silent
    )
    assert len(_ok(result["rows"])) == len(cases.NAMES), result["rows"]


@pytest.mark.parametrize("name", ["splash", "flash_attention"])
@pytest.mark.parametrize("case", ["causal", "documents"])
def test_kernels_for_tpus_give_the_right_numbers(name, case):
    (contestant,) = [x for x in roster() if x.name == name]
    work = cases.make(case, cases.Shape(1, 128, 1, 128, "float32"))
    with pltpu.force_tpu_interpret_mode():
        found = contestant.prepare(work, "fwd").results()
    right = cases.reference(work, "fwd")
    np.testing.assert_allclose(found["out"], right["out"], atol=2e-2)


def _attend(q, k, v, extras):
    weights = jnp.tril(jnp.ones((q.shape[1], k.shape[1])))
    return jnp.einsum("ts,bsnh->btnh", weights / weights.sum(1, keepdims=True), v)


def _contestant(name, prepare):
    return Contestant(name, _here, prepare)


def _raising(error):
    def prepare(work, direction):
        raise error

    return prepare


def test_wrong_and_failing_contestants_are_not_timed():
    ran = []

    def fine(work, direction):
        found = next(x for x in roster() if x.name == "attnjax").prepare(work, direction)
        return dataclasses.replace(found, run=lambda: ran.append("fine"), wait=lambda x: None)

    def wrong(work, direction):
        found = of_jax(lambda work: _attend)(work, direction)
        return dataclasses.replace(found, run=lambda: ran.append("wrong"))

    def unable_to_run(work, direction):
        def results():
            raise MemoryError("too large")

        return Prepared(lambda: ran.append("unable"), lambda x: None, results)

    given = [
        _contestant("fine", fine),
        _contestant("wrong", wrong),
        _contestant("unable", unable_to_run),
        _contestant("refuses", _raising(NotImplementedError("knows no masks"))),
        _contestant("fails", _raising(RuntimeError("no such kernel"))),
        Contestant("elsewhere", lambda platform: f"not on {platform}", _raising(AssertionError())),
    ]
    result = suites.measure(
        TINY, names=["causal"], directions=["fwd"], contestants=given, log=_silent
    )
    found = {x["contestant"]: (x["status"], x["reason"]) for x in result["rows"]}
    assert found["fine"] == ("ok", "")
    assert found["wrong"][0] == "wrong" and "out" in found["wrong"][1]
    assert found["unable"] == ("failed", "MemoryError: too large")
    assert found["refuses"] == ("refused", "knows no masks")
    assert found["fails"] == ("failed", "RuntimeError: no such kernel")
    assert found["elsewhere"] == ("absent", "not on cpu")
    assert set(ran) == {"fine"}


@pytest.mark.parametrize("side_by_side", [False, True])
def test_a_slow_contestant_is_skipped_and_the_limit_holds(side_by_side):
    over = threading.Event()

    def endless(work, direction):
        over.wait(60)

    ours = next(x for x in roster() if x.name == "attnjax")
    suite = dataclasses.replace(TINY, limit=3.0, side_by_side=side_by_side)
    start = time.monotonic()
    result = suites.measure(
        suite,
        names=["causal", "window"],
        directions=["fwd"],
        contestants=[ours, _contestant("endless", endless)],
        log=_silent,
    )
    assert time.monotonic() - start < 30
    over.set()
    skipped = [x for x in result["rows"] if x["contestant"] == "endless"]
    assert [x["status"] for x in skipped] == ["skipped", "skipped"]
    assert all("time" in x["reason"] for x in skipped)
    # Whoever is measured beside it is marked.
    assert all(x["disturbed"] for x in result["rows"] if x["status"] == "ok")


def test_without_time_everything_is_listed_as_skipped():
    suite = dataclasses.replace(TINY, limit=0.0)
    ours = [x for x in roster() if x.name == "attnjax"]
    rows = suites.measure(suite, contestants=ours, log=_silent)["rows"]
    assert [x["status"] for x in rows] == ["skipped"] * 2 * len(cases.NAMES)


def test_the_matrix_rate_is_of_the_product():
    suite = dataclasses.replace(TINY, matrix=256)
    assert 1e-5 < suites.matrix_rate(suite, Clock(60)) < 100


def test_reasons_of_absence(monkeypatch):
    absent = contestants._needs("surely_not_installed", "gpu")
    assert absent("gpu") == "surely_not_installed is not installed"
    assert contestants._needs(None, "gpu", "tpu")("cpu") == "needs gpu or tpu; this is cpu"
    assert contestants._needs("jax", "cpu")("cpu") is None
