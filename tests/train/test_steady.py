"""`--steady`: remedies act inside the step, say so, and survive a kill like everything else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.focus.records import read_records
from attnjax.nn import Alibi, AttentionOptions, RelativeBias
from tests.train.mesh_task import language_task, language_train, losses
from tests.train.test_focus import LAYER
from train.common.guard import NonFiniteError
from train.common.loop import SKIPS, run
from train.common.metrics import read_history
from train.common.optim import OptimConfig
from train.common.steadying import SteadyConfig, parse_steady
from train.common.step import on_device, plan_step, plan_steps
from train.common.task import Batch, Task

HOT = OptimConfig(learning_rate=0.3, clip_norm=None)
"""Lets logits grow past 100 within ten steps."""


def _step(task: Task, **changes: Any) -> tuple[Any, Any, dict[str, Any]]:
    """The parameters before and after one step, and its metrics."""
    config = language_train(**changes)
    start, steps = plan_steps(task, config)
    step = steps.watched or steps.plain
    state = start.make()
    before = jax.device_get(state["model"]["params"])
    batches = task.data.train_batches(batch_size=config.batch_size, seed=0, start_step=0)
    state, metrics = step(state, on_device(next(batches), start.layout))
    return before, jax.device_get(state), jax.device_get(metrics)


def test_clipped_heads_and_no_others_are_scaled() -> None:
    task, optim = language_task(), OptimConfig(name="sgd", learning_rate=1e-9)
    _, _, free = _step(task, optim=optim, focus="every=1")
    logits = free["focus"][LAYER].max_logit
    limit = float(np.median(logits))
    before, after, metrics = _step(task, optim=optim, steady=f"qk_clip={limit}")
    over = logits > limit
    assert metrics["clipped_heads"] == over.sum() == 4
    for side in ("query", "key"):
        old, new = (
            params["decoder"]["stack"]["layers"][0]["attention"][side]["kernel"]
            for params in (before, after["model"]["params"])
        )
        np.testing.assert_allclose(new[:, ~over], old[:, ~over], atol=1e-7)
        factors = np.sqrt(limit / logits[over])
        np.testing.assert_allclose(new[:, over], old[:, over] * factors[:, None], atol=1e-5)


def test_penalties_change_gradients_and_not_the_loss() -> None:
    task = language_task()
    _, plain, quiet = _step(task)
    _, other, loud = _step(task, steady="z_loss=0.1,entropy_floor=0.99")
    np.testing.assert_allclose(loud["loss"], quiet["loss"], rtol=1e-5)
    assert loud["penalty"] > 0 and "penalty" not in quiet
    kernels = [
        x["model"]["params"]["decoder"]["stack"]["layers"][0]["attention"]["query"]["kernel"]
        for x in (plain, other)
    ]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-5


@pytest.mark.slow
def test_penalties_of_parts_make_the_whole() -> None:
    calm = AttentionOptions(position=Alibi())
    task = language_task(dropout_rate=0.0, attention=calm)
    _, _, whole = _step(task, steady="z_loss=0.1")
    _, _, parts = _step(task, steady="z_loss=0.1", accumulate=4)
    np.testing.assert_allclose(parts["penalty"], whole["penalty"], rtol=1e-4)


def test_auto_acts_logs_and_survives_a_resume(tmp_path: Path) -> None:
    task = language_task()
    config = language_train(steps=14, checkpoint_every=4, keep=9, optim=HOT, steady="auto")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(task, config, whole, describe={})
    run(task, config, cut, describe={})
    for step in (14, 12):
        (lost,) = (cut / "checkpoints").glob(f"*{step}")
        lost.rename(tmp_path / f"gone{step}")
    run(task, config, cut, describe={})
    lines = [(folder / "focus.jsonl").read_text() for folder in (whole, cut)]
    assert lines[0] == lines[1]
    rows = [_untimed(folder) for folder in (whole, cut)]
    assert rows[0] == rows[1]
    records = read_records(whole / "focus.jsonl")
    assert records.problems == ()
    assert records.remedies
    assert {x.what for x in records.remedies} >= {"qk_clip"}
    said = (whole / "log.txt").read_text()
    first = records.remedies[0]
    assert f"step {first.step}, focus: {first.module} head {first.head}: qk_clip" in said


def _untimed(folder: Path) -> list[dict[str, Any]]:
    rows = read_history(folder / "metrics.jsonl")
    return [{name: x for name, x in row.items() if name != "seconds"} for row in rows]


@pytest.mark.slow
def test_auto_leaves_a_healthy_run_as_it_is() -> None:
    task = language_task()
    plain, auto = (losses(language_train(steady=x), task, steps=4) for x in (None, "auto"))
    np.testing.assert_allclose(auto, plain, rtol=1e-5)


def _spoiled(bad: range) -> Task:
    """The loss of some batches, by their first token's step, is not a number."""
    task = language_task()

    def loss(model: Any, batch: Batch) -> Any:
        value, named = task.loss(model, batch)
        return value * jnp.where(batch["bad"][0] > 0, jnp.nan, 1.0), named

    class Data(type(task.data)):  # type: ignore[misc]
        def train_batches(self, *, start_step: int, **options: Any) -> Any:
            batches = super().train_batches(start_step=start_step, **options)
            for step, batch in enumerate(batches, start_step + 1):
                size = len(batch["ids"])
                yield {**batch, "bad": np.full(size, step in bad, np.float32)}

    return dataclasses.replace(task, loss=loss, data=Data())


