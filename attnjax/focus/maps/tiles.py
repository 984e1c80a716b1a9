"""Tiles of weights, recomputed from queries, keys and logsumexp."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.focus.maps.weights import Weights, fixed
from attnjax.numerics import MASKED, matmul_dtype
from attnjax.ops.schedule import Schedule
from attnjax.ops.softmax.blockwise import prepare
from attnjax.ops.softmax.blockwise_call import Kernel
from attnjax.ops.tiles import Origin, Tiling, take


class Rows(NamedTuple):
    """What a block of queries brings to all its tiles.

    Attributes:
      q: queries, their groups folded into the rows.
      logsumexp: plus infinity for rows with nothing to attend to, so that their weights vanish.
      d_out: gradients by the output, folded likewise, or None.
    """

    q: Array
    logsumexp: Array
    d_out: Array | None


class Tile(NamedTuple):
    """Some weights.

    Attributes:
      x: `[B', K', G', block_q, block_k]`; 0 where masked, and where another tile has the same.
      allowed: where not, broadcastable to them; None if that is everywhere.
      at: where the tile starts.
      i: number of its block of queries.
      j: number of its block of keys.
      stream: number of the tile among those side by side.
    """

    x: Array
    allowed: Array | None
    at: Origin
    i: Array
    j: Array
    stream: int


@dataclasses.dataclass(frozen=True)
class Scene:
    """Weights, cut into tiles; arrays are laid out as in `Arguments` of blockwise attention.

    Attributes:
      kernel: what computes scores and masks of a tile.
      schedule: which tiles are visited.
      q: `[B, K, G, T, H]`.
      k: `[B, K, S, H]`.
      logsumexp: `[B, K, G, T]`.
      per_key: `[B, K, G, S]`, or None.
      d_out: `[B, K, G, T, D]`, or None.
      values: `[B, K, S, D]`, or None.
      positive: as in `Weights`.
      bad: whether any number that goes into the weights is not finite.
    """

    kernel: Kernel
    schedule: Schedule
    q: Array
    k: Array
    logsumexp: Array
    per_key: Array | None
    d_out: Array | None
    values: Array | None
    positive: bool
    bad: Array

    @property
    def tiling(self) -> Tiling:
        """The tiles."""
        return self.kernel.tiling

    def with_bad(self, *bad: Array) -> Scene:
        """Returns the scene for maps of which some have numbers that are not finite."""
        return dataclasses.replace(self, bad=jnp.any(jnp.stack((self.bad, *bad))))

    def rows(self, at: Origin) -> Rows:
        """Cuts out what a block of queries brings."""
        kernel = self.kernel
        q = kernel.fold(kernel.rows(self.q, at))
        d_out = None if self.d_out is None else kernel.fold(kernel.rows(self.d_out, at))
        return Rows(q, kernel.rows(self.logsumexp, at), d_out)

    def tile(
        self, rows: Rows, at: Origin, i: Array, j: Array, *, partial: bool, stream: int = 0
    ) -> Tile:
        """Computes a tile; `partial` ones need the mask."""
        kernel, t = self.kernel, self.tiling
        index = t.index(at)
        dots = kernel.dots(rows.q, kernel.keys(self.k, at))
        score = kernel.scores(dots, *index, inputs=kernel.scores.inputs(t, at))
        x = jnp.exp(score - rows.logsumexp[..., None])
        if self.per_key is not None:
            starts = (at.b, *t.head(at), at.k)
            x = x * take(self.per_key, starts, (t.block_b, *t.heads, t.block_k))[..., None, :]
        if rows.d_out is not None and self.values is not None:
            slope = kernel.dots(rows.d_out, kernel.keys(self.values, at))
            x = x * (jnp.maximum(slope, 0) if self.positive else slope)
        if not partial:
            return Tile(x, None, at, i, j, stream)
        allowed = kernel.allowed(index, at, i, j, own_rows=True)
        return Tile(jnp.where(allowed, x, 0), allowed, at, i, j, stream)

    def dot(self, left: Array, right: Array) -> Array:
        """Multiplies `[..., x, y]` by `[..., y, z]`, where 0 times what is not finite is 0.

        A sum over chosen rows is a product with 0 and 1, and what is not chosen must not spoil it.
        """
        return jax.lax.cond(self.bad, self._careful, self._product, left, right)

    def _product(self, left: Array, right: Array) -> Array:
        batch = tuple(range(left.ndim - 2))
        return jax.lax.dot_general(
            left,
            right,
            (((left.ndim - 1,), (right.ndim - 2,)), (batch, batch)),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=self.kernel.dtype,
        )

    def _careful(self, left: Array, right: Array) -> Array:
        def split(x: Array) -> tuple[Array, Array, Array]:
            finite = jnp.isfinite(x)
            kinds = (jnp.where(finite, x, 0), ~finite, x != 0)
            return tuple(kind.astype(self.kernel.dtype) for kind in kinds)  # type: ignore[return-value]

        (left, left_bad, left_some), (right, right_bad, right_some) = split(left), split(right)
        hits = self._product(left_some, right_bad) + self._product(left_bad, right_some)
        return jnp.where(hits > 0, jnp.nan, self._product(left, right))


def make_scene(found: Weights, tiling: Tiling) -> Scene:
    """Prepares weights to be cut into tiles."""
    found = fixed(found)
    kernel, arguments = prepare(found.problem, tiling)
    t, dtype = tiling, kernel.dtype

    def by_query(x: Array) -> Array:
        return x.reshape(t.B, t.K, t.groups, t.T, *x.shape[3:])

    def product(x: Array) -> Array:
        return x.astype(matmul_dtype(x.dtype))

    empty, logsumexp = found.logsumexp == MASKED, found.logsumexp.astype(dtype)
    filled = jnp.where(empty, 0, logsumexp)
    parts = (found.problem.q, found.problem.k, filled, found.per_key, found.values, found.d_out)
    bad = jnp.stack([~jnp.all(jnp.isfinite(x)) for x in parts if x is not None])
    per_key, d_out, values = found.per_key, None, None
    if found.d_out is not None and found.values is not None:
        both = jnp.result_type(product(found.d_out), product(found.values))
        d_out, values = (jnp.moveaxis(x.astype(both), 2, 1) for x in (found.d_out, found.values))
        d_out = by_query(d_out)
    return Scene(
        kernel,
        arguments.by_query,
        by_query(product(arguments.q)),
        product(arguments.k),
        by_query(jnp.where(empty, jnp.inf, logsumexp)),
        None if per_key is None else per_key.astype(dtype).reshape(t.B, t.K, t.groups, t.S),
        d_out,
        values,
        found.positive,
        jnp.any(bad),
    )
