"""Kills a training command at random moments and runs it again until it is done.

Also a program: `python -m tests.train.kill --kills 20 --run-dir DIR -- COMMAND...`, where COMMAND
trains into DIR; it prints one hash of all arrays of the last checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp


@dataclass(frozen=True)
class Killed:
    """What happened to a run that was killed again and again."""

    kills: int
    """Processes ended by SIGKILL while they ran."""
    resumed_steps: tuple[int, ...]
    """The steps that restarts went on from."""
    stderr: str
    """Everything all processes said."""


def run_until_done(command: Sequence[str]) -> str:
    """Runs a command to its end and returns what it said on stderr."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr[-3000:]}")
    return done.stderr


def kill_and_rerun(
    command: Sequence[str], run_dir: Path, *, kills: int, longest: float, seed: int
) -> Killed:
    """Runs `command`, kills it after a random time, and again, then lets it finish.

    Args:
        command: trains into `run_dir`; the same one every time.
        run_dir: the run directory.
        kills: how many times.
        longest: the most seconds a process lives after its first checkpoint; every fifth one is
            killed within as many seconds of its start instead.
        seed: of the random moments.

    Raises:
        RuntimeError: a process ended by itself with an error, or there was nothing left to kill.
    """
    rng = random.Random(seed)
    said = []
    for number in range(kills):
        before = checkpoints(run_dir)
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            if number % 5 != 4:
                while process.poll() is None and checkpoints(run_dir) == before:
                    time.sleep(0.005)
            time.sleep(rng.random() * longest)
            status = process.poll()
            process.kill()
            said.append(process.communicate()[1])
        if status is not None:
            raise RuntimeError(
                f"only {number} of {kills} kills met a running process; the last one ended by "
                f"itself with {status}: {said[-1][-3000:]}"
            )
    said.append(run_until_done(command))
    text = "".join(said)
    resumed = [
        int(line.split("of step ")[1].split()[0])
        for line in text.splitlines()
        if line.startswith("resuming from the checkpoint of step ")
    ]
    return Killed(kills, tuple(resumed), text)


def last_arrays(run_dir: Path) -> dict[str, bytes]:
    """The bytes, dtypes and shapes of every array of the last checkpoint, by path."""
    steps = sorted(p for p in (run_dir / "checkpoints").iterdir() if p.name.isdigit())
    path = steps[-1].resolve() / "state"
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # not where it was saved from
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        ocp.checkpointables_metadata(path).metadata,
        is_leaf=lambda x: hasattr(x, "dtype"),
    )
    tree = ocp.load_checkpointables(path, like)

    def encode(x: object) -> bytes:
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        array = np.asarray(x)
        return f"{array.dtype}{array.shape}".encode() + array.tobytes()

    leaves = jax.tree_util.tree_leaves_with_path({"step": int(steps[-1].name), **tree})
    return {jax.tree_util.keystr(path): encode(x) for path, x in leaves}


def checkpoints(run_dir: Path) -> list[str]:
    """The names of the whole checkpoints."""
    directory = run_dir / "checkpoints"
    names = (p.name for p in directory.iterdir()) if directory.is_dir() else ()
    return sorted(name for name in names if name.isdigit())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("command", nargs="+")
    a = parser.parse_args()
    if a.kills:
        killed = kill_and_rerun(a.command, a.run_dir, kills=a.kills, longest=a.longest, seed=a.seed)
        print(f"{killed.kills} kills; resumed from steps {list(killed.resumed_steps)}")
    else:
        run_until_done(a.command)
    arrays = last_arrays(a.run_dir)
    digest = hashlib.sha256(repr(sorted(arrays.items())).encode()).hexdigest()
    print(f"{len(arrays)} arrays of the last checkpoint: {digest}")


if __name__ == "__main__":
    sys.exit(main())