def test_auto_leaves_out_steps_that_are_not_finite(tmp_path: Path) -> None:
    config = language_train(steps=6, checkpoint_every=6, steady="auto")
    run(_spoiled(range(3, 5)), config, tmp_path, describe={})
    rows = [json.loads(line) for line in (tmp_path / "focus.jsonl").read_text().splitlines()]
    skips = [row for row in rows if row.get("what") == "skip_update"]
    assert [row["step"] for row in skips] == [3, 4]
    train = {r["step"]: r for r in read_history(tmp_path / "metrics.jsonl") if r["kind"] == "train"}
    assert np.isfinite(train[6]["loss"]) and np.isfinite(train[6]["param_norm"])
    assert "loss" not in train[4]


@pytest.mark.slow
def test_auto_gives_up_when_nothing_is_finite(tmp_path: Path) -> None:
    config = language_train(steps=SKIPS + 5, steady="auto", eval_every=100)
    with pytest.raises(NonFiniteError, match=f"step {SKIPS + 1}:"):
        run(_spoiled(range(1, 100)), config, tmp_path, describe={})


@pytest.mark.slow
@pytest.mark.mesh
def test_auto_on_a_mesh() -> None:
    task = language_task(scan_layers=True, num_layers=2)
    one = losses(language_train(steady="auto"), task, steps=3)
    many = losses(language_train(steady="auto", mesh="data=2,fsdp=2,model=2"), task, steps=3)
    np.testing.assert_allclose(many, one, rtol=1e-5)


def test_what_cannot_be_clipped_is_said() -> None:
    task = language_task(attention=AttentionOptions(qk_norm="rms"))
    with pytest.raises(ValueError, match="qk_norm"):
        plan_step(task, language_train(steady="qk_clip=50"))
    plan_step(task, language_train(steady="z_loss=0.1"))
    biased = language_task(attention=AttentionOptions(position=RelativeBias()))
    with pytest.raises(ValueError, match="relative biases"):
        plan_step(biased, language_train(steady="qk_clip=50"))


def test_auto_takes_relative_biases(tmp_path: Path) -> None:
    task = language_task(attention=AttentionOptions(position=RelativeBias()))
    config = language_train(steps=12, checkpoint_every=12, optim=HOT, steady="auto")
    run(task, config, tmp_path, describe={})
    remedies = read_records(tmp_path / "focus.jsonl").remedies
    assert {x.what for x in remedies} >= {"qk_clip"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "automatic",
        "auto=1",
        "qk_clip",
        "qk_clip=",
        "qk_clip=many",
        "z_loss=1,z_loss=2",
        "auto,",
    ],
)
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="steady must read auto"):
        language_train(steady=text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("qk_clip=0", "qk_clip must be positive"),
        ("z_loss=nan", "z_loss must be positive"),
        ("entropy_floor=1.5", "entropy_floor must lie between 0 and 1"),
        ("auto,qk_clip=50", "not both"),
    ],
)
def test_what_means_nothing(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        language_train(steady=text)


def test_what_is_read() -> None:
    assert parse_steady("auto,z_loss=1e-4") == SteadyConfig(auto=True, z_loss=1e-4)
    assert language_train(steady="auto").build_focus().every == 50
    assert language_train(steady="auto", focus="every=5").build_focus().every == 5
    assert not SteadyConfig().wanted and language_train().watch is None
