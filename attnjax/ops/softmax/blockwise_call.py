"""What is static in a call of the loops over blocks, and the steps that both passes share."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.dropout import keep
from attnjax.numerics import matmul_dtype, poison, split_nonfinite
from attnjax.ops.lowering import Program
from attnjax.ops.schedule import Schedule
from attnjax.ops.softmax.problem import Known
from attnjax.ops.tiles import Origin, Tiling, put, take
from attnjax.typing import Index


class Arguments(NamedTuple):
    """Everything that the kernel computes with; q, k and v as `[B, K, (G,) time, width]`."""

    q: Array
    k: Array
    v: Array
    sinks: Array | None
    scores: tuple[Array, ...]
    mask: tuple[Array, ...]
    dropout: Array | None
    by_query: Schedule
    by_key: Schedule
    origin: Array | None
    known: Known | None


class Inputs(NamedTuple):
    """Queries, keys and values without their NaNs and infinities, and where those were.

    Attributes:
      q, k, v: finite.
      bad_rows: NaN where a query is not finite, else 0: `[B, K, G, T]`.
      bad_keys: the same for keys and their values: `[B, K, S]`.
      bad_blocks: the same for blocks of keys: `[B, K, nk]`.
    """

    q: Array
    k: Array
    v: Array
    bad_rows: Array
    bad_keys: Array
    bad_blocks: Array


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What is static in a call, and the steps that forward and backward share."""

    tiling: Tiling
    scores: Program
    mask: Program
    dtype: jnp.dtype
    precision: Any
    stats: bool
    dropout: tuple[float, str] | None
    only_scaled: bool

    def bare(self) -> Kernel:
        """Returns the kernel without the arrays of its programs."""
        return dataclasses.replace(self, scores=self.scores.bare(), mask=self.mask.bare())

    def bind(self, arguments: Arguments) -> Kernel:
        """Returns the kernel with the arrays of its programs taken from the arguments."""
        return dataclasses.replace(
            self,
            scores=self.scores.with_arrays(arguments.scores),
            mask=self.mask.with_arrays(arguments.mask),
        )

    def inputs(self, arguments: Arguments) -> Inputs:
        """Prepares queries, keys and values for matrix products."""
        tiling = self.tiling
        q, k, v = (x.astype(matmul_dtype(x.dtype)) for x in (arguments.q, arguments.k, arguments.v))
        q = q.reshape(tiling.B, tiling.K, tiling.groups, tiling.T, q.shape[-1])
        (q, q_bad), (k, k_bad), (v, v_bad) = (split_nonfinite(x) for x in (q, k, v))
        bad = k_bad | v_bad
        nk = tiling.counts[-1]
        padded = jnp.pad(bad, ((0, 0), (0, 0), (0, nk * tiling.block_k - tiling.S)))
        blocks = jnp.any(padded.reshape(*bad.shape[:2], nk, tiling.block_k), axis=-1)
        return Inputs(q, k, v, *(poison(x, self.dtype) for x in (q_bad, bad, blocks)))

    def rows(self, x: Array, at: Origin) -> Array:
        """Cuts `[B, K, G, T, ...]` to the rows of a tile."""
        t = self.tiling
        return take(
            x,
            (at.b, *t.head(at), at.q, *(0,) * (x.ndim - 4)),
            (*t.row_shape, *x.shape[4:]),
        )

    def put_rows(self, x: Array, new: Array, at: Origin, index: Index, i: Array) -> Array:
        """Writes the rows of a tile, leaving those that belong to the tile before."""
        if self.tiling.T % self.tiling.block_q:
            own = (index.q >= i * self.tiling.block_q).reshape(1, 1, 1, -1, *(1,) * (x.ndim - 4))
            new = jnp.where(own, new, self.rows(x, at))
        starts = (at.b, *self.tiling.head(at), at.q, *(0,) * (x.ndim - 4))
        return put(x, new, starts)

    def over_rows(self, columns: Array, tile: Array, at: Origin) -> Array:
        """Multiplies `[B, K, G, width, T]`, cut to a tile's rows, by the tile, over all its rows.

        XLA:CPU takes this form, whose left side lies transposed in memory, in half the time of
        `tile.T @ rows`.

        Returns:
          `[B', K', width, block_k]`.
        """
        t = self.tiling
        part = take(
            columns,
            (at.b, *t.head(at), 0, at.q),
            (t.block_b, *t.heads, columns.shape[3], t.block_q),
        )
        return jax.lax.dot_general(
            part,
            tile.astype(part.dtype),
            (((2, 4), (2, 3)), ((0, 1), (0, 1))),
            precision=self.precision,
            preferred_element_type=self.dtype,
        )

    def keys(self, x: Array, at: Origin) -> Array:
        """Cuts `[B, K, S, ...]` to the keys of a tile."""
        t = self.tiling
        return take(
            x,
            (at.b, t.head(at)[0], at.k, *(0,) * (x.ndim - 3)),
            (t.block_b, t.heads[0], t.block_k, *x.shape[3:]),
        )

    def add_keys(self, total: Array, part: Array, at: Origin) -> Array:
        """Adds a tile's keys to `[B, K, width, S]`; tiles overlap in masked keys, which add 0."""
        starts = (at.b, self.tiling.head(at)[0], 0, at.k)
        return put(total, take(total, starts, part.shape) + part, starts)

    def sinks(self, sinks: Array | None, at: Origin) -> Array | None:
        """Cuts `[K, G]` to the heads of a tile: `[K', G', 1]`."""
        if sinks is None:
            return None
        return take(sinks, self.tiling.head(at), self.tiling.heads)[..., None]

    def dot(self, left: Array, right: Array, contract: tuple[int, int]) -> Array:
        """Multiplies `[B', K', x, y]` by `[B', K', z, w]` over one axis of each."""
        return jax.lax.dot_general(
            left,
            right,
            (((contract[0],), (contract[1],)), ((0, 1), (0, 1))),
            precision=self.precision,
            preferred_element_type=self.dtype,
        )

    def fold(self, x: Array) -> Array:
        """Folds the query groups into the rows: `[B', K', G' * block_q, ...]`."""
        return x.reshape(*x.shape[:2], -1, *x.shape[4:])

    def dots(self, q: Array, k: Array) -> Array:
        """Multiplies folded rows by keys: one tile of dot products."""
        return self.dot(q, k, (3, 3)).reshape(self.tiling.score_shape)

    def top(self, dots: Array, score: Array, scale: Array) -> Array:
        """Returns the largest score of each row of a tile.

        Rounding keeps order, so where scores are but scaled, that of the largest dot product (or of
        the smallest) is the largest, and the scores need not lie in memory to be compared.
        """
        if not self.only_scaled:
            return jnp.max(score, axis=-1)
        most = jax.lax.cond(
            scale < 0, lambda x: jnp.min(x, axis=-1), lambda x: jnp.max(x, axis=-1), dots
        )
        return most * scale

    def allowed(self, index: Index, at: Origin, i: Array, j: Array, *, own_rows: bool) -> Array:
        """Evaluates the mask on a tile, without what belongs to another tile."""
        t = self.tiling
        allowed = self.mask(*index, inputs=self.mask.inputs(t, at))
        here = t.index(at)
        if t.S % t.block_k:
            allowed &= here.k >= j * t.block_k
        if own_rows and t.T % t.block_q:
            allowed &= here.q >= i * t.block_q
        return allowed

    def drop(self, words: Array | None, index: Index, *tiles: Array) -> tuple[Array, ...]:
        """Applies dropout to tiles: what is dropped becomes 0, the rest is scaled up."""
        if self.dropout is None or words is None:
            return tiles
        rate, shared = self.dropout
        chosen = keep(words, rate, index, shared)
        return tuple(jnp.where(chosen, x / (1 - rate), 0) for x in tiles)


def place(n: Array, groups: int, blocks: int) -> tuple[Array, Array | int, Array]:
    """Splits a running number into batch tile, group of heads (known if it is alone) and block."""
    if groups == 1:
        return n // blocks, 0, n % blocks
    return n // (groups * blocks), n // blocks % groups, n % blocks


def row_dot(left: Array, right: Array) -> Array:
    """Returns `sum(left * right)` of each row.

    A matrix product is the fastest sum that XLA:CPU has: up to 50 times as fast as multiplying and
    summing, which it does on one thread.
    """
    return jnp.einsum("bkgqx,bkgqx->bkgq", left, right, precision=jax.lax.Precision.HIGHEST)
