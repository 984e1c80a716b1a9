"""Sigma-reparametrised attention in the training loop: gammas learn, vectors go on, runs resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from attnjax.nn import Alibi, AttentionOptions
from tests.train.mesh_task import language_task, language_train, losses
from train.common.attention_config import AttentionConfig
from train.common.loop import run
from train.common.metrics import read_history
from train.common.pairs.models import SeqModelConfig
from train.common.step import on_device, plan_step
from train.common.task import Task

SIGMA = AttentionOptions(position=Alibi(), sigma_reparam=True)


def _task(**model: Any) -> Task:
    return language_task(attention=SIGMA, dropout_rate=0.0, **model)


def _attention(tree: Any) -> Any:
    return tree["decoder"]["stack"]["layers"]["attention"]


@pytest.mark.slow
def test_scanned_and_rematerialised_layers_learn() -> None:
    task, config = _task(scan_layers=True, num_layers=2), language_train(remat="full")
    start, step = plan_step(task, config)
    state = start.make()
    before = jax.device_get(state["model"])
    batches = task.data.train_batches(batch_size=config.batch_size, seed=0, start_step=0)
    found = []
    for _ in range(6):
        state, metrics = step(state, on_device(next(batches), start.layout))
        found.append(float(metrics["loss"]))
    assert found[-1] < found[0]
    after = jax.device_get(state["model"])
    for name in ("query", "key", "value", "out"):
        gamma, vector = (_attention(after[x])[name] for x in ("params", "rest"))
        gamma, vector = gamma["gamma"], vector["vector"]
        assert gamma.shape == (2,) and vector.shape[0] == 2
        assert (np.abs(gamma - 1) > 1e-3).all()
        np.testing.assert_allclose(np.linalg.norm(vector, axis=1), 1, rtol=1e-5)
        assert (vector != _attention(before["rest"])[name]["vector"]).any(axis=1).all()


def test_tasks_that_configure_attention_can_switch_it_on() -> None:
    config = SeqModelConfig(attention=AttentionConfig(sigma_reparam=True))
    assert config.attention.options(longest=8, bidirectional=False).sigma_reparam
    assert not AttentionConfig().options(longest=8, bidirectional=False).sigma_reparam
    assert SeqModelConfig.from_json(dataclasses.asdict(config)) == config


def test_auto_and_qk_clip_are_refused_before_the_run() -> None:
    for steady in ("auto", "qk_clip=50"):
        with pytest.raises(ValueError, match=r"steady: .*attention: .*sigma-reparametrisation"):
            plan_step(_task(), language_train(steady=steady))


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    config = language_train(steps=8, checkpoint_every=4, keep=9)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        run(_task(), config, folder, describe={})
    (lost,) = (cut / "checkpoints").glob("*8")
    lost.rename(tmp_path / "gone")
    run(_task(), config, cut, describe={})
    rows = [read_history(folder / "metrics.jsonl") for folder in (whole, cut)]
    plain = [[{k: x for k, x in r.items() if k != "seconds"} for r in part] for part in rows]
    assert plain[0] == plain[1]


@pytest.mark.mesh
@pytest.mark.slow
def test_the_losses_of_one_device() -> None:
    task = _task(scan_layers=True, num_layers=2)
    one = losses(language_train(), task, steps=4)
    many = losses(language_train(mesh="fsdp=2,model=2,data=2"), task, steps=4)
    np.testing.assert_allclose(many, one, rtol=1e-5)
