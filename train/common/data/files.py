"""Text files as strings, plain or .gz, with errors that name the place."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path


def check_file(path: Path) -> None:
    """Raises FileNotFoundError if there is no such file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"--data {path}: no such file (besides a path, --data takes builtin and tfds:NAME)"
        )


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The whole text of a file; line ends stay as they are.

    Args:
        path: the file; unpacked if its name ends in .gz.
        encoding: of its characters; a byte-order mark of UTF-8 is dropped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole gzip file, or not text in this encoding; names the line.
    """
    check_file(path)
    content = path.read_bytes()
    if path.name.endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: not a whole gzip file: {error}") from error
    return decoded(content, path, encoding)


def decoded(content: bytes, place: Path | str, encoding: str = "utf-8") -> str:
    """Bytes as text.

    Args:
        content: the bytes.
        place: where they are from, for the message.
        encoding: of the characters; a byte-order mark of UTF-8 is dropped.

    Raises:
        ValueError: they are not text in this encoding; names the line.
    """
    try:
        # A byte-order mark would otherwise become part of the text.
        return content.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{place}, line {line}: not {encoding} text ({error.reason}); give its "
            "--data.encoding, latin-1 for instance"
        ) from error
    except LookupError as error:
        raise ValueError(f"--data.encoding {encoding}: {error}") from error
