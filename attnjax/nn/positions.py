"""Position schemes: how attention learns where a token stands.

A scheme is a frozen dataclass that acts in one of three ways: it is added to the inputs (learned,
sinusoidal), it turns queries and keys (rotary), or it changes scores (ALiBi, relative bias). A
module holds the scheme and its table, if it has one, and asks it at each of these places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from attnjax.scores import ScoreMod, alibi, relative_bias
from attnjax.typing import is_concrete

Initializer = Callable[..., Array]
_SMALL = jax.nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class Positions:
    """Base of the schemes; each of them overrides what it does and leaves the rest as it is.

    Attributes:
      absolute: whether the scheme is added to inputs, so that a stack of layers needs it once.
      explicit: whether it takes positions other than 0, 1, 2, ...
    """

    absolute: ClassVar[bool] = False
    explicit: ClassVar[bool] = True

    def check(self, *, features: int, num_heads: int, head_dim: int) -> None:
        """Raises ValueError if the scheme does not fit the sizes of an attention layer."""

    def init(self, key: Any, *, features: int, num_heads: int, dtype: Any) -> Array | None:
        """Returns the initial value of the scheme's table, or None if it has no parameter."""
        return None

    def embed(
        self, x: Float[Array, "B T F"], positions: Int[Array, "*B T"], table: Array | None
    ) -> Float[Array, "B T F"]:
        """Adds the positions to inputs."""
        return x

    def rotate(
        self, x: Float[Array, "B T N H"], positions: Int[Array, "*B T"]
    ) -> Float[Array, "B T N H"]:
        """Turns queries or keys by their positions."""
        return x

    def score_mods(self, num_heads: int, table: Array | None) -> tuple[ScoreMod, ...]:
        """Returns what the scheme does to scores."""
        return ()


