"""`--focus`: a run that is watched trains to the same bits, and tells where its heads look."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from attnjax.focus import HeadStats, describe
from attnjax.focus.records import read_records
from attnjax.nn import AttentionOptions, Rotary
from tests.train.mesh_task import language_task, language_train
from tests.train.toy import toy_task
from train.common.config import TrainConfig
from train.common.focusing import FocusConfig, parse_focus
from train.common.head_log import SAID, HeadLog
from train.common.loop import run
from train.common.metrics import History, read_history
from train.common.step import on_device, plan_steps
from train.common.task import Task

LAYER = "decoder.stack.layers.0.attention"


def _steps(config: TrainConfig, task: Task, steps: int) -> tuple[list[Any], list[Any]]:
    """Losses and norms of the first steps, and what the watched ones told."""
    start, both = plan_steps(task, config)
    step = both.plain if both.watched is None else both.watched
    state, numbers, told = start.make(), [], []
    batches = task.data.train_batches(batch_size=config.batch_size, seed=0, start_step=0)
    for _ in range(steps):
        state, metrics = step(state, on_device(next(batches), start.layout))
        told.append(jax.device_get(metrics.pop("focus", None)))
        numbers.append(jax.device_get(metrics))
    return [numbers, jax.device_get(state["model"]["params"])], told


@pytest.mark.parametrize(
    "model",
    [{}, pytest.param({"scan_layers": True, "num_layers": 2}, marks=pytest.mark.slow)],
)
def test_watching_changes_no_bit(model: dict[str, Any]) -> None:
    task = language_task(**model)
    plain, nothing = _steps(language_train(), task, 4)
    watched, told = _steps(language_train(focus="every=1"), task, 4)
    assert set(nothing) == {None}
    assert all(np.isfinite(stats.entropy).all() for of in told for stats in of.values())
    jax.tree.map(np.testing.assert_array_equal, plain, watched)


def test_parts_of_a_batch_are_told_of_together() -> None:
    calm = AttentionOptions(position=Rotary())
    task = language_task(dropout_rate=0.0, attention=calm)
    _, whole = _steps(language_train(focus="every=1"), task, 1)
    _, parts = _steps(language_train(focus="every=1", accumulate=4), task, 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), whole, parts)


@pytest.mark.mesh
@pytest.mark.parametrize(
    "mesh",
    ["data=2,model=2,seq=2", pytest.param("fsdp=2,model=4", marks=pytest.mark.slow)],
)
def test_a_mesh_tells_what_one_device_does(mesh: str) -> None:
    task = language_task(scan_layers=True, num_layers=2)
    _, one = _steps(language_train(focus="every=1"), task, 2)
    _, many = _steps(language_train(focus="every=1", mesh=mesh), task, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, many)


def test_a_run_directory(tmp_path: Path) -> None:
    """An interrupted run ends with the same lines as one that was not, whatever was there."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    task = language_task()
    config = language_train(steps=6, checkpoint_every=2, keep=9, focus="every=2")
    run(task, config, whole, describe={})
    run(task, config, cut, describe={})
    lines = (whole / "focus.jsonl").read_text().splitlines()
    for step in (6, 4):  # as if killed after step 3: later checkpoints and some lines are lost
        (lost,) = (cut / "checkpoints").glob(f"*{step}")
        lost.rename(tmp_path / f"gone{step}")
    (cut / "focus.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:40]]))
    run(task, config, cut, describe={})
    assert (cut / "focus.jsonl").read_text().splitlines() == lines

    records = read_records(whole / "focus.jsonl")
    assert records.problems == ()
    assert dict(records.layout.modules) == {LAYER: 8} and records.layout.every == 2
    assert records.heads.steps.tolist() == [1, 2, 4, 6]
    assert set(records.heads.values) == set(HeadStats._fields)
    assert all(np.isfinite(x).all() for x in records.heads.values.values())
    rows = [row for row in read_history(whole / "metrics.jsonl") if row["kind"] == "focus"]
    assert [row["step"] for row in rows] == [1, 2, 4, 6]
    np.testing.assert_allclose(
        [row["max_logit"] for row in rows], records.heads.values["max_logit"].max(1), rtol=1e-6
    )


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """Of a run, with pictures."""
    made = History(tmp_path, keep=lambda row: True, tensorboard=True, resumed_step=0)
    yield made
    made.close()


def _log(folder: Path, said: list[str], resumed: int = 0) -> HeadLog:
    return HeadLog(folder, FocusConfig(1), resumed_step=resumed, say=said.append)


def _stats(share: float) -> dict[str, HeadStats]:
    values = {name: np.full(SAID + 2, 0.5, np.float32) for name in HeadStats._fields}
    return {"layer": HeadStats(**values | {"share": np.full(SAID + 2, share, np.float32)})}


def test_warnings_are_written_and_said_and_survive_a_resume(
    tmp_path: Path, history: History
) -> None:
    said: list[str] = []
    log = _log(tmp_path, said)
    log.write(1, _stats(0.01), history)
    log.write(2, _stats(0.01), history)
    log.write(3, _stats(0.01), history)
    log.close()
    assert len(said) == SAID + 1
    assert said[0].startswith("step 2, focus: layer head 0: entropy is at 0.01 of its maximum")
    assert said[-1] == "step 2, focus: 2 more in focus.jsonl"

    again: list[str] = []
    log = _log(tmp_path, again, resumed=2)
    log.write(3, _stats(0.01), history)
    assert again == []  # told before
    log.write(4, _stats(np.nan), history)
    log.write(5, _stats(np.nan), history)
    log.close()
    records = read_records(tmp_path / "focus.jsonl")
    assert [(x.step, x.head, x.what, x.over) for x in records.warnings] == [
        (2, head, "entropy_collapse", 5) for head in range(SAID + 2)
    ]
    assert records.heads.steps.tolist() == [1, 2, 3, 4, 5]
    assert np.isnan(records.heads.values["share"][3:]).all()


def test_a_log_that_is_broken_in_the_middle_is_not_overwritten(
    tmp_path: Path, history: History
) -> None:
    log = _log(tmp_path, [])
    log.write(1, _stats(0.3), history)
    log.write(2, _stats(0.3), history)
    log.close()
    path = tmp_path / "focus.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{no", *lines[1:], ""]))
    before = path.read_text()
    with pytest.raises(ValueError, match=r"focus\.jsonl line 2"):
        _log(tmp_path, [], resumed=2)
    assert path.read_text() == before


def test_a_model_without_attention_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="attention modules"):
        run(toy_task(), language_train(focus="every=5"), tmp_path, describe={})


@pytest.mark.parametrize("text", ["", "50", "every", "every=", "every=-1", "all=3", "every=1.5"])
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="every=50"):
        language_train(focus=text)


def test_steps_that_are_due() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        parse_focus("every=0")
    config = parse_focus("every=4")
    assert [step for step in range(1, 13) if config.due(step)] == [1, 4, 8, 12]
    assert not any(FocusConfig().due(step) for step in range(1, 13))


def test_watching_may_begin_and_end_with_any_process(tmp_path: Path) -> None:
    """It changes nothing that is computed, so a run may go on with or without it."""
    task = language_task()
    run(task, language_train(steps=2), tmp_path, describe={})
    done = json.loads((tmp_path / "config.json").read_text())
    assert done["train"]["focus"] is None
    assert run(task, language_train(steps=2, focus="every=1"), tmp_path, describe={}) is not None
    assert describe({}) == {}
