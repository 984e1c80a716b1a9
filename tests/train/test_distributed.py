"""Several real processes: one run, whatever happens to one of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from tests.train.kill import checkpoints
from tests.train.kill_ranks import assert_same, check, launched, recorded, toy
from tests.train.toy import toy_train
from train.common import distributed
from train.common.distributed import DistributedConfig, broadcast, is_lost, same_everywhere
from train.common.rundir import decisive, run_config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"processes": 2}, "go together, got None, 2 and None"),
        ({"coordinator": "a:1", "processes": 2}, "go together, got a:1, 2 and None"),
        ({"mode": "auto", "processes": 2}, "not both"),
        ({"coordinator": "a", "processes": 2, "process_id": 0}, "HOST:PORT, got 'a'"),
        ({"coordinator": "a:0", "processes": 2, "process_id": 0}, "HOST:PORT, got 'a:0'"),
        ({"coordinator": ":1", "processes": 2, "process_id": 0}, "HOST:PORT, got ':1'"),
        ({"coordinator": "a:1", "processes": 2, "process_id": 2}, "from 0 to 1 .* got 2"),
        ({"coordinator": "a:1", "processes": 2, "process_id": -1}, "from 0 to 1 .* got -1"),
        ({"heartbeat_timeout": 0}, "heartbeat_timeout must be at least 1 second, got 0"),
        ({"initialization_timeout": 0}, "initialization_timeout must be at least 1 second"),
    ],
)
def test_bad_fields(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistributedConfig(**fields)


def test_alone_nothing_is_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = sys.excepthook
    DistributedConfig().start()
    assert sys.excepthook is hook and not jax.distributed.is_initialized()
    value = {"a": [1.0, None]}
    assert broadcast(value) is value
    same_everywhere("things", value)
    assert distributed.leave(3) == 3
    assert not is_lost(ValueError("UNAVAILABLE: gone"))


def test_who_trains_where_is_not_part_of_the_config_of_a_run() -> None:
    some = DistributedConfig(coordinator="a:1", processes=4, process_id=3)
    one, other = (
        decisive(run_config(toy_train(distributed=config), {"task": "toy"}))
        for config in (DistributedConfig(), some)
    )
    assert one == other and "train.batch_size" in one


def test_two_processes_survive_a_kill(tmp_path: Path) -> None:
    """One kill -9: the other ends, both start again, to the bits and ids of one process."""
    ended = check(tmp_path, processes=2, kills=1, steps=24, every=4, delay=0.05, longest=0.3)
    assert ended.kills[0].latest


@pytest.mark.slow
def test_four_processes_survive_ten_kills(tmp_path: Path) -> None:
    check(tmp_path, processes=4, kills=10, steps=200, every=5, delay=0.05)
    calm = tmp_path / "calm"
    subprocess.run(launched(toy(calm, steps=200, every=5), 4), check=True)
    assert_same(tmp_path / "killed", calm)


def first_attempt(launcher: subprocess.Popen[str]) -> list[int]:
    """The ids of the processes that a launcher starts first."""
    first = next(line for line in launcher.stderr if "attempt 1" in line)
    return [int(pid) for pid in re.search(r"\(([\d ]+)\)", first)[1].split()]


def wait_for_checkpoints(run_dir: Path, launcher: subprocess.Popen[str]) -> None:
    """Waits for the first checkpoint of a launched run."""
    while not checkpoints(run_dir):
        assert launcher.poll() is None, launcher.stderr.read()
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_all_at_one_step(signum: int, tmp_path: Path) -> None:
    """Two processes go on from there, with two devices each, to the bits of four left alone."""
    run_dir, calm = tmp_path / "run", tmp_path / "calm"
    command = launched(toy(run_dir, steps=60, every=10, delay=0.1), 4)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as launcher:
        pids = first_attempt(launcher)
        wait_for_checkpoints(run_dir, launcher)
        subprocess.run(["kill", f"-{int(signum)}", str(pids[2])], check=True)
        said = launcher.stderr.read()
    assert launcher.returncode - 128 in (signum, signal.SIGTERM), said
    steps = re.findall(r"stopped by signal \d+ at step (\d+) of 60; saved", said)
    assert len(steps) == 4 and len(set(steps)) == 1, said
    subprocess.run(launched(toy(calm, steps=60, every=10), 4), check=True)
    two = launched(toy(run_dir, steps=60, every=10), 2, devices=2)
    done = subprocess.run(two, capture_output=True, text=True, check=True)
    assert f"resuming from the checkpoint of step {steps[0]} of 60" in done.stderr
    assert_same(run_dir, calm)


@pytest.mark.slow
def test_a_silent_process_counts_as_dead(tmp_path: Path) -> None:
    """A process that is stopped closes no connection: only its heartbeats are missed."""
    run_dir = tmp_path / "run"
    command = launched(toy(run_dir, steps=5000, every=10, delay=0.05), 4)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as launcher:
        pids = first_attempt(launcher)
        wait_for_checkpoints(run_dir, launcher)
        os.kill(pids[1], signal.SIGSTOP)
        start = time.monotonic()
        next(line for line in launcher.stderr if "[launch] process" in line)
        assert time.monotonic() - start < DistributedConfig().stop_seconds
        os.kill(pids[1], signal.SIGKILL)
        said = launcher.stderr.read()
    assert launcher.returncode not in (0, 128 + signal.SIGKILL), said


@pytest.mark.slow
def test_slurm_tells_the_processes_who_they_are(tmp_path: Path) -> None:
    command = [*toy(tmp_path / "run", steps=5, every=5), "--distributed", "auto"]
    job = str(20_000 + os.getpid() % 10_000)  # from which jax derives the port
    slurm = {"SLURM_JOB_ID": job, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    ranks = [
        subprocess.Popen(
            command,
            env={**os.environ, **slurm, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert "2 processes with 2 devices" in said[0]
    assert "finished at step 5 of 5" in said[0] and "finished" not in said[1]


@pytest.mark.slow
def test_processes_with_different_configs_do_not_train(tmp_path: Path) -> None:
    script = 'exec "$@" --train.seed "${!#}"'  # the last argument: the process's number
    command = ["bash", "-c", script, "bash", *toy(tmp_path / "run", steps=5, every=5)]
    done = subprocess.run(launched(command, 2), capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "must have the same config and data; process 1 has train.seed=1, not 0" in done.stderr
    assert done.stderr.count("[launch] attempt") == 1


@pytest.mark.slow
def test_a_process_that_is_missing_is_not_waited_for_forever(tmp_path: Path) -> None:
    where = ["--coordinator", "127.0.0.1:1", "--processes", "2", "--process-id", "1"]
    start = time.monotonic()
    done = subprocess.run(
        [*toy(tmp_path, steps=5, every=5), *where], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and time.monotonic() - start < 60
    assert "not all processes have met at 127.0.0.1:1 within 10 seconds" in done.stderr


@pytest.mark.slow
def test_processes_that_split_a_model_are_given_the_same_examples(tmp_path: Path) -> None:
    mesh = ["--mesh", "data=2,model=2"]
    four, one = tmp_path / "four", tmp_path / "one"
    subprocess.run(launched([*toy(four, steps=10, every=5), *mesh], 4), check=True)
    subprocess.run(launched([*toy(one, steps=10, every=5), *mesh], 1, devices=4), check=True)
    assert_same(four, one)
    (whole,) = recorded(one, 0).values()
    for rank, places in enumerate([slice(0, 6), slice(0, 6), slice(6, 12), slice(6, 12)]):
        (given,) = recorded(four, rank).values()
        assert given == [{**row, "ids": row["ids"][places]} for row in whole]


@pytest.mark.slow
def test_text_classification_with_two_processes(tmp_path: Path) -> None:
    """Two seeds one after another, to the same test results and words as with one process."""
    texts = tmp_path / "texts.tsv"
    words = ("good fine nice", "bad poor sad", "blue red green")
    rows = [f"{words[i % 3]} {i}\tlabel{i % 3}" for i in range(150)]
    texts.write_text("\n".join(["text\tlabel", *rows]) + "\n")

    def results(name: str, *launch: str, mesh: tuple[str, ...] = ()) -> list[dict]:
        run_dir = tmp_path / name
        command = [
            *(sys.executable, *launch, "-m", "train.text_classification", *mesh),
            *("--run-dir", str(run_dir), "--data", str(texts), "--seeds", "0", "1"),
            *("--train.epochs", "None", "--train.steps", "12", "--train.batch-size", "16"),
            *("--train.eval-batch-size", "16", "--train.no-tensorboard"),
        ]
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1" if launch else "2"}
        subprocess.run(command, check=True, env=environment)
        assert (run_dir / "seed-1" / "report.html").is_file()
        return [json.loads((run_dir / f"seed-{i}" / "result.json").read_text()) for i in (0, 1)]

    launcher = ("-m", "train.launch", "--processes", "2", "--restarts", "0", "--", sys.executable)
    two = results("two", *launcher)
    assert two == results("one", mesh=("--mesh", "data=2"))
    assert two[0]["test"]["accuracy"] > 0.9
