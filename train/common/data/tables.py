"""Columns of csv, tsv and jsonl files, each row with its line number for what is said about it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from train.common.data.files import read_text

TableKind = Literal["csv", "tsv", "jsonl"]


class Role(NamedTuple):
    """What some columns are for."""

    name: str
    """`text`: the columns are chosen by `--data.text-column`."""
    columns: tuple[str, ...]
    """Names, or numbers from 0; empty takes the first of the usual ones that there is."""
    usual: tuple[str, ...]
    """Names, in lower case, that say what a column is for."""
    numbers: bool = False
    """Whether JSON may hold whole numbers there."""


class TableRow(NamedTuple):
    """One row."""

    line: int
    """Counted from 1; of a row over several lines the last one."""
    values: dict[str, str]
    """By role, several columns joined by a space; empty for a blank line."""


def table_kind(path: Path) -> TableKind | None:
    """The layout that the name of a file says, .gz aside; None if it says none."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    kinds: dict[str, TableKind] = {
        ".csv": "csv",
        ".tsv": "tsv",
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
    }
    return kinds.get(suffix)


def read_table(
    path: Path,
    kind: TableKind,
    roles: Sequence[Role],
    *,
    encoding: str = "utf-8",
    header: bool | None = None,
    separator: str | None = None,
) -> Iterator[TableRow]:
    """Yields the rows of a file.

    Args:
        path: plain or .gz.
        kind: the layout.
        roles: what is wanted.
        encoding: of the characters.
        header: whether the first line of csv or tsv names the columns; None: it does unless the
            columns are given by number.
        separator: between columns; None: a comma for csv, a tab for tsv.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not as described; names the line.
    """
    # A quoted csv field may span several lines, whose ends are kept.
    lines = iter(io.StringIO(read_text(path, encoding), newline=""))
    if kind == "jsonl":
        return _json_rows(path, lines, roles)
    return _column_rows(path, lines, kind, roles, header, separator)


def _json_rows(path: Path, lines: Iterator[str], roles: Sequence[Role]) -> Iterator[TableRow]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            yield TableRow(number, {})
            continue
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(
                f"{place}: expected one JSON object a line, got {type(record).__name__}"
            )
        columns = {role.name: _columns(place, list(record), role) for role in roles}
        yield TableRow(
            number,
            {role.name: _json_text(place, record, columns[role.name], role) for role in roles},
        )


def _json_text(place: str, record: dict[str, Any], columns: list[str], role: Role) -> str:
    values = [record[name] for name in columns]
    whole = [isinstance(x, int) and not isinstance(x, bool) and role.numbers for x in values]
    if not all(isinstance(x, str) or number for x, number in zip(values, whole, strict=True)):
        wanted = "a string or a whole number" if role.numbers else "a string"
        raise ValueError(f"{place}: expected {wanted} in {columns}, got {values}")
    return " ".join(map(str, values))


def _column_rows(
    path: Path,
    lines: Iterator[str],
    kind: Literal["csv", "tsv"],
    roles: Sequence[Role],
    header: bool | None,
    separator: str | None,
) -> Iterator[TableRow]:
    separator = separator or {"csv": ",", "tsv": "\t"}[kind]
    # In tsv files as they are published a quotation mark is just a character.
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if kind == "csv" else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
    given = [name for role in roles for name in role.columns]
    by_number = bool(given) and all(name.isdecimal() for name in given)
    has_header = header if header is not None else not by_number
    names: list[str] | None = None
    try:
        for cells in reader:
            place = f"{path}, line {reader.line_num}"
            if not cells:
                yield TableRow(reader.line_num, {})
                continue
            if names is None:
                names = cells if has_header else [str(i) for i in range(len(cells))]
                columns = {
                    role.name: _columns(place, names, role, numbered=by_number) for role in roles
                }
                if has_header:
                    continue
            if len(cells) != len(names):
                raise ValueError(
                    f"{place}: expected {len(names)} columns separated by {separator!r}, got "
                    f"{len(cells)}"
                )
            record = dict(zip(names, cells, strict=True))
            values = {name: " ".join(record[c] for c in found) for name, found in columns.items()}
            yield TableRow(reader.line_num, values)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def _columns(place: str, names: Sequence[str], role: Role, *, numbered: bool = False) -> list[str]:
    """Resolves the columns of a role against the names there are."""
    wanted = list(role.columns) or [n for n in names if n.lower() in role.usual][:1]
    if numbered:
        wanted = [names[int(n)] if int(n) < len(names) else n for n in wanted]
    absent = [name for name in wanted if name not in names]
    if absent or not wanted:
        asked = f"no column {absent[0]!r}" if absent else f"no column is known as the {role.name}"
        raise ValueError(
            f"{place}: {asked}; the columns are {list(names)}. Give --data.{role.name}-column by "
            "name, or by number from 0 for a file without a header"
        )
    return wanted
