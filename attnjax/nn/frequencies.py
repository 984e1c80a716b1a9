"""Rotary positions for sequences longer than those of the first training."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from attnjax.nn.positions import Rotary


@dataclasses.dataclass(frozen=True)
class Llama3Frequencies:
    """Slows waves that are long against the first training; `llama3_rotary` says how."""

    factor: float
    low: float
    high: float
    original_length: int

    def __call__(self, frequencies: Float[Array, "R"]) -> Float[Array, "R"]:
        """Returns the new frequencies."""
        turns = self.original_length * frequencies / (2 * math.pi)
        kept = jnp.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


@dataclasses.dataclass(frozen=True)
class YarnFrequencies:
    """Slows waves that turn seldom; `yarn_rotary` says how."""

    base: float
    factor: float
    original_length: int
    fast: float
    slow: float
    truncate: bool

    def __call__(self, frequencies: Float[Array, "R"]) -> Float[Array, "R"]:
        """Returns the new frequencies."""
        half = frequencies.shape[0]

        def index(turns: float) -> float:
            """Where the wave stands that turns so often within the first training's length."""
            share = math.log(self.original_length / (2 * math.pi * turns)) / math.log(self.base)
            return half * share

        first, last = index(self.fast), index(self.slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        # The bounds count features, as those of the published code do, though there are `half`
        # waves; a ramp of no width would divide by 0.
        first, last = max(first, 0), min(last, 2 * half - 1)
        ramp = (jnp.arange(half, dtype=jnp.float32) - first) / (last - first or 0.001)
        slowed = jnp.clip(ramp, 0, 1)
        return frequencies * (1 - slowed + slowed / self.factor)


def llama3_rotary(
    *,
    factor: float,
    low: float,
    high: float,
    original_length: int,
    base: float = 500_000.0,
    fraction: float = 1.0,
) -> Rotary:
    """Returns rotary positions as Llama 3.1 stretches them.

    Waves that turn more than `high` times within `original_length` stay, those that turn less than
    `low` times are `factor` times slower, and between them the frequency goes over linearly.

    Source: Grattafiori et al., "The Llama 3 Herd of Models" (2024), and the code published with it.

    Args:
      factor: how much longer sequences may be.
      low: turns below which a wave is slowed in full.
      high: turns above which it stays.
      original_length: positions of the first training.
      base: as in `Rotary`.
      fraction: as in `Rotary`.

    Raises:
      ValueError: if a number is out of range.
    """
    _check("llama3_rotary", factor=factor, low=low, original_length=original_length)
    if not low < high:
        raise ValueError(f"llama3_rotary: expected low < high, got low={low}, high={high}.")
    rescale = Llama3Frequencies(factor, low, high, original_length)
    return Rotary(base, fraction, rescale=rescale)


def yarn_rotary(
    *,
    factor: float,
    original_length: int,
    base: float = 10_000.0,
    fast: float = 32.0,
    slow: float = 1.0,
    truncate: bool = True,
    magnitude: float | None = None,
    fraction: float = 1.0,
) -> Rotary:
    """Returns rotary positions as YaRN stretches them.

    Waves that turn more than `fast` times within `original_length` stay, those that turn less than
    `slow` times are `factor` times slower, and between them the frequency goes over linearly with
    the index of the wave.

    Source: Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models" (2023).

    Args:
      factor: how much longer sequences may be.
      original_length: positions of the first training.
      base: as in `Rotary`.
      fast: turns above which a wave stays.
      slow: turns below which it is slowed in full.
      truncate: round the indices of these two waves outwards.
      magnitude: factor of rotated queries and keys; None is the paper's `0.1 * ln(factor) + 1`.
      fraction: as in `Rotary`.

    Raises:
      ValueError: if a number is out of range.
    """
    _check("yarn_rotary", factor=factor, original_length=original_length, fast=fast, slow=slow)
    if not slow <= fast:
        raise ValueError(f"yarn_rotary: expected slow <= fast, got slow={slow}, fast={fast}.")
    if magnitude is None:
        magnitude = 0.1 * math.log(max(factor, 1.0)) + 1
    rescale = YarnFrequencies(base, factor, original_length, fast, slow, truncate)
    return Rotary(base, fraction, rescale=rescale, magnitude=magnitude)


def _check(name: str, **numbers: float) -> None:
    for key, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name}: expected a positive {key}, got {value!r}.")
