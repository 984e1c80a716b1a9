"""Asynchronous checkpoints that are whole or not there: the latest few and the best one.

A run directory's `checkpoints/` holds one directory per step, `00000040/`: what orbax wrote below
`state/`, and a seal (`train.common.seal`) with the run's host-side state and hashes. A save in
progress is called `saving-00000040`; a checkpoint that turned out broken is moved to `../broken/`.

Several processes share one directory: each writes and reads the parts of the arrays that it holds,
process 0 does the rest.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from train.common.distributed import barrier, broadcast, is_main
from train.common.fingerprint import fingerprint
from train.common.seal import BrokenCheckpointError, read_seal, write_seal
from train.common.state import State, abstract

SAVING = "saving-"


@dataclass(frozen=True)
class Restored:
    """What a checkpoint held."""

    step: int
    state: dict[str, Any]
    """The parts of the training state that were asked for."""
    host: dict[str, Any]
    """The host-side state that was given to `Checkpoints.save`."""


class Checkpoints:
    """The checkpoints of one run directory.

    With several processes all must call the same methods in the same order.

    Args:
        run_dir: the run directory; relative paths are fine.
        keep: how many of the latest checkpoints stay when another one is saved.
        say: receives a sentence about everything out of the ordinary.
    """

    def __init__(self, run_dir: Path, *, keep: int, say: Callable[[str], None]) -> None:
        self._directory = (run_dir / "checkpoints").resolve()
        self._broken = (run_dir / "broken").resolve()
        self._keep = keep
        self._say = say
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending; none of them is verified yet."""
        if not self._directory.is_dir():
            return []
        names = (path.name for path in self._directory.iterdir() if path.is_dir())
        return sorted(int(name) for name in names if re.fullmatch(r"\d{8,}", name))

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` is, or would be."""
        return self._directory / f"{step:08d}"

    def clean(self) -> None:
        """Removes what saves left behind that a kill cut off; call before the first save."""
        if not is_main():
            return
        for path in sorted(self._directory.glob(f"{SAVING}*")):
            self._say(f"removed {path.name}: the run before ended while it was written or deleted")
            shutil.rmtree(path)

    def save(self, step: int, state: State, host: dict[str, Any], *, best: int | None) -> None:
        """Starts a save and returns once the arrays are copied; waits for the save before.

        Args:
            step: the number of the last update in `state`.
            state: the whole training state; it may be donated as soon as this returns.
            host: JSON-able state of the host, returned by `restore`.
            best: the step of the best checkpoint so far, which stays besides the latest.

        Raises:
            Exception: whatever stopped the save before this one.
        """
        self.wait()
        saving = self._directory / f"{SAVING}{step:08d}"
        if is_main():
            saving.mkdir(parents=True)
        # A copy: the seal is written later, when the caller may have changed its own.
        content = copy.deepcopy(
            {
                "step": step,
                "host": host,
                "arrays": _signatures(state),
                "fingerprint": fingerprint(state),
            }
        )
        response = ocp.save_checkpointables_async(saving / "state", dict(state))

        def finish() -> None:
            response.result()  # which waits for the other processes' parts, too
            if not is_main():
                return
            write_seal(saving, content)
            if self.path(step).exists():  # the same step again, with its evaluation done by now
                self._delete(step)
            os.rename(saving, self.path(step))
            self._prune(best)

        self._saving = self._worker.submit(finish)

    def wait(self) -> None:
        """Returns when no save is under way; raises what went wrong in the last one."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()
            barrier("checkpoint")  # only then has process 0 sealed it

    def close(self, *, wait: bool = True) -> None:
        """Waits for the last save, unless told otherwise, and ends the thread behind it."""
        try:
            if wait:
                self.wait()
        finally:
            self._worker.shutdown(wait=wait)

    def load(self, step: int, like: dict[str, Any]) -> Restored:
        """Verifies one checkpoint and loads parts of it.

        Args:
            step: which one.
            like: the parts wanted (`model`, `optimizer`), as arrays or `ShapeDtypeStruct`s of the
                shapes, dtypes and shardings they shall have.

        Raises:
            BrokenCheckpointError: files or arrays are not what was saved, or do not fit `like`.
        """
        self.wait()
        content, problem = broadcast(self._verified(step, like) if is_main() else None)
        if problem:
            raise BrokenCheckpointError(problem)
        state = ocp.load_checkpointables(self.path(step) / "state", abstract(like))
        for name, number in fingerprint(state).items():
            if content["fingerprint"].get(name) != number:
                raise BrokenCheckpointError(f"{name} does not hold what was saved")
        return Restored(step, state, content["host"])

    def restore(self, like: State) -> Restored | None:
        """Loads the newest checkpoint that is whole, and moves newer, broken ones away.

        Returns:
            The checkpoint, or None if there is none at all.

        Raises:
            BrokenCheckpointError: there are checkpoints, but none can be read. All stay in place.
        """
        failures: dict[int, str] = {}
        # orbax reports damage by many types, SystemError included; what one process of several
        # meets in there leaves the others waiting inside, so that going back is not possible.
        damage = Exception if jax.process_count() == 1 else BrokenCheckpointError
        for step in broadcast(self.steps[::-1]):
            try:
                restored = self.load(step, like)
            except damage as error:
                failures[step] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                self._say(f"the checkpoint of step {step} is broken and not used: {failures[step]}")
                continue
            for broken in failures if is_main() else ():
                self._say(
                    f"moved the checkpoint of step {broken} to {self._quarantine(broken)}; "
                    f"continuing from the one before, of step {step}"
                )
            return restored
        if failures:
            raise BrokenCheckpointError(
                f"none of the {len(failures)} checkpoints in {self._directory} can be read; move "
                "that directory away to start over. "
                + "; ".join(f"step {step}: {why}" for step, why in failures.items())
            )
        return None

    def _verified(self, step: int, like: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
        """What a checkpoint's seal says, and what is wrong with the checkpoint, if anything."""
        try:
            content = read_seal(self.path(step))
            if content["step"] != step:
                return None, f"it was saved as step {content['step']}"
            _check_signatures(content["arrays"], _signatures(like), parts=like.keys())
        except BrokenCheckpointError as error:
            return None, str(error)
        return content, ""

    def _quarantine(self, step: int) -> Path:
        """Moves a checkpoint out of the way without losing a byte of it."""
        self._broken.mkdir(exist_ok=True)
        count = 0
        while (target := self._broken / f"{step:08d}-{count}").exists():
            count += 1
        os.rename(self.path(step), target)
        return target

    def _prune(self, best: int | None) -> None:
        """Deletes all checkpoints but the latest and the best."""
        for step in self.steps[: -self._keep]:
            if step != best:
                self._delete(step)

    def _delete(self, step: int) -> None:
        """Deletes a checkpoint; renamed first, so that a kill cannot leave half of one."""
        shutil.rmtree(self.path(step).rename(self._directory / f"{SAVING}deleted-{step:08d}"))


def _signatures(tree: Any) -> dict[str, str]:
    """Each array's dtype and shape, `float32[5, 7]`, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}" for path, x in leaves}


def _check_signatures(saved: dict[str, str], wanted: dict[str, str], parts: Iterable[str]) -> None:
    """Raises where a checkpoint's arrays are not those wanted; orbax would cast some silently."""
    prefixes = tuple(f"['{part}']" for part in parts)
    saved = {name: x for name, x in saved.items() if name.startswith(prefixes)}
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise BrokenCheckpointError(
                f"it does not fit: {name} was saved as {saved.get(name, 'nothing')}, but the model "
                f"and optimiser of now have {wanted.get(name, 'nothing')}"
            )
