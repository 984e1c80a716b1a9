"""Rows of text files, each with its line number, so that every complaint can name the place."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

from train.common.data.files import check_file, read_text
from train.common.data.tables import Role, TableKind, read_table, table_kind
from train.common.text.source import TextSource

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
    check_file(path)
    if config.format in ("trec", "regex"):
        return _pattern_rows(path, config)
    kind = table_kind(path) if config.format == "auto" else cast(TableKind, config.format)
    if kind is None:
        raise ValueError(
            f"{path}: the name does not say the format (.csv, .tsv, .jsonl, each also .gz); give "
            "--data.format"
        )
    label = (config.label_column,) if config.label_column is not None else ()
    rows = read_table(
        path,
        kind,
        [Role("text", config.text_column, _TEXT_NAMES), Role("label", label, _LABEL_NAMES, True)],
        encoding=config.encoding,
        header=config.header,
        separator=config.separator,
    )
    return (Row(n, row.get("text", ""), row.get("label", "").strip()) for n, row in rows)


def _pattern_rows(path: Path, config: TextSource) -> Iterator[Row]:
    lines = io.StringIO(read_text(path, config.encoding), newline="")
    pattern = config.pattern or TREC_PATTERN
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
