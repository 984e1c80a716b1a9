"""A tiny study: trained, judged, written; and what it can not do."""

import dataclasses
import json

import numpy as np
import pytest

from attnjax.bench.__main__ import main
from attnjax.bench.focus import study, tasks
from attnjax.bench.focus.runs import train
from attnjax.bench.focus.treatments import TREATMENTS


@pytest.fixture
def tiny(monkeypatch):
    """The text task with two rates and 20 steps, in which QK-clip at 30 has something to do."""
    clip = dataclasses.replace(TREATMENTS["qk_clip_100"], name="qk_clip_30", clip=30.0)
    monkeypatch.setitem(study.TREATMENTS, "qk_clip_30", clip)
    task = dataclasses.replace(tasks.text(), rates=(1e-2, 3e-1), steps=20, warm_up=1)
    monkeypatch.setitem(study.TASKS, "text", lambda: task)
    quick = dataclasses.replace(study.QUICK, steps=20, warm_up=1, treatments=("qk_clip_30",))
    monkeypatch.setattr(study, "QUICK", quick)
    return task


@pytest.mark.slow
def test_a_study_is_trained_judged_and_written(tiny, tmp_path, capsys):
    assert main(["focus", "--quick", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "focus.json").read_text())
    (task,) = result["tasks"]
    none, clipped = task["treatments"]
    assert (none["name"], clipped["name"]) == ("none", "qk_clip_30")
    assert none["acted"] is None and clipped["acted"] == 1  # at the high rate only
    np.testing.assert_allclose(clipped["final"][0], none["final"][0], rtol=1e-4)
    assert clipped["final"][1] != none["final"][1]
    assert len(task["warnings"]["runs"]) == 2
    logits = np.array(task["curves"]["max_logit"])
    assert logits[0].max() < 30 < logits[1].max()
    table = (tmp_path / "focus.md").read_text()
    assert "| qk_clip_30 |" in table and "## text" in table
    assert (tmp_path / "focus.png").stat().st_size > 1000
    assert "wrote" in capsys.readouterr().out


def test_runs_of_a_seed_start_alike_whatever_the_rate(tiny):
    runs = train(
        tiny, TREATMENTS["none"], rates=(0.0, 1e-2), seeds=(3, 4), steps=10, warm_up=0, every=5
    )
    assert runs.loss.shape == (4, 10)
    np.testing.assert_allclose(runs.loss[:2, 0], runs.loss[2:, 0], rtol=1e-5)
    assert abs(runs.loss[0, 0] - runs.loss[1, 0]) > 1e-3
    assert (runs.loss[2:, -1] < runs.loss[:2, -1]).all()
    assert {x.entropy.shape for x in runs.stats.values()} == {(4, 2, 4)}


def test_what_is_unknown_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["focus", "--treatment", "hope"])
    assert "expected some of none, auto" in capsys.readouterr().err
    with pytest.raises(ValueError, match="multiple of 5, got 12"):
        train(tasks.text(), TREATMENTS["none"], rates=(0.1,), seeds=(0,), steps=12, warm_up=0)
