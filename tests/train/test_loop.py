"""Whole runs of the toy task: what they leave behind, when they stop, what they refuse."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from tests.train.kill import last_arrays
from tests.train.toy import ToyData, ToyNet, toy_task, toy_train
from train.common.config import TrainConfig
from train.common.guard import NonFiniteError
from train.common.loop import run
from train.common.metrics import read_history
from train.common.optim import OptimConfig
from train.common.result import RunResult, load_model
from train.common.rundir import RunLock
from train.common.seal import BrokenCheckpointError
from train.common.task import Batch, Task

FAST = OptimConfig(learning_rate=0.05)


def train(run_dir: Path, task: Task | None = None, **changes: object) -> RunResult:
    result = run(task or toy_task(), toy_train(**changes), run_dir, describe={"task": "toy"})
    assert result is not None
    return result


def without_times(path: Path) -> list[dict]:
    return [{k: x for k, x in row.items() if k != "seconds"} for row in read_history(path)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run to its end; tests only read it."""
    return train(
        tmp_path_factory.mktemp("run") / "deep" / "er", optim=FAST, steps=60, tensorboard=True
    )


def test_it_learns(finished: RunResult) -> None:
    assert (finished.last_step, finished.total_steps) == (60, 60)
    assert not finished.stopped_early
    assert finished.best_metrics["accuracy"] > 0.6
    assert finished.final_metrics["loss"] < 1.0


def test_the_run_directory(finished: RunResult) -> None:
    names = {path.name for path in finished.run_dir.iterdir()}
    assert names >= {
        *("config.json", "manifest.json", "metrics.jsonl", "log.txt"),
        *("checkpoints", "tensorboard"),
    }
    config = json.loads((finished.run_dir / "config.json").read_text())
    assert config["task"] == {"task": "toy"}
    assert config["train"]["optim"]["learning_rate"] == 0.05
    manifest = json.loads((finished.run_dir / "manifest.json").read_text())
    assert manifest["data_fingerprint"] == ToyData().fingerprint
    assert manifest["packages"]["jax"] == jax.__version__
    assert manifest["devices"]["platform"] == jax.default_backend()
    assert manifest["seed"] == 0
    assert len(manifest["config_sha256"]) == 64
    assert [s["resumed_step"] for s in manifest["sessions"]] == [None]
    assert manifest["sessions"][0]["command"]


def test_rows_of_the_history(finished: RunResult) -> None:
    rows = read_history(finished.history)
    assert [r["step"] for r in rows if r["kind"] == "train"] == list(range(5, 61, 5))
    assert [r["step"] for r in rows if r["kind"] == "eval"] == list(range(10, 61, 10))
    for row in rows:
        if row["kind"] == "train":
            assert {"loss", "accuracy", "grad_norm", "param_norm", "learning_rate"} <= row.keys()
            assert row["seconds"].keys() == {"data", "compute", "host"}
            assert min(row["seconds"].values()) >= 0
        else:
            assert {"loss", "accuracy"} <= row.keys()


def test_the_best_checkpoint_is_the_best_evaluation(finished: RunResult) -> None:
    rows = [r for r in read_history(finished.history) if r["kind"] == "eval"]
    best = max(rows, key=lambda row: row["accuracy"])  # the first of equals, as max takes it
    assert finished.best_step == best["step"]
    assert finished.best_metrics["accuracy"] == best["accuracy"]
    assert finished.evaluate("validation") == finished.best_metrics
    assert finished.evaluate("validation", "last") == finished.final_metrics
    assert finished.evaluate("test").keys() == finished.best_metrics.keys()


def test_a_model_from_the_directory_alone(finished: RunResult) -> None:
    x = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    for which in ("best", "last"):
        model = load_model(ToyNet, finished.run_dir, which=which)
        np.testing.assert_array_equal(model(x), finished.model(which)(x))
        leaves = jax.tree.leaves(finished.params(which))
        loaded = jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
        for a, b in zip(leaves, loaded, strict=True):
            np.testing.assert_array_equal(a, b)


