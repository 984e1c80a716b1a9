"""Command lines: options, exit codes, messages without tracebacks."""

import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.train.toy import main, toy_train
from train.common.cli import guarded, parse
from train.common.config import TrainConfig
from train.common.guard import NonFiniteError
from train.common.seal import BrokenCheckpointError
from train.common.signals import Interrupted


@dataclass(frozen=True)
class Config:
    """Options."""

    path: Path
    """A path."""
    train: TrainConfig = field(default_factory=toy_train)
    """How to train."""


def test_nested_options() -> None:
    argv = ["--path", "x", "--train.optim.name", "muon", "--train.optim.schedule.warmup-steps", "3"]
    config = parse(Config, [*argv, "--train.patience", "4"])
    assert (config.path, config.train.optim.name) == (Path("x"), "muon")
    assert (config.train.optim.schedule.warmup_steps, config.train.patience) == (3, 4)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--train.optim.name", "adaam"], "adaam"),
        (["--train.batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--train.bach-size", "3"], "bach-size"),
    ],
)
def test_wrong_options(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(Config, ["--path", "x", *argv])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_help_names_every_option_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(Config, ["--help"], description="What it does.")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for words in ("What it does.", "143: SIGTERM", "--train.optim.weight-decay", "Optimiser steps"):
        assert words in text


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (None, 0, ""),
        (ValueError("steps must be"), 2, "error: steps must be\n"),
        (
            FileNotFoundError(2, "No such file", "a.csv"),
            2,
            "error: [Errno 2] No such file: 'a.csv'",
        ),
        (NotImplementedError("one process"), 2, "error: one process\n"),
        (NonFiniteError("step 3: nan"), 3, "error: step 3: nan\n"),
        (BrokenCheckpointError("none can be read"), 4, "error: none can be read\n"),
        (Interrupted(signal.SIGTERM, "stopped; saved"), 143, "stopped; saved\n"),
        (Interrupted(signal.SIGINT, "stopped; saved"), 130, "stopped; saved\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(
    error: BaseException | None, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        if error is not None:
            raise error

    assert guarded(work) == status
    assert capsys.readouterr().err.startswith(message)


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 / 0)


def test_a_whole_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--run-dir", str(tmp_path / "run"), "--train.steps", "20"]
    assert main(argv) == 0
    assert '"step": 20' in capsys.readouterr().out
    assert main([*argv, "--train.seed", "1"]) == 2
    assert "train.seed=0, not 1" in capsys.readouterr().err
