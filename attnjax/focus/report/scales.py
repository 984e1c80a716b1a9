"""From numbers to places in a picture, and numbers as text."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

# Above this ratio of largest to middle value most of a linear picture would be one colour.
_WIDE = 50.0


@dataclasses.dataclass(frozen=True)
class Scale:
    """From `low` (place 0) to `high` (place 1), linear or by the logarithm."""

    low: float
    high: float
    log: bool = False

    def place(self, values: np.ndarray) -> np.ndarray:
        """Places of values, 0 to 1; NaN stays NaN, and so becomes what has no logarithm."""
        if not self.log:
            return (np.asarray(values, np.float64) - self.low) / (self.high - self.low)
        positive = np.where(values > 0, values, np.nan)
        ends = math.log(self.low), math.log(self.high)
        return (np.log(positive) - ends[0]) / (ends[1] - ends[0])

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """About `count` round numbers: place and text."""
        if self.log:
            values = _decades(self, count)
            labels = [text(value) for value in values]
        else:
            values = _round_numbers(self.low, self.high, count)
            labels = _told_apart(values)
        places = self.place(np.asarray(values))
        return [(float(place), label) for place, label in zip(places, labels, strict=True)]


def scale_of(values: np.ndarray, *, fixed: tuple[float, float] | None = None) -> Scale:
    """A scale on which the values, of any shape, can be told apart.

    Args:
        values: NaN and infinities are ignored.
        fixed: ends that the quantity has by its nature; values beyond them widen the scale.
    """
    known = values[np.isfinite(values)]
    if known.size == 0:
        return Scale(*(fixed or (0.0, 1.0)))
    low, high = float(known.min()), float(known.max())
    if fixed is not None:
        return Scale(min(low, fixed[0]), max(high, fixed[1]))
    if low > 0 and high > _WIDE * float(np.median(known)):
        return Scale(low, high, log=True)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-30):
        margin = 0.5 * abs(low) or 0.5
        return Scale(low - margin, high + margin)
    return Scale(low, high)


def _round_numbers(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((x * power for x in (1, 2, 5, 10)), key=lambda x: abs(math.log(x / raw)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)]


def _told_apart(values: list[float]) -> list[str]:
    """Round numbers as text with as many digits as tell neighbours apart."""
    labels = [text(value) for value in values]
    if len({*labels}) == len(labels):
        return labels
    digits = max(0, -math.floor(math.log10(values[1] - values[0]) + 1e-9))
    return [f"{value:,.{digits}f}" for value in values]


def _decades(scale: Scale, count: int) -> list[float]:
    first, last = math.ceil(math.log10(scale.low)), math.floor(math.log10(scale.high))
    every = max(1, math.ceil((last - first + 1) / count))
    values = [10.0**power for power in range(first, last + 1, every)]
    return values if len(values) >= 2 else [scale.low, scale.high]


def text(value: float | None) -> str:
    """A number in three digits; a dash for none."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e6 or size < 1e-4:
        return f"{value:.2e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
    digits = max(0, 2 - math.floor(math.log10(size)))
    shown = f"{value:,.{digits}f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


def clip(words: str, longest: int) -> str:
    """Text of at most `longest` characters."""
    return words if len(words) <= longest else words[: longest - 1] + "…"
