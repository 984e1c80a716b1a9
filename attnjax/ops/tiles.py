"""Tiles of a call: where they start, and how declared arrays are cut, spread and summed back.

Query heads are split into K groups of `G = N // K` that share a key head. The scores of a tile are
`[B', K', G', block_q, block_k]`: B' is its batch, K' and G' are its part of K and G.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.operands import Operand
from attnjax.typing import Index


class Origin(NamedTuple):
    """Where a tile starts, int32 scalars.

    Attributes:
      b: its first batch element.
      n: its first query head; an int where that is known while tracing.
      q: its first query.
      k: its first key.
    """

    b: Array
    n: Array | int
    q: Array
    k: Array


def take(x: Array, starts: Sequence[Array | int], lengths: Sequence[int]) -> Array:
    """Cuts a box out of an array."""
    return jax.lax.dynamic_slice(x, _places(starts), lengths)


def put(x: Array, part: Array, starts: Sequence[Array | int]) -> Array:
    """Writes a box into an array."""
    return jax.lax.dynamic_update_slice(x, part, _places(starts))


def _places(starts: Sequence[Array | int]) -> list[Array]:
    """Returns places of one dtype: under `jax_enable_x64`, Python's and a loop's have 64 bits."""
    return [jnp.asarray(start, jnp.int32) for start in starts]


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How a call is cut.

    Attributes:
      B, T, S, N, K: the call's axis sizes.
      block_b, block_n, block_q, block_k: tile sizes, none larger than its axis; block_b divides B,
        and block_n divides N and is a multiple or a divisor of N // K.
      streams: how many tiles, of neighbouring heads, are computed side by side; it divides
        N // block_n.
    """

    B: int
    T: int
    S: int
    N: int
    K: int
    block_b: int
    block_n: int
    block_q: int
    block_k: int
    streams: int = 1

    @property
    def groups(self) -> int:
        """Query heads per key head."""
        return self.N // self.K

    @property
    def score_shape(self) -> tuple[int, int, int, int, int]:
        """The shape of one tile of scores."""
        return (self.block_b, *self.heads, self.block_q, self.block_k)

    @property
    def heads(self) -> tuple[int, int]:
        """Key heads of a tile, and query heads of each: K' and G'."""
        return max(1, self.block_n // self.groups), min(self.groups, self.block_n)

    @property
    def row_shape(self) -> tuple[int, int, int, int]:
        """The shape of one number per row of a tile."""
        return self.score_shape[:-1]

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Number of tiles along batch, heads (those side by side as one), queries and keys."""
        return (
            self.B // self.block_b,
            self.N // (self.block_n * self.streams),
            -(-self.T // self.block_q),
            -(-self.S // self.block_k),
        )

    def origin(self, b: Array, h: Array | int, i: Array, j: Array) -> Origin:
        """Returns where tile (b, h, i, j) starts, the first of those side by side.

        The last tile along an axis starts early enough to fit, so no array is ever padded; it
        overlaps the one before, and `index` positions say which rows are whose.
        """
        return Origin(
            b * self.block_b,
            h * self.block_n * self.streams,
            jnp.minimum(i * self.block_q, self.T - self.block_q),
            jnp.minimum(j * self.block_k, self.S - self.block_k),
        )

    def side_by_side(self, at: Origin) -> tuple[Origin, ...]:
        """Returns where the tiles that are computed together with the one at `at` start."""
        return tuple(at._replace(n=at.n + s * self.block_n) for s in range(self.streams))

    def head(self, at: Origin) -> tuple[Array | int, Array | int]:
        """Returns a tile's first key head, and its first query head among those of that one."""
        return at.n // self.groups, at.n % self.groups

    def index(self, at: Origin) -> Index:
        """Returns the global positions of a tile, broadcastable against its scores."""

        def positions(start: Array | int, axis: int, shape: tuple[int, ...]) -> Array:
            return start + jax.lax.broadcasted_iota(jnp.int32, shape, axis)

        heads = at.n + jnp.arange(self.block_n, dtype=jnp.int32)
        return Index(
            positions(at.b, 0, (self.block_b, 1, 1, 1, 1)),
            heads.reshape(1, *self.heads, 1, 1),
            positions(at.q, 3, (1, 1, 1, self.block_q, 1)),
            positions(at.k, 4, (1, 1, 1, 1, self.block_k)),
        )

    def _window(self, operand: Operand, at: Origin) -> tuple[list[Array | int], list[int]]:
        reach = self.block_q + self.block_k - 1
        spans: dict[str, tuple[Array | int, int]] = {
            "B": (at.b, self.block_b),
            "N": (at.n, self.block_n),
            "K": (self.head(at)[0], self.heads[0]),
            "T": (at.q, self.block_q),
            "S": (at.k, self.block_k),
            "R": (at.k - at.q - self.block_q + self.T, reach),
        }
        chosen = [
            (0, size) if size == 1 or letter == "F" else spans[letter]
            for letter, size in zip(operand.axes, operand.array.shape, strict=True)
        ]
        return [start for start, _ in chosen], [length for _, length in chosen]

    def cut(self, operand: Operand, at: Origin) -> Array:
        """Cuts a tile's part out of an operand, with the operand's own axes."""
        starts, lengths = self._window(operand, at)
        if tuple(lengths) == tuple(operand.array.shape):
            return jnp.asarray(operand.array)
        return take(operand.array, starts, lengths)

    def add(self, total: Array, part: Array, operand: Operand, at: Origin) -> Array:
        """Adds a tile's part back into an array of the operand's shape: the transpose of `cut`."""
        starts, lengths = self._window(operand, at)
        if tuple(lengths) == tuple(operand.array.shape):
            return total + part
        return put(total, take(total, starts, lengths) + part, starts)

    def spread(self, operand: Operand, part: Array) -> Array:
        """Reshapes a part so that it broadcasts against the tile's scores; features come last."""
        sizes = dict(zip(operand.axes, part.shape, strict=True))
        split = (1, 1) if operand.size("N") == 1 else self.heads
        if "K" in sizes:
            split = (sizes["K"], 1)
        if operand.relative and sizes["R"] > 1:
            rows = part.reshape(sizes.get("B", 1), *split, sizes["R"])
            return _skew(rows, self.block_q, self.block_k)
        features = (sizes["F"],) if "F" in sizes else ()
        times = (sizes.get("T", 1), sizes.get("S", 1))
        return part.reshape(sizes.get("B", 1), *split, *times, *features)


def _skew(rows: Array, block_q: int, block_k: int) -> Array:
    """Turns values by relative position into a tile: `out[..., i, j] = rows[..., j - i + bq - 1]`.

    Repeating the vector of length L and reading the copies back in rows of L - 1 shifts each row by
    one more, without a lookup per score.
    """
    *lead, length = rows.shape
    if block_q == 1:
        return rows[..., None, :]
    flat = jnp.broadcast_to(rows[..., None, :], (*lead, block_q, length)).reshape(*lead, -1)
    start = block_q - 1
    shifted = flat[..., start : start + block_q * (length - 1)]
    return shifted.reshape(*lead, block_q, length - 1)[..., :block_k]