@dataclasses.dataclass(frozen=True)
class Rotary(Positions):
    """Rotary positions: turns pairs of features by angles proportional to the position.

    The score of a query and a key then depends on their distance alone. Feature `i` of the rotated
    part is paired with feature `i + half`, as in GPT-NeoX and Llama. Angles are always float32.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021).

    Attributes:
      base: the longest wavelength is about `2 * pi * base` positions.
      fraction: share of the head width that is rotated, in (0, 1]; the features after it stay.
      interpolation: positions are divided by it, as in position interpolation (Chen et al., 2023).
      rescale: maps the float32 angular frequencies `[R / 2]` to others, for example for NTK-aware
        scaling; None leaves them. `llama3_rotary` and `yarn_rotary` make such positions.
      magnitude: factor of the rotated features.
    """

    base: float = 10_000.0
    fraction: float = 1.0
    interpolation: float = 1.0
    rescale: Callable[[Array], Array] | None = None
    magnitude: float = 1.0

    def __post_init__(self) -> None:
        for name in ("base", "interpolation", "magnitude"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"Rotary.{name}: expected a positive number, got {getattr(self, name)!r}."
                )
        if not 0 < self.fraction <= 1:
            raise ValueError(f"Rotary.fraction: expected a number in (0, 1], got {self.fraction}.")

    def width(self, head_dim: int) -> int:
        """Returns how many features are rotated: the largest even number within the fraction."""
        return int(head_dim * self.fraction) // 2 * 2

    def check(self, *, features: int, num_heads: int, head_dim: int) -> None:
        if self.width(head_dim) == 0:
            raise ValueError(
                f"Rotary: expected at least 2 features to rotate, got a head width of {head_dim} "
                f"and fraction={self.fraction}."
            )
        if self.fraction == 1 and head_dim % 2:
            raise ValueError(
                f"Rotary: expected an even head width, got {head_dim}. Choose a fraction below 1 "
                "to leave the last feature as it is."
            )

    def rotate(
        self, x: Float[Array, "B T N H"], positions: Int[Array, "*B T"]
    ) -> Float[Array, "B T N H"]:
        width = self.width(x.shape[-1])
        frequencies = self.base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
        if self.rescale is not None:
            frequencies = self.rescale(frequencies)
        angles = positions[..., None] / jnp.float32(self.interpolation) * frequencies
        cos, sin = (self.magnitude * f(angles)[..., None, :] for f in (jnp.cos, jnp.sin))
        first, second, rest = jnp.split(x, (width // 2, width), axis=-1)
        a, b = first.astype(jnp.float32), second.astype(jnp.float32)
        turned = jnp.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)
        return jnp.concatenate((turned.astype(x.dtype), rest), axis=-1)


@dataclasses.dataclass(frozen=True)
class Alibi(Positions):
    """ALiBi: subtracts a fixed slope per head times the distance from each score.

    Source: Press et al., "Train Short, Test Long" (2022).

    Attributes:
      slopes: one number per head; None takes the paper's.
    """

    slopes: tuple[float, ...] | None = None
    explicit: ClassVar[bool] = False

    def check(self, *, features: int, num_heads: int, head_dim: int) -> None:
        if self.slopes is not None and len(self.slopes) != num_heads:
            raise ValueError(
                f"Alibi.slopes: expected {num_heads}, one per head, got {len(self.slopes)}."
            )

    def score_mods(self, num_heads: int, table: Array | None) -> tuple[ScoreMod, ...]:
        if self.slopes is None:
            return (alibi(num_heads),)
        return (alibi(jnp.asarray(self.slopes, jnp.float32)),)


@dataclasses.dataclass(frozen=True)
class RelativeBias(Positions):
    """A learned bias per head and relative position, added to each score.

    Sources: see `attnjax.relative_bias`, which documents the fields.

    Attributes:
      kind: `clipped` gives every distance up to `reach` a bias of its own; `t5` uses T5's buckets.
      reach: for `clipped`: the longest distance with a bias of its own; longer ones share it.
      buckets: for `t5`: how many there are.
      bidirectional: for `t5`: half the buckets for keys after the query; False suits decoders.
      max_distance: for `t5`: distances from here on share the last bucket.
      init_fn: initializer of the table.
    """

    kind: Literal["clipped", "t5"] = "clipped"
    reach: int = 128
    buckets: int = 32
    bidirectional: bool = True
    max_distance: int = 128
    init_fn: Initializer = _SMALL
    explicit: ClassVar[bool] = False

    def _columns(self) -> int:
        return 2 * self.reach + 1 if self.kind == "clipped" else self.buckets

    def check(self, *, features: int, num_heads: int, head_dim: int) -> None:
        if self.kind == "clipped" and self.reach < 1:
            raise ValueError(f"RelativeBias.reach: expected at least 1, got {self.reach}.")
        # Whatever else is wrong, relative_bias says; better now than at the first call.
        table: Any = np.zeros((num_heads, self._columns()), np.float32)
        self.score_mods(num_heads, table)

    def init(self, key: Any, *, features: int, num_heads: int, dtype: Any) -> Array | None:
        return self.init_fn(key, (num_heads, self._columns()), dtype)

    def score_mods(self, num_heads: int, table: Array | None) -> tuple[ScoreMod, ...]:
        assert table is not None
        mod = relative_bias(
            table,
            kind=self.kind,
            bidirectional=self.bidirectional,
            max_distance=self.max_distance,
        )
        return (mod,)


@dataclasses.dataclass(frozen=True)
class LearnedPositions(Positions):
    """A learned vector per position, added to the inputs.

    Positions outside `[0, max_length)` are a ValueError where they are known, and give NaN where
    they are traced.

    Attributes:
      max_length: number of positions.
      init_fn: initializer of the table.
    """

    max_length: int
    init_fn: Initializer = _SMALL
    absolute: ClassVar[bool] = True

    def check(self, *, features: int, num_heads: int, head_dim: int) -> None:
        if self.max_length < 1:
            raise ValueError(
                f"LearnedPositions.max_length: expected at least 1, got {self.max_length}."
            )

    def init(self, key: Any, *, features: int, num_heads: int, dtype: Any) -> Array | None:
        return self.init_fn(key, (self.max_length, features), dtype)

    def embed(
        self, x: Float[Array, "B T F"], positions: Int[Array, "*B T"], table: Array | None
    ) -> Float[Array, "B T F"]:
        assert table is not None
        if is_concrete(positions) and positions.size:
            low, high = int(np.min(positions)), int(np.max(positions))
            if low < 0 or high >= self.max_length:
                raise ValueError(
                    f"LearnedPositions: expected positions in [0, {self.max_length}), got "
                    f"{low} to {high}. Raise max_length or shorten the sequence."
                )
        # "fill" alone would count negative positions from the end.
        wanted = jnp.where(positions < 0, self.max_length, positions)
        return x + jnp.take(table, wanted, axis=0, mode="fill", fill_value=jnp.nan).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class SinusoidalPositions(Positions):
    """Fixed sines and cosines of the position, added to the inputs.

    Source: Vaswani et al., "Attention Is All You Need" (2017), section 3.5.

    Attributes:
      base: the longest wavelength is `2 * pi * base` positions.
    """

    base: float = 10_000.0
    absolute: ClassVar[bool] = True

    def check(self, *, features: int, num_heads: int, head_dim: int) -> None:
        if not self.base > 0:
            raise ValueError(
                f"SinusoidalPositions.base: expected a positive number, got {self.base}."
            )

    def embed(
        self, x: Float[Array, "B T F"], positions: Int[Array, "*B T"], table: Array | None
    ) -> Float[Array, "B T F"]:
        return x + sinusoids(positions, x.shape[-1], base=self.base).astype(x.dtype)


def sinusoids(
    positions: Int[Array, "*B T"], features: int, *, base: float = 10_000.0
) -> Float[Array, "*B T F"]:
    """Returns the sinusoidal vectors of positions.

    Args:
      positions: integers of any shape.
      features: width of the vectors.
      base: the longest wavelength is `2 * pi * base` positions.

    Returns:
      float32 of the positions' shape and `features`: sines at the even features, cosines at the
      odd ones, the frequency falling from 1 to almost `1 / base`.
    """
    frequencies = base ** (-jnp.arange(0, features, 2, dtype=jnp.float32) / features)
    angles = positions[..., None] * frequencies
    pairs = jnp.stack((jnp.sin(angles), jnp.cos(angles)), axis=-1)
    return pairs.reshape(*positions.shape, -1)[..., :features]
