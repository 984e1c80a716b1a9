"""Interrupted runs go on to the same bits, metrics and decisions as runs left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.train.kill import last_arrays
from tests.train.test_loop import scripted, train, without_times
from tests.train.toy import ToyData, toy_task
from train.common.metrics import read_history
from train.common.result import RunResult
from train.common.signals import Interrupted, StopSignals
from train.common.task import Batch, Task

OPTIONS = {"checkpoint_every": 4, "ema_decay": 0.9, "keep": 3}


class SignalledData(ToyData):
    """Sends this process a signal while a batch is made.

    Args:
        step: the training step whose batch it is.
        evaluation: or the number, from 1, of the evaluation.
    """

    def __init__(self, *, step: int = -1, evaluation: int = -1, number: int = signal.SIGTERM):
        super().__init__()
        self._step, self._evaluation, self._number = step, evaluation, number
        self._evaluations = 0

    def train_batches(self, *, start_step: int, **options: Any) -> Iterator[Batch]:
        batches = super().train_batches(start_step=start_step, **options)
        for step, batch in enumerate(batches, start_step + 1):
            if step == self._step:
                signal.raise_signal(self._number)
            yield batch

    def eval_batches(self, split: str, **options: Any) -> Iterable[Batch]:
        self._evaluations += 1
        for batch in super().eval_batches(split, **options):
            if self._evaluations == self._evaluation:
                signal.raise_signal(self._number)
            yield batch


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A run that nothing disturbed; tests only read it."""
    return train(tmp_path_factory.mktemp("calm"), **OPTIONS)


def assert_like_calm(result: RunResult, calm: RunResult) -> None:
    assert last_arrays(result.run_dir) == last_arrays(calm.run_dir)
    assert without_times(result.history) == without_times(calm.history)
    assert result.best_step == calm.best_step
    assert result.best_metrics == calm.best_metrics
    assert result.final_metrics == calm.final_metrics
    assert result.evaluate("test") == calm.evaluate("test")


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("data", "stopped_at"),
    [
        (SignalledData(step=1), 1),
        (SignalledData(step=17, number=signal.SIGINT), 17),
        (SignalledData(step=20), 20),
        (SignalledData(evaluation=2), 20),
        (SignalledData(evaluation=4), 40),
    ],
    ids=["at once", "between", "at an evaluation", "in an evaluation", "in the last evaluation"],
)
def test_a_signal_saves_and_the_same_command_goes_on(
    data: SignalledData,
    stopped_at: int,
    calm: RunResult,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(Interrupted, match=f"at step {stopped_at} of 40; saved") as caught:
        train(tmp_path, toy_task(data=data), **OPTIONS)
    assert caught.value.signum in (signal.SIGTERM, signal.SIGINT)
    assert (tmp_path / "checkpoints" / f"{stopped_at:08d}").is_dir()
    result = train(tmp_path, **OPTIONS)
    assert f"resuming from the checkpoint of step {stopped_at}" in capsys.readouterr().err
    assert_like_calm(result, calm)
    sessions = json.loads((tmp_path / "manifest.json").read_text())["sessions"]
    assert [s["resumed_step"] for s in sessions] == [None, stopped_at]
    again = train(tmp_path, **OPTIONS)
    assert again.best_step == calm.best_step
    assert without_times(again.history) == without_times(calm.history)


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with StopSignals() as stop:
        assert stop.received is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        # The second signal is the user's last word: it must reach the old handler.
        assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


def test_early_stopping_counts_on_after_a_resume(tmp_path: Path) -> None:
    """One bad evaluation before the stop and one after it make two."""

    def task(values: list[float], step: int) -> Task:
        data = SignalledData(step=step)
        made = scripted(values)
        return toy_task(evaluate=made.evaluate, data=data)

    options = {"patience": 2, "steps": 100}
    with pytest.raises(Interrupted):
        train(tmp_path, task([0.5, 0.4], 25), **options)
    result = train(tmp_path, task([0.3, 0.9], -1), **options)
    assert (result.last_step, result.best_step) == (30, 10)
    assert result.best_metrics == {"accuracy": 0.5}


def test_means_of_a_row_count_on_after_a_resume(tmp_path: Path, calm: RunResult) -> None:
    """Rows are means of 5 steps; stopping at 17 splits the one of step 20."""
    with pytest.raises(Interrupted):
        train(tmp_path, toy_task(data=SignalledData(step=17)), **OPTIONS)
    assert [r["step"] for r in read_history(tmp_path / "metrics.jsonl")][-1] == 15
    result = train(tmp_path, **OPTIONS)
    assert without_times(result.history) == without_times(calm.history)


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run stopped at step 22, with checkpoints of 16, 20 and 22, to be copied, not changed."""
    run_dir = tmp_path_factory.mktemp("halfway")
    with pytest.raises(Interrupted):
        train(run_dir, toy_task(data=SignalledData(step=22)), **OPTIONS)
    return run_dir


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.first(2)
@pytest.mark.parametrize("damage", [flip, lambda path: os.truncate(path, 7), Path.unlink])
def test_a_damaged_checkpoint_costs_time_only(
    damage: object,
    halfway: Path,
    calm: RunResult,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = Path(shutil.copytree(halfway, tmp_path / "run"))
    newest = run_dir / "checkpoints" / "00000022" / "state" / "model" / "d"
    damage(max(newest.iterdir(), key=lambda path: path.stat().st_size))
    result = train(run_dir, **OPTIONS)
    said = capsys.readouterr().err
    assert "the checkpoint of step 22 is broken and not used" in said
    assert "continuing from the one before, of step 20" in said
    assert "resuming from the checkpoint of step 20" in said
    assert (run_dir / "broken" / "00000022-0").is_dir()
    assert_like_calm(result, calm)


def test_a_damaged_end_of_a_finished_run_is_made_again(
    calm: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = Path(shutil.copytree(calm.run_dir, tmp_path / "run"))
    flip(run_dir / "checkpoints" / "00000040" / "seal.json")
    result = train(run_dir, **OPTIONS)
    assert "the checkpoint of step 40 is broken and not used" in capsys.readouterr().err
    assert_like_calm(result, calm)


def test_a_lost_history_does_not_stop_a_resume(halfway: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(halfway, tmp_path / "run"))
    (run_dir / "metrics.jsonl").unlink()
    result = train(run_dir, **OPTIONS)
    assert next(row["step"] for row in read_history(result.history)) == 25
