"""What focus_examples.json of a run says: examples, their maps, and how true these are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attnjax.focus.lines import Problems, is_number, number, whole
from attnjax.focus.report.examples import (
    Alignment,
    Example,
    Examples,
    Faithful,
    Image,
    Map,
    Series,
    Tokens,
)

EXAMPLES = "focus_examples.json"
VERSION = 1
# Formats that every browser shows; SVG is none of them, for it may hold scripts and links.
_IMAGE = re.compile(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}")
_MEASURES = (
    "examples",
    "deletion",
    "deletion_random",
    "margin",
    "insertion",
    "insertion_random",
    "agreement_gradients",
    "agreement_leave_one_out",
    "random_weights",
)


def read_examples(path: Path) -> Examples:
    """Reads a focus_examples.json; what cannot be read is left out and told of in `problems`.

    Args:
        path: the file; it may be missing.
    """
    problems = Problems()
    found = whole(path, problems) or {}
    if found and found.get("version") != VERSION:
        problems.add(
            f"{path.name} is of version {str(found.get('version'))[:40]}, and only version "
            f"{VERSION} is understood here: nothing of it is shown"
        )
        found = {}
    rows = found.get("examples", [])
    if not isinstance(rows, list):
        problems.add(f"{path.name}: examples should be a list")
        rows = []
    examples = []
    for place, row in enumerate(rows, 1):
        try:
            examples.append(_example(row))
        except ValueError as error:
            problems.add(f"{path.name}: example {place} was left out: {error}")
    return Examples(
        task=str(found.get("task") or ""),
        examples=tuple(examples),
        faithful=_faithful(found.get("faithful"), path.name, problems),
        problems=problems.sentences,
    )


def _example(row: Any) -> Example:
    if not isinstance(row, dict):
        raise ValueError("it is no object")
    rows = row.get("maps")
    if not isinstance(rows, list) or not rows or not all(isinstance(x, dict) for x in rows):
        raise ValueError("it has no maps")
    kind = row.get("kind")
    shown: Tokens | Alignment | Image | Series
    shape: tuple[int, ...] | None
    if kind == "tokens":
        shown = Tokens(_words(row, "tokens"))
        shape = (len(shown.tokens),)
    elif kind == "alignment":
        shown = Alignment(_words(row, "source"), _words(row, "target"))
        shape = (len(shown.target), len(shown.source))
    elif kind == "image":
        address = row.get("image")
        if not isinstance(address, str) or not _IMAGE.fullmatch(address):
            raise ValueError("its image is no data: address of a PNG, JPEG, GIF or WebP")
        shown, shape = Image(address), None  # the grid is as fine as the model's patches
    elif kind == "series":
        shown = _series(row)
        shape = shown.values.shape[1:]
    else:
        raise ValueError(f"kind should be tokens, alignment, image or series, not {kind!r:.40}")
    return Example(
        title=str(row.get("title") or "untitled"),
        shown=shown,
        maps=tuple(_map(x, shape) for x in rows),
        prediction=None if row.get("prediction") is None else str(row["prediction"]),
        label=None if row.get("label") is None else str(row["label"]),
        curves=_curves(row.get("faithful")),
    )


def _words(row: dict[str, Any], name: str) -> tuple[str, ...]:
    words = row.get(name)
    if not isinstance(words, list) or not words or not all(isinstance(x, str) for x in words):
        raise ValueError(f"{name} should be a list of strings")
    return tuple(words)


def _series(row: dict[str, Any]) -> Series:
    values = _numbers(row.get("values"), "values", 2)
    names = tuple(str(x) for x in row.get("names") or ())
    # Written either way round: a list for each channel, or one for each moment.
    if len(names) != values.shape[0] and len(names) == values.shape[1]:
        values = values.T
    if names and len(names) != values.shape[0]:
        raise ValueError(f"it has {len(names)} names, and values of shape {values.shape}")
    return Series(values, names or tuple(f"channel {x}" for x in range(len(values))))


def _map(row: dict[str, Any], shape: tuple[int, ...] | None) -> Map:
    name = str(row.get("name") or "unnamed map")
    weights = _numbers(row.get("weights"), f"weights of {name[:80]!r}", len(shape or (0, 0)))
    if shape is not None and weights.shape != shape:
        raise ValueError(f"weights of {name[:80]!r} have shape {weights.shape}, not {shape}")
    module, head = row.get("module"), row.get("head")
    return Map(
        name=name,
        module=module if isinstance(module, str) else None,
        head=head if type(head) is int else None,
        weights=weights,
    )


def _numbers(value: Any, what: str, axes: int) -> np.ndarray:
    """Nested lists of numbers and nulls as float64 with `axes` axes, none of them empty."""
    rows = value if axes == 2 else [value]
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{what} should be lists of numbers")
    for row in rows:
        if not isinstance(row, list) or not row or len(row) != len(rows[0]):
            raise ValueError(f"{what} should be lists of numbers, all of one length")
        if not all(x is None or is_number(x) for x in row):
            raise ValueError(f"{what} should hold numbers and nulls only")
    array = np.asarray(
        [[np.nan if (y := number(x)) is None else y for x in row] for row in rows], np.float64
    )
    return array if axes == 2 else array[0]


def _curves(value: Any) -> Mapping[str, Mapping[str, np.ndarray]] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError("faithful should be an object of curves by method")
    found: dict[str, dict[str, np.ndarray]] = {}
    for method, curves in value.items():
        if not isinstance(curves, dict):
            raise ValueError(f"faithful curves of {method[:80]!r} should be an object")
        for name in ("deletion", "insertion"):
            if curves.get(name):
                points = _numbers(curves[name], f"the {name} curve of {method[:80]!r}", 2)
                if points.shape[1] != 2:
                    raise ValueError(f"the {name} curve of {method[:80]!r} should be pairs")
                found.setdefault(method, {})[name] = points
    return found or None


def _faithful(value: Any, file: str, problems: Problems) -> Mapping[str, Faithful] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        problems.add(f"{file}: faithful should be an object of numbers by method")
        return None
    found = {}
    for method, row in value.items():
        if not isinstance(row, dict):
            problems.add(f"{file}: faithful numbers of {method[:80]!r} should be an object")
            continue
        if unknown := sorted(row.keys() - {*_MEASURES, "interval"}):
            problems.add(f"{file}: faithful numbers not known here: {', '.join(unknown)[:200]}")
        interval = row.get("interval")
        ends = [number(x) for x in interval] if isinstance(interval, list) else []
        low, high = ends if len(ends) == 2 else (None, None)
        found[method] = Faithful(
            **{name: number(row.get(name)) for name in _MEASURES},
            interval=None if low is None or high is None else (low, high),
        )
    return found or None
