"""score_mods that depend on positions: ALiBi and learned relative biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from attnjax.operands import Operand, declare
from attnjax.scores.base import ScoreMod, check_floats, pytree
from attnjax.typing import Index


@pytree()
class Alibi(ScoreMod):
    """See `alibi`."""

    slopes: Array

    def operands(self, sizes: Mapping[str, int]) -> tuple[Operand, ...]:
        return (declare("alibi.slopes", self.slopes, "N"),)

    def apply(self, score: Array, index: Index, *tiles: Array) -> Array:
        return score - tiles[0] * jnp.abs(index.q - index.k).astype(score.dtype)


def alibi(slopes: int | Array) -> Alibi:
    """Subtracts `slope * |q_idx - k_idx|`, one slope per head.

    Source: Press et al., "Train Short, Test Long" (2022).

    Args:
      slopes: float array `[N]`, or the number of heads for the paper's slopes: a geometric
        sequence from `2 ** (-8 / N)`; if N is no power of two, every other slope of the next power
        follows those of the power below.

    Returns:
      The score_mod.

    Raises:
      ValueError: if `slopes` is neither a positive integer nor a float array `[N]`.
    """
    if isinstance(slopes, int | np.integer) and not isinstance(slopes, bool):
        if slopes < 1:
            raise ValueError(f"alibi.slopes: expected at least one head, got {slopes}.")
        power = 1 << (int(slopes).bit_length() - 1)
        first = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
        between = [2.0 ** (-4 * (2 * i + 1) / power) for i in range(slopes - power)]
        return Alibi(jnp.asarray(first + between, jnp.float32))
    slopes = check_floats("alibi.slopes", slopes)
    declare("alibi.slopes", slopes, "N")
    return Alibi(slopes)


@pytree()
class ByDistance(ScoreMod):
    """Adds a value per head and relative position, `[N, T + S - 1]`, as `R` of `Operand` says."""

    values: Array

    def operands(self, sizes: Mapping[str, int]) -> tuple[Operand, ...]:
        return (Operand("relative_bias.table", self.values, "NR"),)

    def apply(self, score: Array, index: Index, *tiles: Array) -> Array:
        return score + tiles[0].astype(score.dtype)


@pytree("kind", "bidirectional", "max_distance")
class RelativeBias(ScoreMod):
    """See `relative_bias`."""

    table: Array
    kind: str
    bidirectional: bool
    max_distance: int

    def bucket(self, distance: Array) -> Array:
        """Returns the table column for relative positions `k_idx - q_idx`."""
        columns = self.table.shape[1]
        if self.kind == "clipped":
            reach = columns // 2
            return jnp.clip(distance, -reach, reach) + reach
        return t5_bucket(
            distance,
            num_buckets=columns,
            bidirectional=self.bidirectional,
            max_distance=self.max_distance,
        )

    def by_distance(self, sizes: Mapping[str, int]) -> ByDistance:
        """Looks all relative positions of a call up."""
        N, T, S = sizes["N"], sizes["T"], sizes["S"]
        if self.table.shape[0] not in (1, N):
            raise ValueError(
                f"relative_bias.table: expected shape [N={N}, C] (or 1 head for all), "
                f"got {tuple(self.table.shape)}."
            )
        return ByDistance(jnp.take(self.table, self.bucket(jnp.arange(1 - T, S)), axis=1))

    def operands(self, sizes: Mapping[str, int]) -> tuple[Operand, ...]:
        return self.by_distance(sizes).operands(sizes)

    def apply(self, score: Array, index: Index, *tiles: Array) -> Array:
        return score + tiles[0].astype(score.dtype)

    def __call__(self, score: Array, b: Array, h: Array, q_idx: Array, k_idx: Array) -> Array:
        return score + self.table[h, self.bucket(k_idx - q_idx)].astype(score.dtype)


def relative_bias(
    table: Array,
    *,
    kind: Literal["clipped", "t5"] = "clipped",
    bidirectional: bool = True,
    max_distance: int = 128,
) -> RelativeBias:
    """Adds a learned bias per head that depends on the relative position alone.

    Sources: Shaw et al., "Self-Attention with Relative Position Representations" (2018) for clipped
    distances; Raffel et al., "Exploring the Limits of Transfer Learning" (2020) for T5's buckets.

    Args:
      table: float `[N, C]`. For `clipped`, C is odd and column `c` serves `k_idx - q_idx =
        c - C // 2`, longer distances being clipped. For `t5`, C is the number of buckets.
      kind: how distances map to columns.
      bidirectional: for `t5`: half the buckets for keys after the query. If False, those share
        the bucket of distance 0.
      max_distance: for `t5`: distances from here on share the last bucket.

    Returns:
      The score_mod.

    Raises:
      ValueError: if the table's shape or the settings do not fit.
    """
    check_floats("relative_bias.table", table)
    if len(table.shape) != 2:
        raise ValueError(f"relative_bias.table: expected shape [N, C], got {tuple(table.shape)}.")
    if kind not in ("clipped", "t5"):
        raise ValueError(f"relative_bias.kind: expected 'clipped' or 't5', got {kind!r}.")
    if kind == "clipped" and table.shape[1] % 2 == 0:
        raise ValueError(
            "relative_bias.table: expected an odd number of columns, one per distance from "
            f"-C//2 to C//2, got {table.shape[1]}. For T5 buckets pass kind='t5'."
        )
    exact = table.shape[1] // (4 if bidirectional else 2)
    if kind == "t5" and not 1 <= exact < max_distance:
        raise ValueError(
            f"relative_bias: expected 1 <= {exact} exact buckets < max_distance, got "
            f"{table.shape[1]} buckets and max_distance={max_distance}."
        )
    return RelativeBias(table, kind, bidirectional, max_distance)


def t5_bucket(
    distance: Array, *, num_buckets: int, bidirectional: bool, max_distance: int
) -> Array:
    """Returns T5's bucket of relative positions: exact when near, logarithmic when far.

    Source: Raffel et al. (2020), section 2.1.

    Args:
      distance: integer `k_idx - q_idx`, any shape.
      num_buckets: number of buckets.
      bidirectional: half the buckets for keys after the query.
      max_distance: distances from here on share the last bucket.

    Returns:
      int32 buckets in `[0, num_buckets)`, of the same shape.
    """
    offset = jnp.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        offset = jnp.where(distance > 0, num_buckets, 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = num_buckets // 2
    far = jnp.maximum(distance, exact).astype(jnp.float32)
    steps = (num_buckets - exact) * jnp.log(far / exact) / np.log(max_distance / exact)
    far_bucket = jnp.minimum(exact + steps.astype(jnp.int32), num_buckets - 1)
    return (offset + jnp.where(distance < exact, distance, far_bucket)).astype(jnp.int32)
