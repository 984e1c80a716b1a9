"""A run directory: one run, one config, one process at a time."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from train.common.config import NEUTRAL_FIELDS, PLACEMENT_FIELDS, TrainConfig
from train.common.distributed import is_main, same_everywhere
from train.common.files import sha256_json, write_json
from train.common.manifest import add_session, changed_surroundings, flatten, new_manifest

CONFIG, MANIFEST = "config.json", "manifest.json"


class RunLock:
    """Holds a run directory for this process; the kernel lets go of it however the process ends.

    Raises:
        ValueError: (on entering) another process holds it.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / ".lock"
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Takes the lock."""
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise ValueError(
                f"another process is training in {self._path.parent}; wait for it, or give this "
                "run a directory of its own"
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Releases the lock."""
        os.close(self._descriptor)


def run_config(config: TrainConfig, describe: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in config.json: the task's description and the training config.

    Raises:
        ValueError: `describe` holds something that JSON cannot.
    """
    try:
        return json.loads(
            json.dumps({"task": dict(describe), "train": dataclasses.asdict(config)}, default=str)
        )
    except TypeError as error:
        raise ValueError(f"describe must be a mapping that JSON can hold: {error}") from error


def decisive(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `run_config` that the numbers of a run follow from, by dotted name."""
    neutral = tuple(f"train.{name}" for name in NEUTRAL_FIELDS)
    return {
        name: value
        for name, value in flatten(config).items()
        if name not in neutral and not name.startswith(tuple(f"{n}." for n in neutral))
    }


def claim(
    run_dir: Path,
    config: TrainConfig,
    describe: Mapping[str, Any],
    *,
    data_fingerprint: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Writes config.json and manifest.json into a new run directory, or checks those there.

    Of several processes number 0 does so; then all check that they train the same as it.

    Args:
        run_dir: exists; empty, or of the same run.
        config: the training config.
        describe: the task's part of the config.
        data_fingerprint: sha256 of the task's data.
        say: told of versions and devices that differ from those the run began with.

    Returns:
        The manifest; empty in all processes but number 0.

    Raises:
        ValueError: the directory belongs to a run with another config, named field by field, or
            with other data, or holds something else; or this process has another config or other
            data than process 0, or does not see its directory.
    """
    new = run_config(config, describe)
    manifest = _claim(run_dir, new, config.seed, data_fingerprint, say) if is_main() else {}
    _check_same_run(run_dir, config, new, data_fingerprint)
    return manifest


def _claim(
    run_dir: Path,
    new: dict[str, Any],
    seed: int,
    data_fingerprint: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """What `claim` does in process 0."""
    if not (run_dir / CONFIG).is_file():
        if (run_dir / "checkpoints").exists():
            raise ValueError(f"{run_dir} has checkpoints but no {CONFIG}; use another directory")
        manifest = new_manifest(
            seed=seed, data_fingerprint=data_fingerprint, config_sha256=sha256_json(new)
        )
        write_json(run_dir / MANIFEST, manifest)
        write_json(run_dir / CONFIG, new)  # last: with it the directory counts as claimed
        return manifest
    old = _read(run_dir / CONFIG)
    if differences := _differences(old, new):
        raise ValueError(
            f"{run_dir} belongs to a run with another config; use the same one to resume it, or "
            "another directory. It has " + "; ".join(differences)
        )
    manifest = _read(run_dir / MANIFEST)
    if manifest.get("data_fingerprint") != data_fingerprint:
        raise ValueError(
            f"the data changed since the run in {run_dir} began: fingerprint "
            f"{manifest.get('data_fingerprint')} then, {data_fingerprint} now; use another "
            "directory, or the data of then"
        )
    if changed := changed_surroundings(manifest):
        say(
            "resuming with other code, versions or machine than then; the last bits may differ: "
            + "; ".join(changed)
        )
    return manifest


def _check_same_run(
    run_dir: Path, config: TrainConfig, new: dict[str, Any], data_fingerprint: str
) -> None:
    """Checks, when process 0 has claimed the directory, that all processes train the same there."""
    fields = decisive(new)
    fields |= {f"train.{name}": getattr(config, name) for name in PLACEMENT_FIELDS}
    same_everywhere("config and data", {**fields, "data fingerprint": data_fingerprint})
    if not (run_dir / CONFIG).is_file():
        raise ValueError(
            f"process {jax.process_index()} does not see what process 0 wrote to {run_dir}: the "
            "run directory must lie on a file system that all of them share"
        )


def record_session(
    run_dir: Path,
    manifest: dict[str, Any],
    *,
    resumed_step: int | None,
    mesh: Mapping[str, int] | None,
) -> None:
    """Adds this process, which speaks for all, to the manifest's sessions."""
    if is_main():
        write_json(run_dir / MANIFEST, add_session(manifest, resumed_step=resumed_step, mesh=mesh))


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`field=then, not now` for every field that differs and matters."""
    before, now = decisive(old), decisive(new)
    missing = "(absent)"
    return [
        f"{name}={before.get(name, missing)!r}, not {now.get(name, missing)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name, missing) != now.get(name, missing)
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); put it back or start over") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def described_task(run_dir: Path, what: str, *others: str) -> dict[str, Any]:
    """The task's part of a run's config.

    Args:
        run_dir: the run directory.
        what: the task, for people.
        *others: files that such a run has besides its config.

    Raises:
        ValueError: there is no such run, or it is one of another task.
    """
    missing = [name for name in (CONFIG, *others) if not (run_dir / name).is_file()]
    if missing:
        raise ValueError(f"{run_dir} is no run directory of {what}: it has no {missing[0]}")
    return json.loads((run_dir / CONFIG).read_text(encoding="utf-8"))["task"]
