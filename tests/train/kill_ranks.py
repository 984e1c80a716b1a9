"""Trains with several processes, kills one of them at random moments, and checks what is left.

python -m tests.train.kill_ranks --directory DIR [--processes 4] [--kills 10] [--steps 200]

It prints how long the others took to end, and fails unless: they end within the stated time; each
restart goes on from the last complete checkpoint; every process is given, at every step, the
examples that a run of one process has at those places; the last checkpoint equals that of a run
that was left alone to the bit. The toy task of `tests.train.toy` is what is trained.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.train.kill import checkpoints, last_arrays
from train.common.distributed import DistributedConfig

BATCH = 12
INITIALIZATION_SECONDS = 10
STOP_SECONDS = DistributedConfig().stop_seconds


@dataclass(frozen=True)
class Kill:
    """One process killed."""

    rank: int
    seconds: float
    """Until the last of the others had ended."""
    latest: int | None
    """The step of the last complete checkpoint then."""
    early: bool
    """Whether it was killed soon after its start, maybe before it said where it goes on from."""


@dataclass(frozen=True)
class Ended:
    """A run of several processes that came to its end."""

    kills: tuple[Kill, ...]
    resumed: tuple[int | None, ...]
    """The step that each attempt went on from; None where it said nothing of one."""


def toy(run_dir: Path, *, steps: int, every: int, delay: float = 0.0) -> list[str]:
    """A command that trains the toy task and records which examples it was given."""
    return [
        *(sys.executable, "-m", "tests.train.toy", "--run-dir", str(run_dir)),
        *("--record", str(run_dir) + "-ids", "--delay", str(delay)),
        *("--train.steps", str(steps), "--train.batch-size", str(BATCH)),
        *("--train.eval-batch-size", "16", "--train.eval-every", str(2 * every)),
        *("--train.checkpoint-every", str(every), "--train.ema-decay", "0.99"),
        *("--initialization-timeout", str(INITIALIZATION_SECONDS)),
    ]


def launched(
    command: Sequence[str], processes: int, *, devices: int = 1, restarts: int = 0
) -> list[str]:
    """`command` through `train.launch`, which is given time to see the others end themselves."""
    return [
        *(sys.executable, "-m", "train.launch", "--processes", str(processes)),
        *("--devices-per-process", str(devices), "--restarts", str(restarts), "--grace", "120"),
        *("--", *command),
    ]


def run_and_kill(
    command: Sequence[str], run_dir: Path, *, kills: int, longest: float, seed: int
) -> Ended:
    """Runs a launched command and kills a random one of its processes, again and again.

    Args:
        command: from `launched`, with as many restarts as there are kills.
        run_dir: where it trains.
        kills: how many.
        longest: the most seconds between an attempt's first checkpoint and the kill; every fifth
            attempt is killed within as many seconds of its start instead.
        seed: of the random moments.

    Raises:
        RuntimeError: the run ended too early, or with an error.
    """
    rng, lines, done = random.Random(seed), [], []
    attempts: queue.Queue[list[int]] = queue.Queue()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as launcher:

        def read() -> None:
            for line in launcher.stderr or ():
                lines.append(line)
                if found := re.match(r"\[launch\] attempt \d+: \d+ processes \(([\d ]+)\)", line):
                    attempts.put([int(pid) for pid in found[1].split()])

        reader = threading.Thread(target=read)
        reader.start()
        for number in range(kills):
            pids = attempts.get(timeout=120)
            before, early = checkpoints(run_dir), number % 5 == 4
            while not early and checkpoints(run_dir) == before and launcher.poll() is None:
                time.sleep(0.005)
            time.sleep(rng.random() * longest)
            rank = rng.randrange(len(pids))
            with suppress(ProcessLookupError):  # where it has come to its end, too few are killed
                os.kill(pids[rank], signal.SIGKILL)
                seconds = _seconds_to_end(pids)
                saved = checkpoints(run_dir)
                done.append(Kill(rank, seconds, int(saved[-1]) if saved else None, early))
        status = launcher.wait(timeout=300)
        reader.join()
    stderr = "".join(lines)
    if status != 0 or len(done) < kills:
        raise RuntimeError(
            f"{len(done)} of {kills} kills met a process; the last ended with {status}: "
            f"{stderr[-3000:]}"
        )
    said = [
        re.search(r"resuming from the checkpoint of step (\d+)", text)
        for text in stderr.split("[launch] attempt ")[1:]
    ]
    return Ended(tuple(done), tuple(int(found[1]) if found else None for found in said))


def check_ids(run_dir: Path, alone: Path, *, processes: int, steps: int, resumed: set[int]) -> None:
    """Compares what every process was given with what one process has at those places.

    Args:
        run_dir: of a run of several processes.
        alone: of a run of one process.
        processes: how many.
        steps: of the whole run.
        resumed: the steps that the processes may have started after.
    """
    (rows,) = recorded(alone, 0).values()
    whole = {row["step"]: row["ids"] for row in rows}
    assert sorted(whole) == list(range(1, steps + 1))
    share = BATCH // processes
    for rank in range(processes):
        places = slice(rank * share, (rank + 1) * share)
        given: set[int] = set()
        for path, rows in recorded(run_dir, rank).items():
            first = rows[0]["step"]
            assert first - 1 in resumed, f"{path} begins with step {first}"
            assert [row["step"] for row in rows] == list(range(first, first + len(rows)))
            for row in rows:
                assert row["ids"] == whole[row["step"]][places], f"{path}: step {row['step']}"
            given |= {row["step"] for row in rows}
        assert given == whole.keys(), f"process {rank} was not given every step"


def without_times(run_dir: Path) -> list[dict]:
    """The rows of metrics.jsonl, but for the times."""
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [{name: x for name, x in row.items() if name != "seconds"} for row in rows]


def recorded(run_dir: Path, rank: int) -> dict[Path, list[dict]]:
    """The steps and ids that the processes of one number were given, by the file of each."""
    return {
        # A kill may have cut off the last line.
        path: [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        for path in Path(f"{run_dir}-ids").glob(f"process{rank}-pid*.jsonl")
    }


def _seconds_to_end(pids: Sequence[int]) -> float:
    """Waits until none of some processes is left; gives up after a time that is too long."""

    def runs(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True

    start = time.monotonic()
    while any(map(runs, pids)) and time.monotonic() < start + 100:
        time.sleep(0.01)
    return time.monotonic() - start


def check(
    directory: Path,
    *,
    processes: int,
    kills: int,
    steps: int,
    every: int,
    delay: float,
    longest: float = 1.0,
) -> Ended:
    """Everything that this module's docstring says.

    Args:
        directory: gets the run directories `killed` and `alone`.
        processes: how many.
        kills: how many.
        steps: of each run.
        every: steps between checkpoints.
        delay: seconds that each batch takes in the run that is killed.
        longest: the most seconds from an attempt's first checkpoint to the kill.
    """
    killed, alone = directory / "killed", directory / "alone"
    # One process whose devices talk through gloo, too, and so add up in the same order.
    single = [*toy(alone, steps=steps, every=every), "--mesh", f"data={processes}"]
    undisturbed = subprocess.Popen(
        launched(single, 1, devices=processes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    command = launched(
        toy(killed, steps=steps, every=every, delay=delay), processes, restarts=kills
    )
    ended = run_and_kill(command, killed, kills=kills, longest=longest, seed=1)
    for kill in ended.kills:
        assert kill.seconds < STOP_SECONDS, kill
    assert len(ended.resumed) == kills + 1
    for number, (kill, resumed) in enumerate(zip(ended.kills, ended.resumed[1:], strict=True), 1):
        silent = resumed is None and number < kills and ended.kills[number].early
        assert silent or resumed == kill.latest, (kill, resumed)
    assert undisturbed.wait(timeout=300) == 0
    assert_same(killed, alone)
    check_ids(
        killed, alone, processes=processes, steps=steps, resumed={0, *filter(None, ended.resumed)}
    )
    return ended


def assert_same(one: Path, other: Path) -> None:
    """Fails unless two runs left the same metrics and, to the bit, the same last checkpoint."""
    assert without_times(one) == without_times(other)
    assert last_arrays(one) == last_arrays(other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200)
    a = parser.parse_args()
    ended = check(
        a.directory, processes=a.processes, kills=a.kills, steps=a.steps, every=5, delay=0.05
    )
    for kill in ended.kills:
        print(
            f"process {kill.rank} killed: the others ended after {kill.seconds:.1f} s; "
            f"last complete checkpoint: step {kill.latest}"
        )
    print(f"went on from steps {list(ended.resumed)}")
    calm = a.directory / "calm"
    subprocess.run(launched(toy(calm, steps=a.steps, every=5), a.processes), check=True)
    assert_same(a.directory / "killed", calm)
    print("metrics, ids and, to the bit, parameters are those of the runs that were left alone")


if __name__ == "__main__":
    sys.exit(main())
