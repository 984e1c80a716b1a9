"""Folders of safetensors files: read one tensor at a time, written file by file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


def safetensors() -> Any:
    """Imports safetensors, which is an optional dependency.

    Raises:
      ImportError: if it is not installed; says how to install it.
    """
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "Weights of others are kept in safetensors files: pip install 'attnjax[pretrained]'."
        ) from error
    return safetensors


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file of fields.

    Raises:
      ValueError: if there is no such file, or something else in it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path.parent}: expected a folder with {path.name}, found none."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected fields in braces, got {type(found).__name__}.")
    return found


class TensorFolder(Mapping[str, np.ndarray]):
    """The tensors in a folder, by name; each is read when it is looked up.

    Args:
      folder: with `model.safetensors`, or several files and `model.safetensors.index.json`.

    Raises:
      ValueError: if a file is missing or broken.
      ImportError: if safetensors is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._library, self._folder = safetensors(), folder
        self._files: dict[str, Any] = {}
        self._where = self._single() if (folder / SINGLE).exists() else self._sharded()

    def __getitem__(self, name: str) -> np.ndarray:
        return self._open(self._where[name]).get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def _open(self, name: str) -> Any:
        if name not in self._files:
            path = self._folder / name
            try:
                self._files[name] = self._library.safe_open(path, framework="numpy")
            except FileNotFoundError:
                raise ValueError(f"{path}: {INDEX} names this file, but it is missing.") from None
            except self._library.SafetensorError as error:
                raise ValueError(f"{path}: expected a safetensors file, got {error}.") from None
        return self._files[name]

    def _single(self) -> dict[str, str]:
        return dict.fromkeys(self._open(SINGLE).keys(), SINGLE)

    def _sharded(self) -> dict[str, str]:
        if not (self._folder / INDEX).exists():
            raise ValueError(
                f"{self._folder}: expected {SINGLE}, or {INDEX} and the files that it names, found "
                "neither. Weights in other formats, such as pytorch_model.bin, can't be read."
            )
        where = read_json(self._folder / INDEX).get("weight_map")
        if not isinstance(where, dict) or not all(isinstance(f, str) for f in where.values()):
            raise ValueError(f"{self._folder / INDEX}: expected a weight_map of names to files.")
        # A file elsewhere could be anyone's.
        outside = sorted({f for f in where.values() if Path(f).name != f})
        if outside:
            raise ValueError(
                f"{self._folder / INDEX}: expected files of this folder, got {', '.join(outside)}."
            )
        for name, file in where.items():
            if name not in self._open(file).keys():  # noqa: SIM118, it is no dict
                raise ValueError(f"{self._folder / file}: expected {name}, as {INDEX} says.")
        return where


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    sizes: Mapping[str, int],
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    shard_bytes: int,
) -> None:
    """Writes a `config.json` and tensors, in one file or in several with an index.

    Args:
      folder: made if it is missing.
      config: fields.
      sizes: bytes of each tensor, in the order of `tensors`.
      tensors: name and value of each; a file's worth of them is held at a time.
      shard_bytes: the largest file, unless one tensor is larger.

    Raises:
      ValueError: if the folder already holds such files.
      ImportError: if safetensors is not installed.
    """
    library = safetensors()
    groups = _groups(sizes, shard_bytes)
    files = [SINGLE] if len(groups) == 1 else _names(len(groups))
    present = [name for name in (CONFIG, INDEX, SINGLE, *files) if (folder / name).exists()]
    if present:
        raise ValueError(f"{folder}: expected no {present[0]}; nothing is written over another.")
    folder.mkdir(parents=True, exist_ok=True)
    source = iter(tensors)
    for file, group in zip(files, groups, strict=True):
        part = {name: np.ascontiguousarray(x) for name, x in (next(source) for _ in group)}
        partial = folder / f"{file}.partial"
        # Others ask for the framework before they read a file.
        library.numpy.save_file(part, partial, metadata={"format": "pt"})
        os.replace(partial, folder / file)
    if len(groups) > 1:
        where = {name: file for file, group in zip(files, groups, strict=True) for name in group}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        _write_json(folder / INDEX, index)
    _write_json(folder / CONFIG, config)


def _groups(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Puts tensors in order into groups of at most so many bytes."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _names(count: int) -> list[str]:
    return [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, path)
