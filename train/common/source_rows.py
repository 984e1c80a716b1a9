"""Rows of text files, each with its line number, so that every complaint can name the place."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from train.common.text_files import read_text
from train.common.text_source import TextSource

TREC_PATTERN = r"(?P<label>[^:\s]+):\S+\s+(?P<text>.*)"
"""`COARSE:fine question text` (Li and Roth, 2002), labelled by COARSE."""

_TEXT_NAMES = ("text", "sentence", "review", "question", "content", "document")
_LABEL_NAMES = ("label", "class", "category", "sentiment", "target")


class Row(NamedTuple):
    """One labelled text and the line it stands on, counted from 1."""

    line: int
    text: str
    label: str


def read_rows(path: Path, config: TextSource) -> Iterator[Row]:
    """Yields the rows of a file; a blank line is a row without text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not what the configuration says; names the line.
    """
    # A quoted csv field may span several lines, whose ends are kept.
    lines = iter(io.StringIO(read_text(path, config.encoding), newline=""))
    kind = config.format if config.format != "auto" else _format_by_name(path)
    if kind == "jsonl":
        return _json_rows(path, lines, config)
    if kind in ("trec", "regex"):
        return _pattern_rows(path, lines, config.pattern or TREC_PATTERN)
    return _column_rows(path, lines, kind, config)


def _format_by_name(path: Path) -> str:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    kinds = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
    if suffix not in kinds:
        raise ValueError(
            f"{path}: the name does not say the format (.csv, .tsv, .jsonl, each also .gz); give "
            "--data.format"
        )
    return kinds[suffix]


def _json_rows(path: Path, lines: Iterator[str], config: TextSource) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            yield Row(number, "", "")
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(
                f"{path}, line {number}: expected one JSON object a line, got "
                f"{type(record).__name__}"
            )
        place = f"{path}, line {number}"
        texts, label = _columns(place, list(record), config)
        values = [record[name] for name in texts]
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"{place}: expected a string in {texts}, got {values}")
        if not isinstance(record[label], str | int) or isinstance(record[label], bool):
            raise ValueError(
                f"{place}: expected a string or a whole number as {label!r}, got {record[label]!r}"
            )
        yield Row(number, " ".join(values), str(record[label]))


def _pattern_rows(path: Path, lines: Iterator[str], pattern: str) -> Iterator[Row]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"--data.pattern {pattern!r} is no regular expression: {error}") from error
    if not {"label", "text"} <= set(compiled.groupindex):
        raise ValueError(f"--data.pattern {pattern!r} needs the groups (?P<label>) and (?P<text>)")
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        match = compiled.fullmatch(stripped)
        if stripped and not match:
            raise ValueError(
                f"{path}, line {number}: {stripped[:60]!r} does not match the pattern {pattern!r}"
            )
        yield Row(number, match["text"], match["label"]) if match else Row(number, "", "")


def _column_rows(path: Path, lines: Iterator[str], kind: str, config: TextSource) -> Iterator[Row]:
    separator = config.separator or {"csv": ",", "tsv": "\t"}[kind]
    # In tsv files as they are published a quotation mark is just a character.
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if kind == "csv" else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
    given = [*config.text_column, *([config.label_column] if config.label_column else [])]
    by_number = bool(given) and all(name.isdecimal() for name in given)
    has_header = config.header if config.header is not None else not by_number
    names: list[str] | None = None
    try:
        for cells in reader:
            place = f"{path}, line {reader.line_num}"
            if not cells:
                yield Row(reader.line_num, "", "")
                continue
            if names is None:
                names = cells if has_header else [str(i) for i in range(len(cells))]
                texts, label = _columns(place, names, config, numbered=by_number)
                if has_header:
                    continue
            if len(cells) != len(names):
                raise ValueError(
                    f"{place}: expected {len(names)} columns separated by {separator!r}, got "
                    f"{len(cells)}"
                )
            record = dict(zip(names, cells, strict=True))
            yield Row(reader.line_num, " ".join(record[c] for c in texts), record[label].strip())
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def _columns(
    place: str, names: Sequence[str], config: TextSource, *, numbered: bool = False
) -> tuple[list[str], str]:
    """Resolves the text columns and the label column against the names there are."""
    texts = list(config.text_column) or [n for n in names if n.lower() in _TEXT_NAMES][:1]
    labels = (
        [config.label_column]
        if config.label_column is not None
        else [n for n in names if n.lower() in _LABEL_NAMES][:1]
    )
    if numbered:
        texts, labels = (
            [names[int(n)] if int(n) < len(names) else n for n in c] for c in (texts, labels)
        )
    for role, wanted in (("text", texts), ("label", labels)):
        absent = [name for name in wanted if name not in names]
        if absent or not wanted:
            asked = f"no column {absent[0]!r}" if absent else f"no column is known as the {role}"
            raise ValueError(
                f"{place}: {asked}; the columns are {list(names)}. Give --data.{role}-column by "
                "name, or by number from 0 for a file without a header"
            )
    return texts, labels[0]