def test_running_it_again_says_so_and_changes_nothing(
    finished: RunResult, capsys: pytest.CaptureFixture[str]
) -> None:
    before = finished.history.read_bytes()
    again = train(finished.run_dir, optim=FAST, steps=60, tensorboard=True)
    assert "is finished, at step 60" in capsys.readouterr().err
    assert finished.history.read_bytes() == before
    for name in ("best_step", "best_metrics", "final_metrics", "last_step"):
        assert getattr(again, name) == getattr(finished, name)


def test_two_runs_have_the_same_bits(finished: RunResult, tmp_path: Path) -> None:
    twin = train(tmp_path / "twin", optim=FAST, steps=60)
    assert last_arrays(twin.run_dir) == last_arrays(finished.run_dir)
    assert without_times(twin.history) == without_times(finished.history)
    other = train(tmp_path / "other", optim=FAST, steps=60, seed=1)
    assert last_arrays(other.run_dir) != last_arrays(finished.run_dir)


def test_another_config_is_refused_field_by_field(finished: RunResult) -> None:
    with pytest.raises(ValueError, match="belongs to a run with another config") as caught:
        train(
            finished.run_dir,
            optim=dataclasses.replace(FAST, name="lion"),
            steps=60,
            batch_size=24,
            keep=7,
            progress=True,
        )
    message = str(caught.value)
    assert "train.batch_size=12, not 24" in message
    assert "train.optim.name='adamw', not 'lion'" in message
    assert "keep" not in message
    assert "progress" not in message


def test_another_task_is_refused(finished: RunResult) -> None:
    config = toy_train(optim=FAST, steps=60)
    with pytest.raises(ValueError, match=r"task\.heads='\(absent\)', not 8; task\.task='toy'"):
        run(toy_task(), config, finished.run_dir, describe={"task": "other", "heads": 8})


def test_other_data_is_refused(finished: RunResult) -> None:
    task = toy_task(data=ToyData(train_size=241))
    with pytest.raises(ValueError, match="the data changed since the run"):
        train(finished.run_dir, task, optim=FAST, steps=60)


def test_another_process_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(ValueError, match="another process is training"):
        train(tmp_path)
    code = (
        "import pathlib, sys, time; from train.common.rundir import RunLock\n"
        "with RunLock(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="another process is training"):
            RunLock(tmp_path).__enter__()
        holder.kill()
        holder.wait()
        with RunLock(tmp_path):
            pass


def test_a_directory_with_foreign_checkpoints_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"has checkpoints but no config\.json"):
        train(tmp_path)


def test_a_damaged_manifest_is_an_error(tmp_path: Path) -> None:
    train(tmp_path, steps=2)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json cannot be read"):
        train(tmp_path, steps=2)


def test_other_versions_are_mentioned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, steps=2)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["packages"]["jax"] = "0.4.0"
    path.write_text(json.dumps(manifest))
    train(tmp_path, steps=2)
    assert f"packages.jax: 0.4.0 -> {jax.__version__}" in capsys.readouterr().err


def scripted(values: list[float]) -> Task:
    """The toy task with evaluations that follow a script."""
    script = iter(values)
    return toy_task(evaluate=lambda results: {"accuracy": next(script)})


def test_early_stopping_and_the_best_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [0.1, 0.5, 0.4, 0.3, 0.9]
    result = train(tmp_path, scripted(values), patience=2, keep=1, steps=100)
    assert (result.last_step, result.best_step) == (40, 20)
    assert result.stopped_early
    assert result.final_metrics == {"accuracy": 0.3}
    assert "stopping early: 2 evaluations without a better accuracy" in capsys.readouterr().err
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["00000020", "00000040"]
    again = train(tmp_path, scripted([]), patience=2, keep=1, steps=100)
    assert (again.last_step, again.best_step) == (40, 20)


def test_a_nan_evaluation_is_never_the_best(tmp_path: Path) -> None:
    result = train(tmp_path, scripted([float("nan")] * 2), steps=20)
    assert result.best_step is None
    with pytest.raises(ValueError, match="no evaluation gave a number"):
        result.params()
    assert result.params("last")
    assert [r["accuracy"] for r in read_history(result.history) if r["kind"] == "eval"] == [
        None
    ] * 2


