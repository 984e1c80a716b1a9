"""The contestants of static profiles compile, and the best of their kernels are put together."""

import json

import pytest

from attnjax.bench.static import contestants, tpu
from attnjax.bench.static.__main__ import main


def test_the_best_of_each_kernel_is_printed(capsys):
    pytest.importorskip("libtpu")
    shape = ["--length", "1024", "--heads", "2", "--direction", "fwdbwd"]
    assert main([*shape, "--target", "v5e", "--peer", "flash", "--blocks", "512x512"]) == 0
    answer = json.loads(capsys.readouterr().out)
    roles = [x["name"].split("_block_")[0] for x in answer["kernels"]]
    assert sorted(roles) == ["flash_mha_bwd_dkv", "flash_mha_bwd_dq", "jvp_jit_flash_attention__.1"]
    assert answer["cycles"] == sum(x["cycles"] for x in answer["kernels"])
    assert answer["failed"] == []


def _kernel(name, cycles):
    return tpu.Kernel(name, cycles, 1, (1,), {}, {}, 0, 0, 0, ())


def test_fused_and_separate_kernels_are_not_mixed(monkeypatch):
    def profile(jobs, target, *, keep):
        # Separate kernels take 3 + 4 + 5 cycles, fused ones 2 + 8; larger blocks take one less.
        answers = []
        for job in jobs:
            fused = job.options["fused"]
            less = job.options["block_q"] == 1024
            cycles = {"fwd": 2, "dkv": 8} if fused else {"fwd": 3, "dq": 4, "dkv": 5}
            kernels = tuple(_kernel(name, n - less) for name, n in cycles.items())
            answers.append(tpu.Profile(job, kernels, 0, 0.0, None))
        return answers

    monkeypatch.setattr(contestants, "profile", profile)
    shape = dict(case="causal", direction="fwdbwd", length=2048, heads=2, width=128)
    best, tried = contestants.best("splash", "v6e", **shape)
    assert {kernel.name: kernel.cycles for _, kernel in best} == {"fwd": 1, "dkv": 7}
    assert all(options["block_q"] == 1024 and options["fused"] for options, _ in best)
    assert len(tried) > len(best)


def test_what_a_peer_can_not_do_is_said():
    with pytest.raises(NotImplementedError, match="no windows"):
        contestants.flash(
            case="window",
            direction="fwd",
            length=1024,
            heads=2,
            width=128,
            block_q=512,
            block_k=512,
        )
