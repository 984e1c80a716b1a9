"""Tables of measured options as files that can be committed."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from attnjax.autotune.measuring import Measurement, show
from attnjax.ops import tuning
from attnjax.ops.softmax.dispatch import IMPLEMENTATIONS
from attnjax.ops.tuning import Key, Table

_SCHEMA = "attnjax.autotune/1"
# Seconds to wait for another process that writes the same file.
_PATIENCE = 10.0


def save(path: str | os.PathLike, *measurements: Measurement, replace: bool = False) -> None:
    """Writes measurements to a file, beside what it holds already.

    Args:
      path: a JSON file, made if it is not there; fit to be committed.
      *measurements: what `measure` returned.
      replace: whether they may replace entries for the same device and kind of call that have other
        options; whatever else those entries hold stays.

    Raises:
      ValueError: if the file is no table of this schema, or if an entry would be replaced.
      TimeoutError: if another process does not finish writing to it.
    """
    path = pathlib.Path(path)
    with _alone(path):
        entries = _read(path) if path.exists() else {}
        for found in measurements:
            old = entries.get(found.key, {})
            if old and old["options"] != dict(found.options) and not replace:
                raise ValueError(
                    f"{path}: it has {show(old['options'])} for {_describe(found.key)}, and "
                    f"{show(found.options)} was measured now. Pass replace=True, or save it to "
                    "another file."
                )
            entries[found.key] = {
                **old,
                "device": found.key.device,
                "implementation": found.key.implementation,
                "call": dict(found.key.call),
                "options": dict(found.options),
                "measured": {
                    "pass": "forward and backward" if found.backward else "forward",
                    "milliseconds": round(found.seconds * 1e3, 4),
                    # Infinite where the defaults fail, which JSON has no number for.
                    "default_milliseconds": round(found.default_seconds * 1e3, 4)
                    if found.default_seconds < float("inf")
                    else None,
                    "jax": jax.__version__,
                },
            }
        ordered = [entries[key] for key in sorted(entries, key=str)]
        text = json.dumps({"schema": _SCHEMA, "entries": ordered}, indent=1)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            part.write_text(text + "\n")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def load(path: str | os.PathLike) -> Table:
    """Reads a table that `save` wrote; `use` uses it.

    Args:
      path: the file.

    Returns:
      The table.

    Raises:
      FileNotFoundError: if there is no file.
      ValueError: if it is no table of this schema, with what is wrong and where.
    """
    entries = _read(pathlib.Path(path))
    return Table({key: entry["options"] for key, entry in entries.items()}, os.fspath(path))


@contextlib.contextmanager
def use(table: Table | str | os.PathLike | None) -> Iterator[None]:
    """Uses a table for the calls that are traced while the context lasts.

    Args:
      table: what `load` returned, or a file to load; None uses the defaults.

    Yields:
      Nothing.

    Raises:
      ValueError: if the file is no table.
    """
    if not isinstance(table, Table | None):
        table = load(table)
    with tuning.using(table):
        yield


def _read(path: pathlib.Path) -> dict[Key, dict[str, Any]]:
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a table as JSON, got {error}.") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != _SCHEMA:
        raise ValueError(
            f"{path}: expected the schema {_SCHEMA!r}, got {schema!r}. Measure anew, into another "
            "file."
        )
    listed = content.get("entries")
    if not isinstance(listed, list):
        raise ValueError(f"{path}: expected a list of entries, got {type(listed).__name__}.")
    entries: dict[Key, dict[str, Any]] = {}
    for n, entry in enumerate(listed):
        where = f"{path}, entry {n}"
        for field, kind in (
            ("device", str),
            ("implementation", str),
            ("call", dict),
            ("options", dict),
        ):
            if not isinstance(entry, dict) or not isinstance(entry.get(field), kind):
                raise ValueError(f"{where}: expected {field!r}, of type {kind.__name__}.")
        _check_options(where, entry)
        key = Key(entry["device"], entry["implementation"], tuple(sorted(entry["call"].items())))
        if key in entries:
            raise ValueError(f"{where}: expected one entry for {_describe(key)}, got two.")
        entries[key] = entry
    return entries


def _check_options(where: str, entry: dict[str, Any]) -> None:
    for name, value in entry["options"].items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{where}: {name}: expected a positive integer, got {value!r}.")
    own = IMPLEMENTATIONS.get(entry["implementation"])
    if own is None:
        return  # another version's, kept as it is
    known = {name for stage in own.stages for name in stage.names}
    if unknown := entry["options"].keys() - known:
        raise ValueError(
            f"{where}: expected options of {entry['implementation']} among "
            f"{', '.join(sorted(known)) or 'none'}; got {', '.join(sorted(unknown))}."
        )


def _describe(key: Key) -> str:
    call = ", ".join(f"{name} {value}" for name, value in key.call)
    return f"{key.implementation} on {key.device} ({call})"


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from writing a file meanwhile, which would lose their entries."""
    lock = path.with_name(path.name + ".lock")
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{lock} is there: another process writes {path.name}, or was killed while it "
                    "did. If none runs, remove it."
                ) from None
            time.sleep(0.05)
    try:
        yield
    finally:
        lock.unlink()
