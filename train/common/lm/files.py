"""Documents from text files, .jsonl files and folders of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from train.common.data.files import read_text
from train.common.lm.documents import SPLITS, Documents, hold_out
from train.common.lm.source import DocumentSource

_TEXT, _RECORDS = (".txt", ".text", ".md", ".rst"), (".jsonl", ".ndjson")
_COLUMNS = ("text", "content", "document", "body")


def load_files(config: DocumentSource) -> Documents:
    """Reads the training files and, where given, the validation and test files.

    What has no files of its own is held out of the training files.

    Raises:
        ValueError: a file can't be read as asked, or there is no text in it.
        FileNotFoundError: a path does not exist.
    """
    notes: list[str] = []
    train = _documents(config.source, config, notes)
    missing: dict[str, float] = {}
    splits: dict[str, tuple[str, ...]] = {}
    for split in SPLITS[1:]:
        if paths := getattr(config, split):
            splits[split] = tuple(_documents(paths, config, notes))
        else:
            missing[split] = getattr(config, f"{split}_fraction")
    held, note = hold_out(train, missing, how=config.hold_out, seed=config.split_seed)
    found = {**held, **splits}
    ordered = {split: found[split] for split in SPLITS if split in found}
    return Documents(ordered, ", ".join(config.source), tuple(n for n in (*notes, note) if n))


def _documents(paths: Sequence[str], config: DocumentSource, notes: list[str]) -> list[str]:
    documents: list[str] = []
    for path in map(Path, paths):
        for file in _files(path, notes):
            empty = 0
            found = len(documents)
            for document in _read(file, config):
                if document.strip():
                    documents.append(_checked(document, file))
                else:
                    empty += 1
            if empty:
                notes.append(f"{file}: skipped {empty} empty documents")
            if len(documents) == found:
                raise ValueError(f"{file}: there is no text in it")
    return documents


def _checked(document: str, file: Path) -> str:
    r"""The document itself, if it is text: an escape like \ud83d in JSON may be half of one."""
    try:
        document.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{file}: {document[max(error.start - 20, 0) : error.start]!r} is followed by half a "
            f"character ({error.reason})"
        ) from error
    return document


def _files(path: Path, notes: list[str]) -> list[Path]:
    """The file itself, or those of a folder, in the order of their names."""
    if not path.is_dir():
        return [path]
    inside = sorted(file for file in path.rglob("*") if file.is_file())
    files = [file for file in inside if _suffix(file) in (*_TEXT, *_RECORDS)]
    if not files:
        raise ValueError(
            f"--data {path}: the folder holds no file named {', '.join((*_TEXT, *_RECORDS))} "
            "(each also .gz)"
        )
    if len(files) < len(inside):
        notes.append(f"{path}: skipped {len(inside) - len(files)} files that are not named as text")
    return files


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _read(path: Path, config: DocumentSource) -> Iterator[str]:
    text = read_text(path, config.encoding)
    if _suffix(path) in _RECORDS:
        yield from _records(path, text, config)
    elif config.document == "line":
        yield from text.splitlines()
    elif config.document == "paragraph":
        # What stands before the first and after the last paragraph is no empty document.
        yield from re.split(r"\n[^\S\n]*(?:\n[^\S\n]*)+", text.replace("\r\n", "\n").strip())
    else:
        yield text


def _records(path: Path, text: str, config: DocumentSource) -> Iterator[str]:
    # Not splitlines: it would also cut at characters that JSON strings may hold.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: not JSON: {error}") from error
        if isinstance(record, str) and config.column is None:
            yield record
            continue
        if not isinstance(record, dict):
            raise ValueError(f"{place}: expected a JSON object, got {type(record).__name__}")
        wanted = [config.column] if config.column else _COLUMNS
        column = next((name for name in wanted if name in record), None)
        if column is None:
            raise ValueError(
                f"{place}: no column {' or '.join(wanted)}; the columns are {list(record)}. Give "
                "--data.column"
            )
        if not isinstance(record[column], str):
            raise ValueError(f"{place}: expected a string as {column!r}, got {record[column]!r}")
        yield record[column]