def test_an_unknown_selection_metric(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be one of accuracy, loss, got 'f1'"):
        train(tmp_path, select_metric="f1")


def test_nan_stops_the_run_and_saves_nothing_of_it(tmp_path: Path) -> None:
    task = toy_task(data=ToyData(poison=17))
    for _ in range(2):  # the same command meets the same step again
        with pytest.raises(
            NonFiniteError, match=r"step 17: .*bad gradients: first\.bias"
        ) as caught:
            train(tmp_path, task)
        assert "The batch itself is not finite in: x" in str(caught.value)
    names = [p.name for p in (tmp_path / "checkpoints").iterdir()]
    assert names == ["00000010"]
    assert "NonFiniteError: step 17" in (tmp_path / "log.txt").read_text()
    assert max(row["step"] for row in read_history(tmp_path / "metrics.jsonl")) == 15


def test_a_damaged_best_checkpoint_is_not_used(tmp_path: Path) -> None:
    result = train(tmp_path, scripted([0.5, 0.4, 0.3]), keep=1, steps=30)
    seal = tmp_path / "checkpoints" / "00000010" / "seal.json"
    seal.write_text(seal.read_text().replace('"step": 10', '"step": 11'))
    with pytest.raises(BrokenCheckpointError, match=r"step 10 .* is broken: seal\.json was"):
        result.params()
    with pytest.raises(BrokenCheckpointError, match="step 10"):
        load_model(ToyNet, tmp_path)
    load_model(ToyNet, tmp_path, which="last")


def test_no_model_in_an_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(BrokenCheckpointError, match="there are none"):
        load_model(ToyNet, tmp_path)


def test_the_average_is_what_results_give(tmp_path: Path) -> None:
    result = train(tmp_path, ema_decay=0.9, optim=FAST, steps=20)
    arrays = last_arrays(tmp_path)
    kernel = result.params("last")["last"]["kernel"]
    bits = np.asarray(kernel).tobytes()
    assert arrays["['model']['ema']['last']['kernel']"].endswith(bits)
    assert not arrays["['model']['params']['last']['kernel']"].endswith(bits)
    assert result.evaluate("validation", "last") == result.final_metrics


def test_epochs(tmp_path: Path) -> None:
    assert train(tmp_path, steps=None, epochs=1.5, eval_every=None).last_step == 30


def test_a_dry_run_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = toy_train(dry_run=True)
    assert run(toy_task(), config, tmp_path / "run", describe={}) is None
    assert not (tmp_path / "run").exists()
    text = capsys.readouterr().out
    count = 5 * 16 + 16 + 2 * 16 + 16 * 3 + 3
    for words in (
        f"Parameter count: {count}",
        "first.kernel  [5, 16]",
        "x  [12, 5]",
        "40 steps of 12 examples",
        "temporaries",
        "opt_state",
    ):
        assert words in text


class ShortData(ToyData):
    def train_batches(self, *, batch_size: int, **options: Any) -> Iterator[Batch]:
        yield next(super().train_batches(batch_size=batch_size, **options))


class RaggedData(ToyData):
    def train_batches(self, *, batch_size: int, **options: Any) -> Iterator[Batch]:
        return super().train_batches(batch_size=batch_size - 1, **options)


class NoEvalData(ToyData):
    def eval_batches(self, split: str, **options: Any) -> Iterable[Batch]:
        return []


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (toy_task(data=ShortData()), "must never end, but ended after step 1"),
        (toy_task(data=RaggedData()), r"must give 12 examples, got x of shape \(11, 5\)"),
        (toy_task(data=NoEvalData()), "'validation' has no examples"),
        (toy_task(evaluate=lambda r: {"accuracy": [1, 2]}), r"got accuracy=\[1, 2\]"),
    ],
)
def test_tasks_that_break_the_contract(task: Task, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train(tmp_path, task)


def test_describe_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="describe must be a mapping that JSON can hold"):
        run(toy_task(), TrainConfig(steps=1), tmp_path, describe={(1, 2): 3})
