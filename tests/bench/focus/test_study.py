"""A tiny study: trained, judged, written; and what it can not do."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from attnjax.bench.__main__ import main
from attnjax.bench.focus import study, tasks
from attnjax.bench.focus.runs import CLIP_NORM, train
from attnjax.bench.focus.treatments import TREATMENTS
from attnjax.focus import Watch, describe, recorded, watch


@pytest.fixture
def tiny(monkeypatch):
    """The text task with one layer and two rates; in 20 steps QK-clip at 30 does something."""
    clip = dataclasses.replace(TREATMENTS["qk_clip_100"], name="qk_clip_30", clip=30.0)
    monkeypatch.setitem(study.TREATMENTS, "qk_clip_30", clip)
    monkeypatch.setattr(tasks, "LAYERS", 1)
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
        tiny, TREATMENTS["none"], rates=(0.0, 1e-2), seeds=(3, 4), steps=8, warm_up=0, every=1
    )
    assert runs.loss.shape == (4, 8)
    np.testing.assert_allclose(runs.loss[:2, 0], runs.loss[2:, 0], rtol=1e-5)
    assert abs(runs.loss[0, 0] - runs.loss[1, 0]) > 1e-3
    assert (runs.loss[2:, -1] < runs.loss[:2, -1]).all()
    assert {x.entropy.shape for x in runs.stats.values()} == {(4, 8, 4)}


def test_what_is_unknown_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["focus", "--treatment", "hope"])
    assert "expected some of none, auto" in capsys.readouterr().err
    with pytest.raises(ValueError, match="multiple of 5, got 12"):
        train(tasks.text(), TREATMENTS["none"], rates=(0.1,), seeds=(0,), steps=12, warm_up=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "sigma_reparam", "z_loss"])
def test_a_run_is_what_a_plain_loop_trains(tiny, name):
    """Every 5th step is recorded; the loop records none, and keeps the model's own variables."""
    treatment, steps, rate = TREATMENTS[name], 10, 3e-2
    key = jax.random.key(7)
    model = tiny.build(treatment.attention(), nnx.Rngs(params=key, dropout=key))
    if treatment.penalty is not None:
        watch(model, Watch(differentiable=True))
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, 4, steps)
    adam = optax.chain(optax.clip_by_global_norm(CLIP_NORM), optax.adam(schedule))
    optimizer = nnx.Optimizer(model, adam, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, batch):
        def objective(model):
            loss = tiny.loss(model, batch)
            if treatment.penalty is None:
                return loss, loss
            return loss + treatment.penalty(describe(recorded(model))), loss

        (_, loss), grads = nnx.value_and_grad(objective, has_aux=True)(model)
        optimizer.update(model, grads)
        return loss

    losses = []
    for number in range(steps):
        batch = tiny.batch(jax.random.fold_in(jax.random.key(1007), number))
        losses.append(float(step(model, optimizer, batch)))
    runs = train(tiny, treatment, rates=(rate,), seeds=(7,), steps=steps, warm_up=4, every=5)
    np.testing.assert_allclose(runs.loss[0], losses, rtol=2e-4)
    assert losses[-1] < losses[0] - 0.5
