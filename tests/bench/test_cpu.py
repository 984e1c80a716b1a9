"""The CPU measurements run, compare their contestants first, and refuse what they do not know."""

import re

import jax.numpy as jnp
import pytest

import attnjax
from attnjax.bench import cpu


@pytest.mark.slow
def test_every_measurement_prints_its_figures(capsys):
    chosen = ["speed", "stats", "memory", "blocks", "decode"]
    assert cpu.main([*chosen, "--length", "256", "--repeats", "1"]) == 0
    printed = capsys.readouterr().out
    for case in ("causal", "causal, window 511", "causal, 16 documents"):
        assert re.search(rf"^{case} +attnjax +[\d.]+ ms +1\.00 x attnjax$", printed, re.M)
        assert re.search(rf"^{case} +jax\.nn +[\d.]+ ms +[\d.]+ x attnjax$", printed, re.M)
    assert re.search(r"^with statistics +[\d.]+ ms", printed, re.M)
    assert re.search(r"^T=256: temporaries [\d.]+ MiB", printed, re.M)
    # 256 tokens are one block of each mask, which all documents share.
    assert re.search(r"^decode +[\d.]+ ms +[\d.]+ x reading 1 MiB", printed, re.M)
    assert "0 empty, 1 partial, 0 full" in printed


def test_wrong_numbers_are_found_before_any_timing(monkeypatch):
    right = attnjax.attention

    def wrong(*args, **options):
        return right(*args, **options) + jnp.float32(0.01)

    monkeypatch.setattr(attnjax, "attention", wrong)
    with pytest.raises(AssertionError, match=r"jax\.nn|torch"):
        next(cpu.speed(64, 1))


@pytest.mark.parametrize("argv", [["sped"], ["speed", "--repeats", "0"], ["--length", "0"]])
def test_unknown_requests_are_refused(argv, capsys):
    with pytest.raises(SystemExit):
        cpu.main(argv)
    assert "expected" in capsys.readouterr().err
