"""Examples as pictures: coloured tokens, alignment matrices, overlays on images, series."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from attnjax.focus.report.colours import MISSING, indices, png, shade_class, two_sided, viridis
from attnjax.focus.report.examples import Alignment, Example, Image, Map, Series, Tokens
from attnjax.focus.report.scales import Scale, clip, scale_of, text
from attnjax.focus.report.thinning import extremes

TOKENS, SIDE, GRID, MOMENTS = 1200, 100, 256, 1200  # most of each that a picture shows
CHANNELS = 6
_STRONGEST = 12  # parts in the table under a picture
_CELL = (7, 26)  # pixels, of an alignment
_LABELLED = 12  # pixels that a label needs
_OPAQUE = 0.85  # of the strongest weight over an image


@dataclasses.dataclass(frozen=True)
class Axis:
    """Labels of an alignment's side: place of the middle, and text; all lengths in pixels."""

    labels: tuple[tuple[float, str], ...]
    length: int
    room: int


@dataclasses.dataclass(frozen=True)
class Picture:
    """One map of one example.

    Attributes:
        kind: "tokens", "alignment", "image" or "series".
        title: name of the map, with its module and head.
        map: name of the map.
        summary: the picture in words.
        largest: the largest weight as text, at the end of the legend.
        signed: whether some weights are below 0.
        notes: what was left out, in sentences.
        header: names of the columns of its table.
        table: rows of text: the strongest weights.
        tokens: text and CSS class of every token.
        source: labels from left to right, of an alignment.
        target: labels from the top, of an alignment.
        picture: data: address of the weights as cells; empty for tokens.
        image: data: address of the example itself.
        channels: of a series: name, SVG path in 1000 by 1000 units, least and most.
    """

    kind: str
    title: str
    map: str
    summary: str
    largest: str
    signed: bool
    notes: tuple[str, ...]
    header: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]
    tokens: tuple[tuple[str, str], ...] = ()
    source: Axis | None = None
    target: Axis | None = None
    picture: str = ""
    image: str = ""
    channels: tuple[tuple[str, str, str, str], ...] = ()


def pictures(example: Example) -> list[Picture]:
    """A picture of every map of an example."""
    return [_picture(example, shown) for shown in example.maps]


def _picture(example: Example, shown: Map) -> Picture:
    content = example.shown
    if isinstance(content, Tokens):
        return _tokens(content, shown)
    if isinstance(content, Alignment):
        return _alignment(content, shown)
    if isinstance(content, Image):
        return _image(content, shown)
    return _series(content, shown)


def _tokens(content: Tokens, shown: Map) -> Picture:
    words = [clip(token, 80) for token in content.tokens[:TOKENS]]
    weights = shown.weights
    shares = _shares(weights)
    notes = []
    if len(content.tokens) > TOKENS:
        seen = np.nansum(np.abs(weights[:TOKENS])) / max(np.nansum(np.abs(weights)), 1e-300)
        notes.append(
            f"The first {TOKENS:,} of {len(content.tokens):,} tokens are shown; they have "
            f"{100 * seen:.0f}% of the weight."
        )
    order = _strongest(weights)
    return Picture(
        kind="tokens",
        **_common(shown, [f"“{clip(content.tokens[i], 40)}”" for i in order[:3]]),
        notes=tuple(notes),
        header=("token", "place", "weight"),
        table=tuple(
            (clip(content.tokens[i], 80), str(i + 1), text(float(weights[i]))) for i in order
        ),
        tokens=tuple(
            (word, shade_class(share))
            for word, share in zip(words, shares[:TOKENS].tolist(), strict=True)
        ),
    )


