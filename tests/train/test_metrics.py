"""Histories that survive a kill, means that survive a resume, progress in a terminal and a file."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from train.common import progress as progress_module
from train.common.clock import Clock
from train.common.metrics import History, Means, read_history
from train.common.progress import Progress
from train.common.selection import Selection


def history(run_dir: Path, *, upto: int = 0, tensorboard: bool = False) -> History:
    return History(
        run_dir,
        keep=lambda row: row["step"] <= upto,
        tensorboard=tensorboard,
        resumed_step=upto,
    )


def test_rows_are_there_at_once(tmp_path: Path) -> None:
    log = history(tmp_path)
    log.write("train", 5, {"loss": 0.25, "bad": math.nan}, {"data": 0.12345678})
    assert read_history(log.path) == [
        {"kind": "train", "step": 5, "loss": 0.25, "bad": None, "seconds": {"data": 0.123457}}
    ]
    log.sync()
    log.close()


def test_rows_beyond_the_resumed_step_go(tmp_path: Path) -> None:
    log = history(tmp_path)
    for step in (5, 10, 15, 20):
        log.write("train", step, {"loss": 1.0 / step}, {})
    log.close()
    log = history(tmp_path, upto=10)
    log.write("train", 15, {"loss": 7.0}, {})
    log.close()
    assert [(r["step"], r["loss"]) for r in read_history(log.path)] == [
        (5, 0.2),
        (10, 0.1),
        (15, 7.0),
    ]


@pytest.mark.parametrize("cut", range(1, 40, 6))
def test_a_last_line_that_was_cut_off_goes(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    line = json.dumps({"kind": "train", "step": 1, "loss": 0.5, "seconds": {}})
    path.write_text(line + "\n" + line[:cut])
    assert [row["step"] for row in read_history(path)] == [1]
    history(tmp_path, upto=1).close()
    assert path.read_text() == line + "\n"


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2 is no JSON object: 'nonsense'"):
        read_history(path)


def test_no_history_yet(tmp_path: Path) -> None:
    assert read_history(tmp_path / "metrics.jsonl") == []


def tensorboard_values(run_dir: Path) -> dict[tuple[str, int], float]:
    """All scalars of the event files; a record is a length, its checksum, data, its checksum."""
    values = {}
    for path in sorted((run_dir / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += 16 + size
            for value in event.summary.value:
                values[value.tag, event.step] = value.simple_value
    return values


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    log = history(tmp_path, tensorboard=True)
    log.write("train", 5, {"loss": 0.25}, {"data": 0.5})
    log.write("eval", 5, {"accuracy": 0.75}, {})
    log.close()
    assert tensorboard_values(tmp_path) == {
        ("train/loss", 5): 0.25,
        ("seconds/train_data", 5): 0.5,
        ("eval/accuracy", 5): 0.75,
    }


def test_means_survive_json_in_the_middle() -> None:
    numbers = np.random.default_rng(0).normal(size=(20, 2))
    whole, parts = Means(), Means()
    for i, (a, b) in enumerate(numbers):
        whole.add({"a": a, "b": b})
        parts.add({"a": a, "b": b})
        if i == 11:
            parts = Means(json.loads(json.dumps(parts.state)))
    means = whole.take()
    assert parts.take() == means
    np.testing.assert_allclose([means["a"], means["b"]], numbers.mean(0))
    assert whole.take() == {}


def test_the_state_of_means_is_a_copy() -> None:
    means = Means()
    means.add({"a": 1.0})
    state = means.state
    means.add({"a": 2.0})
    assert state == {"count": 1, "sums": {"a": 1.0}}


def select(values: list[float], mode: str = "max", patience: int = 2) -> list[tuple]:
    selection, seen = Selection(), []
    for step, value in enumerate(values, 1):
        selection = selection.update(step, {"m": value, "x": step}, metric="m", mode=mode)
        selection = Selection(**json.loads(json.dumps(selection.to_json())))
        seen.append((selection.best_step, selection.since_best, selection.exhausted(patience)))
    return seen


def test_the_best_is_the_first_of_equals() -> None:
    assert select([0.5, 0.5, 0.7, 0.6, 0.7]) == [
        (1, 0, False),
        (1, 1, False),
        (3, 0, False),
        (3, 1, False),
        (3, 2, True),
    ]
    assert select([0.5, 0.7, 0.3], mode="min") == [(1, 0, False), (1, 1, False), (3, 0, False)]


def test_a_nan_is_never_the_best() -> None:
    assert select([math.nan, 0.1, math.nan]) == [(None, 1, False), (2, 0, False), (2, 1, False)]
    assert select([-math.inf, math.nan], mode="max") == [(1, 0, False), (1, 1, False)]
    assert not Selection(since_best=99).exhausted(None)


def test_an_unknown_metric() -> None:
    with pytest.raises(ValueError, match="must be one of a, b, got 'c'"):
        Selection().update(1, {"a": 1.0, "b": 2.0}, metric="c", mode="max")


def test_the_clock_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    clock = Clock()
    for _ in range(2):
        with clock.measure("data"):
            pass_time(1)
        with clock.measure("compute"):
            pass_time(4)
        pass_time(0.5)
        clock.step()
    with clock.pause():
        pass_time(100)
    assert clock.take() == {"data": 1.0, "compute": 4.0, "host": 0.5}
    pass_time(3)
    assert clock.take() == {"data": 0.0, "compute": 0.0, "host": 3.0}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def use_progress(stream: io.StringIO, tmp_path: Path, *, show: bool = True) -> str:
    progress = Progress(tmp_path / "log.txt", show=show, stream=stream)
    progress.start(0, 20)
    progress.step(10, {"loss": 0.5})
    progress.say("something happened")
    progress.evaluation(10, {"accuracy": 0.25}, best=True)
    progress.step(20, {"loss": 0.25})
    progress.close()
    assert (tmp_path / "log.txt").read_text().endswith(" something happened\n")
    return stream.getvalue()


def test_lines_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.0)
    text = use_progress(io.StringIO(), tmp_path)
    lines = text.splitlines()
    assert lines[0].startswith("step 10/20 loss 0.5 ")
    assert lines[1:3] == [
        "something happened",
        "step 10/20 evaluation: accuracy 0.25 (best so far)",
    ]
    assert lines[3].startswith("step 20/20 loss 0.25 ")
    assert "\r" not in text


def test_lines_in_a_file_are_not_too_many(tmp_path: Path) -> None:
    assert "loss" not in use_progress(io.StringIO(), tmp_path)


def test_a_bar_in_a_terminal(tmp_path: Path) -> None:
    text = use_progress(Terminal(), tmp_path)
    assert "\r" in text
    assert "20/20" in text
    assert "loss 0.25" in text
    assert "something happened\n" in text


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_messages_come_even_without_progress(stream: type, tmp_path: Path) -> None:
    assert use_progress(stream(), tmp_path, show=False) == "something happened\n"
