"""What focus_examples.json of a run says: examples, their maps, and how true these are."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attnjax.focus.lines import Problems, is_number, number, whole

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


@dataclasses.dataclass(frozen=True)
class Map:
    """Weights over an example's parts.

    Attributes:
        name: the method, such as "attention rollout".
        module: dotted path; None where the map belongs to no one module.
        head: its number; None where it belongs to no one head.
        weights: [T] for tokens and series, [T, S] for alignments, [h, w] for images; NaN where a
            weight was not finite.
    """

    name: str
    module: str | None
    head: int | None
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A text."""

    tokens: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Alignment:
    """A source and what was made of it."""

    source: tuple[str, ...]
    target: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Image:
    """A picture, as a data: address of PNG, JPEG, GIF or WebP."""

    address: str


@dataclasses.dataclass(frozen=True)
class Series:
    """Channels over time: `values` [channels, T], with the channels' names."""

    values: np.ndarray
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        title: for people.
        shown: the example itself.
        maps: at least one.
        prediction: the model's answer, or None.
        label: the right answer, or None.
        curves: by method, then "deletion" or "insertion": [P, 2] of share removed (or put back)
            and score. The method "random" is what chance gives. None where nothing was measured.
    """

    title: str
    shown: Tokens | Alignment | Image | Series
    maps: tuple[Map, ...]
    prediction: str | None = None
    label: str | None = None
    curves: Mapping[str, Mapping[str, np.ndarray]] | None = None


@dataclasses.dataclass(frozen=True)
class Faithful:
    """How true one method's maps are, over a test set; None for what was not measured.

    Attributes:
        examples: over how many examples.
        deletion: mean score while what the map marks is removed, strongest first.
        deletion_random: the same, removed in random order.
        margin: by how much `deletion` lies under `deletion_random`; above 0 the map does better
            than chance.
        interval: confidence interval of the margin.
        insertion: mean score while what the map marks is put back, strongest first.
        insertion_random: the same, put back in random order.
        agreement_gradients: rank correlation with integrated gradients.
        agreement_leave_one_out: rank correlation with leaving out one part at a time.
        random_weights: rank correlation with the same map of a model with random weights.
    """

    examples: float | None = None
    deletion: float | None = None
    deletion_random: float | None = None
    margin: float | None = None
    interval: tuple[float, float] | None = None
    insertion: float | None = None
    insertion_random: float | None = None
    agreement_gradients: float | None = None
    agreement_leave_one_out: float | None = None
    random_weights: float | None = None


@dataclasses.dataclass(frozen=True)
class Examples:
    """All of a focus_examples.json that could be read.

    Attributes:
        task: for people; empty where it is not known.
        examples: those that could be read.
        faithful: by method; None where nothing was measured.
        problems: a sentence for everything that is missing or broken.
    """

    task: str
    examples: tuple[Example, ...]
    faithful: Mapping[str, Faithful] | None
    problems: tuple[str, ...]


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
