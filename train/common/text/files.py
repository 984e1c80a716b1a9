"""Text and labels from csv, tsv, jsonl and line files, plain or .gz."""

from __future__ import annotations

from pathlib import Path

from train.common.text.labelled_text import Example, LabelledText, hold_out
from train.common.text.rows import Row, read_rows
from train.common.text.source import TextSource


def load_files(config: TextSource) -> LabelledText:
    """Reads the training file and, where given, the validation and test files.

    Labels are the distinct ones of the training file, sorted. What has no file of its own is held
    out of the training file at random.

    Raises:
        ValueError: a file can't be read as asked, or a label never occurs in training.
        FileNotFoundError: a path does not exist.
    """
    notes: list[str] = []
    train_rows = _rows(Path(config.source), config, notes)
    labels = tuple(sorted({row.label for row in train_rows}))
    index = {label: i for i, label in enumerate(labels)}
    splits: dict[str, tuple[Example, ...]] = {}
    missing: dict[str, float] = {}
    for split in ("validation", "test"):
        if getattr(config, split) is None:
            missing[split] = getattr(config, f"{split}_fraction")
        else:
            path = Path(getattr(config, split))
            rows = _rows(path, config, notes)
            splits[split] = tuple(_example(row, path, index) for row in rows)
    train = [Example(row.text, index[row.label]) for row in train_rows]
    splits |= hold_out(train, missing, config.split_seed)
    if missing:
        held = " and ".join(f"{split} ({len(splits[split])})" for split in missing)
        notes.append(f"held out of {config.source} at random: {held}")
    return LabelledText(splits, labels, origin=config.source, notes=tuple(notes))


def _rows(path: Path, config: TextSource, notes: list[str]) -> list[Row]:
    rows = []
    skipped: list[int] = []
    for row in read_rows(path, config):
        if row.text.strip():
            rows.append(row)
        else:
            skipped.append(row.line)
    if skipped:
        lines = ", ".join(map(str, skipped[:5])) + (", ..." if len(skipped) > 5 else "")
        notes.append(f"{path}: skipped {len(skipped)} lines without text (lines {lines})")
    if not rows:
        raise ValueError(f"{path}: no line holds a text; the file is empty or nearly so")
    return rows


def _example(row: Row, path: Path, index: dict[str, int]) -> Example:
    if row.label not in index:
        known = ", ".join(list(index)[:10]) + (", ..." if len(index) > 10 else "")
        raise ValueError(
            f"{path}, line {row.line}: label {row.label!r} never occurs in the training file, "
            f"whose labels are {known}"
        )
    return Example(row.text, index[row.label])
