"""The seal of a checkpoint: a list of its files with their hashes, written last.

A directory without a valid seal is no checkpoint. Orbax loads flipped bits without a word and
reports lost files in many ways, so nothing is read before every byte has been compared.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from train.common.files import sha256_file, sha256_json, write_json

SEAL = "seal.json"


class BrokenCheckpointError(RuntimeError):
    """A checkpoint is not, byte for byte, what was saved."""


def write_seal(directory: Path, content: dict[str, Any]) -> None:
    """Seals a complete checkpoint directory.

    Args:
        directory: holds nothing but the checkpoint's files.
        content: what the seal says besides the files; must survive JSON.
    """
    seal = {"content": content, "files": _hashes(directory)}
    write_json(directory / SEAL, {**seal, "sha256": sha256_json(seal)})


def read_seal(directory: Path) -> dict[str, Any]:
    """Compares every file with the seal and returns the seal's content.

    Raises:
        BrokenCheckpointError: names the first file that is missing, added or changed.
    """
    path = directory / SEAL
    if not path.is_file():
        raise BrokenCheckpointError(f"{SEAL} is missing")
    try:
        seal = json.loads(path.read_bytes())
        claimed = seal.pop("sha256")
        content, files = seal["content"], seal["files"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenCheckpointError(f"{SEAL} cannot be read: {error!r}") from error
    if claimed != sha256_json(seal):
        raise BrokenCheckpointError(f"{SEAL} was changed: its own hash does not match")
    found = _hashes(directory)
    for name in sorted(files.keys() | found.keys()):
        if name not in found:
            raise BrokenCheckpointError(f"{name} is missing")
        if name not in files:
            raise BrokenCheckpointError(f"{name} was added after the checkpoint was made")
        if files[name] != found[name]:
            raise BrokenCheckpointError(
                f"{name} was changed: {found[name]['bytes']} bytes, sha256 "
                f"{found[name]['sha256'][:12]}, but {files[name]['bytes']} bytes, sha256 "
                f"{files[name]['sha256'][:12]} were saved"
            )
    return content


def _hashes(directory: Path) -> dict[str, Any]:
    """Size and sha256 of every file below `directory` but the seal, by relative path."""
    return {
        path.relative_to(directory).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / SEAL
    }
