"""How much of a run fits on a page, and how the rest is chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a page shows at most, so that it stays under five megabytes whatever the run.

    Attributes:
        charts: metrics that get a picture.
        points: of a line.
        statistics: of heads; more than there are by this library.
        steps: of a heat map.
        cells: of all heat maps together.
        heads: rows of heat maps and tables.
        events: warnings and remedies.
        examples: examples.
        example_bytes: of all examples together, as HTML.
    """

    charts: int = 12
    points: int = 600
    statistics: int = 24
    steps: int = 240
    cells: int = 400_000
    heads: int = 1536
    events: int = 400
    examples: int = 60
    example_bytes: int = 1_800_000

    def ever_tighter(self) -> Iterator[Limits]:
        """These limits, then half of them, and so on, down to nearly nothing."""
        values = dataclasses.asdict(self)
        while any(value > 8 for value in values.values()):
            yield Limits(**values)
            values = {name: max(4, value // 2) for name, value in values.items()}


def some(total: int, most: int) -> np.ndarray:
    """At most `most` of the indices 0 ... total - 1, evenly, with the first and the last."""
    if total <= most:
        return np.arange(total)
    return np.unique(np.round(np.linspace(0, total - 1, max(most, 2))).astype(np.int64))


def extremes(values: np.ndarray, most: int) -> np.ndarray:
    """At most about `most` indices of a line [P]: of every stretch its lowest and highest point.

    So a spike of one step stays in the picture, however long the run; a stretch with values that
    are not finite keeps one of them, which is a gap in the line.
    """
    if len(values) <= most:
        return np.arange(len(values))
    chosen = {0, len(values) - 1}
    for part in np.array_split(np.arange(len(values)), max(most // 2, 1)):
        known = part[np.isfinite(values[part])]
        if known.size:
            chosen |= {int(known[values[known].argmin()]), int(known[values[known].argmax()])}
        if known.size < part.size:
            chosen.add(int(np.setdiff1d(part, known)[0]))
    return np.asarray(sorted(chosen))
