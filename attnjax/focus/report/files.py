"""Writing a page without harm to what is there."""

from __future__ import annotations

import os
from pathlib import Path

from attnjax.focus.report.page import GENERATOR

_SIGN = f'<meta name="generator" content="{GENERATOR}">'
_BEGINNING = 400  # bytes within which the sign stands


def write_page(path: Path, page: str, *, force: bool = False) -> None:
    """Writes a page, whole or not at all.

    Args:
        path: where. A page that was written here before may be replaced; nothing else.
        page: HTML.
        force: replace any file.

    Raises:
        ValueError: something else is there, or there is no such folder.
    """
    if not path.parent.is_dir():
        raise ValueError(f"expected a file in a folder that exists, got {path}")
    if path.is_dir():
        raise ValueError(f"expected a file to write to, got the folder {path}")
    if path.exists() and not force and not _is_ours(path):
        raise ValueError(
            f"{path} is there and is no report of ours: give another --out, or --force"
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # A run's texts may hold half of a surrogate pair, which no file can.
        temporary.write_bytes(page.encode("utf-8", "replace"))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return _SIGN.encode() in file.read(_BEGINNING)
