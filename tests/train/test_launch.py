"""The launcher, with stand-ins for training: numbers, output, endings, restarts, signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.launch import LaunchConfig, main

STAND_IN = """
import os, pathlib, signal, sys, time

here, mode = pathlib.Path(sys.argv[1]), sys.argv[2]
options = dict(zip(sys.argv[3::2], sys.argv[4::2]))
rank = options["--process-id"]
print(f"out {options['--coordinator']} of {options['--processes']}", flush=True)
print(f"devices {os.environ.get('JAX_NUM_CPU_DEVICES')}", file=sys.stderr, flush=True)
first = not (here / "again").exists()
if mode == "once" and rank == "1" and first:
    (here / "again").touch()
    sys.exit(75)
if mode.startswith("fail") and rank == "1":
    sys.exit(int(mode[4:]))
if mode == "killed" and rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "stop":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
if mode == "deaf":
    signal.signal(signal.SIGTERM, lambda *_: (here / f"heard{rank}").touch())
(here / f"ready{rank}").touch()
if mode not in ("well", "once"):
    time.sleep(60)
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> list[str]:
    path = tmp_path / "stand_in.py"
    path.write_text(STAND_IN)
    return [sys.executable, str(path), str(tmp_path)]


def launch(command: list[str], mode: str, *options: str) -> int:
    return main(["--processes", "2", "--grace", "0.2", *options, "--", *command, mode])


def test_every_process_gets_its_number_and_says_it(
    stand_in: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(stand_in, "well", "--processes", "3", "--devices-per-process", "2") == 0
    said = capsys.readouterr()
    addresses = re.findall(r"^\[(\d)\] out (127\.0\.0\.1:\d+) of 3$", said.out, re.MULTILINE)
    assert sorted(rank for rank, _ in addresses) == ["0", "1", "2"]
    assert len({address for _, address in addresses}) == 1
    assert sorted(re.findall(r"^\[(\d)\] devices 2$", said.err, re.MULTILINE)) == ["0", "1", "2"]
    assert len(re.findall(r"attempt \d+: 3 processes \(\d+ \d+ \d+\)", said.err)) == 1


@pytest.mark.parametrize(
    ("mode", "status", "attempts", "words"),
    [
        ("fail75", 75, 3, "process 1 ended with exit status 75"),
        ("killed", 137, 3, "process 1 was ended by signal 9"),
        ("fail2", 2, 1, "process 1 ended with exit status 2"),
        ("fail3", 3, 1, "exit status 3"),
        ("fail4", 4, 1, "exit status 4"),
        ("fail143", 143, 1, "exit status 143"),
    ],
)
def test_the_first_failure_ends_all_and_starts_them_again_where_that_helps(
    mode: str,
    status: int,
    attempts: int,
    words: str,
    stand_in: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("train.launch._PAUSE_SECONDS", 0.0)
    start = time.monotonic()
    assert launch(stand_in, mode, "--restarts", "2") == status
    assert time.monotonic() - start < 50  # process 0 would sleep for a minute
    said = capsys.readouterr().err
    assert len(re.findall(r"\[launch\] attempt", said)) == attempts
    assert words in said


def test_a_restart_has_a_port_of_its_own_and_can_end_well(
    stand_in: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.launch._PAUSE_SECONDS", 0.0)
    assert launch(stand_in, "once", "--restarts", "1") == 0
    said = capsys.readouterr()
    ports = re.findall(r"attempt \d: .* at 127\.0\.0\.1:(\d+)", said.err)
    assert len(ports) == len(set(ports)) == 2
    assert "starting again, 1 restarts left" in said.err


def in_background(command: list[str], mode: str, here: Path) -> subprocess.Popen[str]:
    """A launcher of its own, all of whose processes have got as far as they can."""
    launcher = subprocess.Popen(
        [
            *(sys.executable, "-m", "train.launch", "--processes", "2", "--grace", "60"),
            *("--", *command, mode),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(here / "ready0", here / "ready1")
    return launcher


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, f"no {paths}"
        time.sleep(0.01)


def test_a_signal_reaches_every_process_and_nothing_starts_again(
    stand_in: list[str], tmp_path: Path
) -> None:
    launcher = in_background(stand_in, "stop", tmp_path)
    launcher.send_signal(signal.SIGTERM)
    said, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 143, said
    assert said.count("[launch] attempt") == 1


def test_a_second_signal_kills(stand_in: list[str], tmp_path: Path) -> None:
    launcher = in_background(stand_in, "deaf", tmp_path)
    launcher.send_signal(signal.SIGTERM)
    wait_for(tmp_path / "heard0", tmp_path / "heard1")
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGTERM)
    said, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 128 + signal.SIGKILL, said
    for pid in re.findall(r"\((\d+) (\d+)\)", said)[0]:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "2"], "give the training command after --"),
        (["--processes", "2", "--"], "give the training command after --"),
        (["--processes", "2", "--", "no-such-program"], "no-such-program"),
    ],
)
def test_a_command_that_cannot_be(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"processes": 0}, "processes must be at least 1, got 0"),
        ({"processes": 2, "devices_per_process": 0}, "devices_per_process must be at least 1"),
        ({"processes": 2, "restarts": -1}, "restarts must be at least 0"),
        ({"processes": 2, "grace": -1.0}, "grace must not be negative, got -1.0"),
        ({"processes": 2, "grace": float("nan")}, "grace must not be negative, got nan"),
    ],
)
def test_bad_options(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LaunchConfig(**fields)
