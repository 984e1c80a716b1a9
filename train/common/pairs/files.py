"""Pairs of texts from parallel line files and from csv, tsv and jsonl files, plain or .gz."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from train.common.data.files import check_file, read_text
from train.common.data.tables import Role, TableKind, read_table, table_kind
from train.common.pairs.source import PairSource
from train.common.pairs.text_pairs import Pair, TextPairs, hold_out_pairs

SOURCE_NAMES = ("source", "src", "text", "document", "body", "article")
TARGET_NAMES = ("target", "tgt", "summary", "highlights", "translation", "response")


def load_pair_files(config: PairSource) -> TextPairs:
    """Reads the training files and, where given, the validation and test files.

    What has no file of its own is held out of the training pairs at random. Pairs of which a side
    is blank are left out and counted.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: files can't be read as asked, or do not belong together.
    """
    notes: list[str] = []
    splits = {"train": _pairs(config, "train", config.source, config.target, notes)}
    missing: dict[str, float] = {}
    for split in ("validation", "test"):
        path = getattr(config, split)
        if path is None:
            missing[split] = getattr(config, f"{split}_fraction")
        else:
            splits[split] = _pairs(config, split, path, getattr(config, f"{split}_target"), notes)
    if missing:
        splits |= hold_out_pairs(splits["train"], missing, seed=config.split_seed)
        held = " and ".join(f"{split} ({len(splits[split])})" for split in missing)
        notes.append(f"held out of {config.source} at random: {held}")
    return TextPairs(splits, origin=config.source, notes=tuple(notes))


def _pairs(
    config: PairSource, split: str, source: str, target: str | None, notes: list[str]
) -> tuple[Pair, ...]:
    """The pairs of one split; what is blank is skipped and counted."""
    path = Path(source)
    check_file(path)
    kind = table_kind(path) if config.format == "auto" else config.format
    if kind in (None, "lines"):
        rows = _parallel(path, _target_path(path, target, split), config.encoding)
    else:
        if target is not None:
            raise ValueError(
                f"{path} is a table that holds the targets, too; leave the target file {target} "
                "out, or give --data.format lines"
            )
        rows = _table(path, cast(TableKind, kind), config)
    blank = [line for line, pair in rows if not all(side.strip() for side in pair)]
    if blank:
        lines = ", ".join(map(str, blank[:5])) + (", ..." if len(blank) > 5 else "")
        notes.append(f"{path}: skipped {len(blank)} pairs with a blank side (lines {lines})")
    pairs = tuple(pair for _, pair in rows if all(side.strip() for side in pair))
    if not pairs:
        raise ValueError(f"{path}: no line holds a pair of texts; the file is empty or nearly so")
    return pairs


def _target_path(path: Path, target: str | None, split: str) -> Path:
    if target is None:
        option = "target" if split == "train" else f"{split}-target"
        raise ValueError(
            f"{path} holds one text a line: give the file with the targets as --data.{option}, or "
            "a table (.csv, .tsv, .jsonl) that holds both"
        )
    return Path(target)


def _parallel(source: Path, target: Path, encoding: str) -> list[tuple[int, Pair]]:
    """Pairs of lines of two files, each with its line number."""
    sources, targets = _lines(source, encoding), _lines(target, encoding)
    if len(sources) != len(targets):
        raise ValueError(
            f"{source} has {len(sources)} lines and {target} {len(targets)}: expected a target "
            "line for each source line"
        )
    return [(n, Pair(*pair)) for n, pair in enumerate(zip(sources, targets, strict=True), 1)]


def _lines(path: Path, encoding: str) -> list[str]:
    """The lines of a file. Only newlines end them: `str.splitlines` knows more, and misaligns."""
    lines = read_text(path, encoding).split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.strip() for line in lines]


def _table(path: Path, kind: TableKind, config: PairSource) -> list[tuple[int, Pair]]:
    rows = read_table(
        path,
        kind,
        [
            Role("source", config.source_column, SOURCE_NAMES),
            Role("target", config.target_column, TARGET_NAMES),
        ],
        encoding=config.encoding,
        header=config.header,
        separator=config.separator,
    )
    return [
        (line, Pair(row.get("source", "").strip(), row.get("target", "").strip()))
        for line, row in rows
    ]
