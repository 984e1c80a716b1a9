"""The suites that need no device say what compilers say, or why they can't."""

import dataclasses

from attnjax.bench import cuda_aot
from attnjax.bench.static import suites, tpu

NOTHING = dict(names=None, length=None, heads=None, width=None, targets=None, contestants=None)


def _kernel(cycles):
    busy = dict.fromkeys(("MATMUL", "XLU", "VALU", "EUP", "VLOAD", "VSTORE"), 0.25)
    return tpu.Kernel("k", cycles, 1, (1,), {}, {**busy, "EUP": 0.5}, 3, 4, 2**20, ())


def test_contestants_are_compared_with_ours(monkeypatch):
    asked = []

    def best(peer, target, *, case, direction, length, heads, width, stats=False):
        asked.append((target, case, direction, length, heads, width))
        job = tpu.Job("x:y", {})
        if peer == "flash":
            error = "NotImplementedError: knows no such thing"
            return [], [tpu.Profile(job, (), 0, 0.0, error)]
        cycles = {"ours": 1000, "splash": 1500}[peer] + 100 * stats
        options = {"block_q": 512, "block_k": 1024} if peer == "splash" else {}
        return [(options, _kernel(cycles))], []

    monkeypatch.setattr(suites.kernels_of_peers, "best", best)
    lines = []
    result = suites.tpu_static(**NOTHING, directions=["fwd"], log=lines.append)
    rows = {(x["contestant"], x["case"]): x for x in result["rows"]}
    assert len(rows) == len(lines) == 4 * 2 * 3
    assert set(asked) == {
        (target, case, "fwd", 8192, 8, 128)
        for target in ("v5e", "v6e")
        for case in ("causal", "documents", "window")
    }
    assert rows["attnjax", "causal v5e"]["ratio"] == 1
    assert rows["attnjax stats", "window v6e"]["ratio"] == 1.1
    splash = rows["splash", "causal v6e"]
    assert (splash["ratio"], splash["spills"]) == (1.5, 3)
    assert splash["detail"] == "k 512x1024 1,500 cycles, 1.0 MiB, EUP 50%"
    assert rows["flash_attention", "causal v5e"]["status"] == "refused"


def test_a_case_that_is_not_profiled_is_listed():
    options = {**NOTHING, "names": ["bias"], "targets": ["v6e"]}
    rows = suites.tpu_static(**options, directions=["fwd"], log=str)["rows"]
    assert {x["status"] for x in rows} == {"refused"} and len(rows) == 4


def test_a_missing_compiler_is_listed(monkeypatch):
    def best(*args, **options):
        raise RuntimeError("static profiles need the TPU compiler: pip install libtpu")

    monkeypatch.setattr(suites.kernels_of_peers, "best", best)
    rows = suites.tpu_static(**NOTHING, directions=["fwd"], log=str)["rows"]
    assert {x["status"] for x in rows} == {"absent"}
    monkeypatch.setattr(cuda_aot, "missing", lambda: "no compiler here")
    (row,) = suites.gpu_static(**NOTHING, directions=["fwd"], log=str)["rows"]
    assert (row["status"], row["reason"]) == ("absent", "no compiler here")


def test_spills_of_our_gpu_kernels(monkeypatch):
    def kernels_of(function, q, k, v, cotangent, extras):
        if "ids" in extras:
            raise NotImplementedError("no documents")
        if "bias" in extras:
            raise ValueError("broken")
        return [cuda_aot.Kernel("forward", 168, 0, ()), cuda_aot.Kernel("back", 240, 16, ("slow",))]

    monkeypatch.setattr(cuda_aot, "missing", lambda: None)
    monkeypatch.setattr(cuda_aot, "kernels_of", kernels_of)
    options = {**NOTHING, "length": 64, "heads": 1}
    result = suites.gpu_static(**options, directions=["fwdbwd"], log=str)
    rows = {x["case"]: x for x in result["rows"]}
    assert rows["causal H=64"]["median"] == rows["causal H=128"]["spills"] == 16
    assert rows["causal H=64"]["detail"] == "forward 168 registers; back 240 registers slow"
    assert rows["documents H=64"]["status"] == "refused"
    assert rows["bias H=128"]["reason"] == "ValueError: broken"


def test_vector_spills_outside_of_products_are_no_inner_spills():
    far = tpu.Stretch(1, 10, {"MATMUL": 0, "VSTORE:SPILL": 5, "VLOAD:FILL": 5})
    near = tpu.Stretch(99, 10, {"MATMUL": 4, "VSTORE:SPILL": 2, "VLOAD:FILL": 3})
    kernel = dataclasses.replace(_kernel(1), stretches=(far, near))
    assert kernel.inner_spills == 5