def _alignment(content: Alignment, shown: Map) -> Picture:
    weights = shown.weights[:SIDE, :SIDE]
    source, target = content.source[:SIDE], content.target[:SIDE]
    cell = int(min(_CELL[1], max(_CELL[0], 620 // max(len(source), 1))))
    notes = []
    if weights.shape != shown.weights.shape:
        notes.append(
            f"The first {len(target):,} of {len(content.target):,} target tokens and the first "
            f"{len(source):,} of {len(content.source):,} source tokens are shown."
        )
    rows = []
    for place, word in enumerate(target):
        strongest = _strongest(weights[place])[:3]
        named = [f"{clip(source[i], 30)} ({text(float(weights[place, i]))})" for i in strongest]
        rows.append((clip(word, 40), ", ".join(named)))
    return Picture(
        kind="alignment",
        **_common(shown, [f"{row[0]} looks at {row[1].partition(',')[0]}" for row in rows[:2]]),
        notes=tuple(notes),
        header=("target token", "looks most at (weight)"),
        table=tuple(rows),
        source=_axis(source, cell),
        target=_axis(target, cell),
        picture=_cells(weights),
    )


def _image(content: Image, shown: Map) -> Picture:
    weights, notes = shown.weights, []
    if max(weights.shape) > GRID:
        every = math.ceil(max(weights.shape) / GRID)
        weights = weights[::every, ::every]
        notes.append(f"Every {every}th row and column of the map's grid is shown.")
    height, width = weights.shape
    order = _strongest(weights.ravel())
    places = [(i // width, i % width) for i in order]
    return Picture(
        kind="image",
        **_common(shown, [f"row {y + 1}, column {x + 1}" for y, x in places[:3]]),
        notes=tuple(notes),
        header=(f"row (of {height})", f"column (of {width})", "weight"),
        table=tuple((str(y + 1), str(x + 1), text(float(weights[y, x]))) for y, x in places),
        picture=_overlay(weights),
        image=content.address,
    )


def _series(content: Series, shown: Map) -> Picture:
    weights, values = shown.weights, content.values[:CHANNELS]
    moments, notes = values.shape[1], []
    if len(content.values) > CHANNELS:
        notes.append(f"The first {CHANNELS} of {len(content.values)} channels are shown.")
    strip = weights
    if moments > MOMENTS:
        parts = np.array_split(weights, MOMENTS)
        strip = np.asarray([part[_strongest(part)[0]] if len(part) else 0 for part in parts])
        notes.append(f"{moments:,} moments share {MOMENTS:,} columns: each has its largest weight.")
    across = Scale(-0.5, moments - 0.5)
    order = _strongest(weights)
    return Picture(
        kind="series",
        **_common(shown, [f"moment {i + 1}" for i in order[:3]]),
        notes=tuple(notes),
        header=("moment", "weight", *(clip(name, 40) for name in content.names[:CHANNELS])),
        table=tuple(
            (str(i + 1), text(float(weights[i])), *(text(float(x)) for x in values[:, i]))
            for i in order
        ),
        picture=_cells(strip[None], light=True),
        channels=tuple(
            _channel(name, line, across) for name, line in zip(content.names, values, strict=False)
        ),
    )


def _channel(name: str, line: np.ndarray, across: Scale) -> tuple[str, str, str, str]:
    up = scale_of(line)
    up = Scale(up.low, up.high)  # a signal is read on a linear scale
    chosen = extremes(line, MOMENTS)
    x, y = 1000 * across.place(chosen), 1000 * (1 - up.place(line[chosen]))
    path, begun = [], False
    for at, height in zip(x.tolist(), y.tolist(), strict=True):
        if math.isfinite(height):
            path.append(f"{'L' if begun else 'M'}{at:.1f} {height:.1f}")
        begun = math.isfinite(height)
    return clip(name, 40), "".join(path), text(up.low), text(up.high)


def _common(shown: Map, strongest: list[str]) -> dict[str, Any]:
    """What the pictures of every kind say."""
    title = clip(shown.name, 80)
    if shown.module is not None:
        title += f", {clip(shown.module, 80)}"
    if shown.head is not None:
        title += f", head {shown.head}"
    known = shown.weights[np.isfinite(shown.weights)]
    return {
        "title": title,
        "map": shown.name,
        "summary": f"{title}: most weight on {', '.join(strongest) or 'nothing'}.",
        "largest": text(float(np.abs(known).max()) if known.size else None),
        "signed": bool((known < 0).any()),
    }


def _shares(weights: np.ndarray) -> np.ndarray:
    """Weights over the largest, -1 to 1."""
    known = np.abs(weights[np.isfinite(weights)])
    largest = float(known.max()) if known.size else 0.0
    return weights / largest if largest > 0 else weights


def _strongest(weights: np.ndarray) -> list[int]:
    """Indices of the largest weights, whatever their sign, the largest first."""
    size = np.where(np.isfinite(weights), np.abs(weights), -1)
    order = np.argsort(-size, kind="stable")[:_STRONGEST]
    return [int(i) for i in order if size[i] >= 0] or [int(order[0])]


def _cells(weights: np.ndarray, *, light: bool = False) -> str:
    """Weights as a PNG: 0 to the largest, or from its opposite where some are below 0."""
    shares = _shares(weights)
    if light or (weights[np.isfinite(weights)] < 0).any():
        return png(indices((shares + 1) / 2), two_sided())
    return png(indices(shares), viridis())


def _overlay(weights: np.ndarray) -> str:
    """Weights as a PNG that hides little of the image where they are small."""
    places = np.linspace(-1, 1, MISSING)
    return png(indices((_shares(weights) + 1) / 2), two_sided(), _OPAQUE * np.abs(places))


def _axis(words: tuple[str, ...], cell: int) -> Axis:
    every = math.ceil(_LABELLED / cell)
    labels = [
        ((place + 0.5) * cell, clip(word, 14))
        for place, word in enumerate(words)
        if place % every == 0
    ]
    longest = max(len(word) for _, word in labels)
    return Axis(tuple(labels), len(words) * cell, round(6.6 * longest + 16))
