"""JSON files of a run that may have been cut off while they were written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_INFINITE = 1e100


class Problems:
    """What is wrong with a run's files, one sentence for each kind of trouble, in order."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, sentence: str) -> None:
        """Adds a sentence; one that was there before is only counted."""
        self._counts[sentence] = self._counts.get(sentence, 0) + 1

    @property
    def sentences(self) -> tuple[str, ...]:
        """The sentences, each with how often it was said where that was more than once."""
        return tuple(
            text if count == 1 else f"{text} ({count:,} times)"
            for text, count in self._counts.items()
        )


def objects(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, with the numbers of their lines.

    Args:
        path: the file, which must exist.
        problems: told of lines that are no JSON object; they are left out. A last line without
            its newline was cut off by a kill, and is told of as such.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                yield number, value
            elif line.endswith("\n"):
                problems.add(f"{path.name}: a line is no JSON object and was left out")
            else:
                problems.add(f"{path.name}: line {number}, the last, was cut off and was left out")


def whole(path: Path, problems: Problems) -> dict[str, Any] | None:
    """The object of a JSON file, or None, with the reason among the problems."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.add(f"{path.name} is missing")
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        problems.add(f"{path.name} cannot be read: {reason[:200]}")
        return None
    if not isinstance(value, dict):
        problems.add(f"{path.name} should hold a JSON object, but holds a {type(value).__name__}")
        return None
    return value


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value: Any) -> float | None:
    """A JSON number as a float; None for what is no number, or not below 1e100 in size.

    Larger ones are as good as infinite, and sums and squares of them would be.
    """
    if not is_number(value):
        return None
    try:
        found = float(value)
    except OverflowError:  # JSON's integers have no limit
        return None
    return found if abs(found) < _INFINITE else None


def step_of(row: dict[str, Any]) -> int | None:
    """The row's step, a whole number from 0, or None."""
    step = row.get("step")
    fits = isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**53
    return step if fits else None


def floats(values: Any) -> np.ndarray | None:
    """A list of numbers and nulls as float32; None for anything else, and for an empty list."""
    if not isinstance(values, list) or not values:
        return None
    if not all(value is None or is_number(value) for value in values):
        return None
    # Python reads NaN and Infinity in JSON too; both are as little of a picture as null is.
    found = [number(value) for value in values]
    array = np.asarray([np.nan if x is None else x for x in found], np.float64)
    return np.where(np.abs(array) <= np.finfo(np.float32).max, array, np.nan).astype(np.float32)
