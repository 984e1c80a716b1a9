"""Maps that are sums of weights: pooled maps, weight received by keys, what queries gather."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from attnjax.focus.maps.readings import Reading, look
from attnjax.focus.maps.tiles import Scene, Tile
from attnjax.focus.maps.weights import Weights
from attnjax.ops.tiles import Origin, put, take
from attnjax.scores.base import check_floats


class _Cells(NamedTuple):
    """Cells of positions along one axis: position `t` of T lies in cell `t * count // T` of them.

    Attributes:
      of: the cell of each position, int32.
      first: the first cell of each block of positions, int32.
      span: most cells in a block.
      sizes: the number of positions of each cell.
    """

    of: np.ndarray
    first: np.ndarray
    span: int
    sizes: np.ndarray


def _cells(length: int, count: int, block: int) -> _Cells:
    of = np.arange(length, dtype=np.int64) * count // length
    starts = np.arange(0, length, block)
    first, last = of[starts], of[np.minimum(starts + block, length) - 1]
    sizes = np.bincount(of, minlength=count)
    return _Cells(of.astype(np.int32), first.astype(np.int32), int(max(last - first)) + 1, sizes)


def _members(cells: _Cells, start: Array, block: int, number: Array, dtype: Any) -> Array:
    """Returns `[span, block]`: 1 where a position of a block lies in a cell of it."""
    of = take(jnp.asarray(cells.of), (start,), (block,))
    own = jnp.arange(cells.span)[:, None] == of - jnp.asarray(cells.first)[number]
    return own.astype(dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pooled(Reading):
    """A map of fixed size: the weights of each cell of queries by keys, for `look`.

    Query `t` of T lies in row `t * queries // T` of the map, and keys likewise, so that sizes need
    not divide. The result is float32 `[B, N, queries, keys]`. The mean of a cell is over all its
    pairs, masked ones included.

    Attributes:
      queries: rows of the map, at most T.
      keys: columns, at most S.
      mean: whether cells hold means, rather than sums.
    """

    queries: int = dataclasses.field(default=256, metadata={"static": True})
    keys: int = dataclasses.field(default=256, metadata={"static": True})
    mean: bool = dataclasses.field(default=True, metadata={"static": True})

    def check(self, found: Weights) -> None:
        for name, count, letter in (("queries", self.queries, "T"), ("keys", self.keys, "S")):
            most = found.sizes[letter]
            if not isinstance(count, int | np.integer) or not 1 <= count <= most:
                raise ValueError(
                    f"Pooled.{name}: expected an integer from 1 to {letter}={most}, got {count!r}."
                )

    def _axes(self, scene: Scene) -> tuple[_Cells, _Cells]:
        t = scene.tiling
        return _cells(t.T, self.queries, t.block_q), _cells(t.S, self.keys, t.block_k)

    def zeros(self, scene: Scene) -> Array:
        t, (rows, columns) = scene.tiling, self._axes(scene)
        shape = (t.B, t.K, t.groups, self.queries + rows.span, self.keys + columns.span)
        return jnp.zeros(shape, scene.kernel.dtype)

    def left(self, scene: Scene, at: Origin, i: Array) -> Array:
        t, (rows, _) = scene.tiling, self._axes(scene)
        own = _members(rows, at.q, t.block_q, i, scene.kernel.dtype)
        return jnp.broadcast_to(own, (t.block_b, *t.heads, *own.shape))

    def visit(
        self, scene: Scene, total: Array, own: Any, tile: Tile, product: Array | None
    ) -> tuple[Array, Any]:
        assert product is not None
        t, at, (rows, columns) = scene.tiling, tile.at, self._axes(scene)
        members = _members(columns, at.k, t.block_k, tile.j, product.dtype)
        members = jnp.broadcast_to(members.T, (*product.shape[:3], *members.T.shape))
        part = scene.dot(product, members)
        first = (jnp.asarray(rows.first)[tile.i], jnp.asarray(columns.first)[tile.j])
        starts = (at.b, *t.head(at), *first)
        old = take(total, starts, part.shape)
        return put(total, old + part, starts), own

    def result(self, scene: Scene, total: Array) -> Float[Array, "B N p q"]:
        t, (rows, columns) = scene.tiling, self._axes(scene)
        pooled = total[..., : self.queries, : self.keys]
        pooled = pooled.reshape(t.B, t.N, self.queries, self.keys)
        if not self.mean:
            return pooled
        return pooled / np.outer(rows.sizes, columns.sizes).astype(np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Received(Reading):
    """The weight that each key receives from all queries, for `look`: the sums of columns.

    Attributes:
      start: `[B, T, d]`: how much each query counts, d times; None counts each once.
      together: whether the result is the mean over heads.

    The result is float32 `[B, N, S]`, with `start` `[B, N, S, d]`, the product of the transposed
    weights and `start`; without N if `together`.
    """

    start: Float[Array, "B T d"] | None = None
    together: bool = dataclasses.field(default=False, metadata={"static": True})

    def check(self, found: Weights) -> None:
        if self.start is not None:
            check_vectors("Received.start", self.start, found, "T")

    def finite(self) -> Array | bool:
        return True if self.start is None else jnp.all(jnp.isfinite(self.start))

    @property
    def _width(self) -> int:
        return 1 if self.start is None else self.start.shape[-1]

    def zeros(self, scene: Scene) -> Array:
        t = scene.tiling
        heads = (1, 1) if self.together else (t.K, t.groups)
        return jnp.zeros((t.B, *heads, self._width, t.S), scene.kernel.dtype)

    def left(self, scene: Scene, at: Origin, i: Array) -> Array:
        t, dtype = scene.tiling, scene.kernel.dtype
        if self.start is None:
            return jnp.ones((t.block_b, *t.heads, 1, t.block_q), dtype)
        part = take(self.start, (at.b, at.q, 0), (t.block_b, t.block_q, self._width))
        part = jnp.swapaxes(part.astype(dtype), 1, 2)[:, None, None]
        return jnp.broadcast_to(part, (t.block_b, *t.heads, self._width, t.block_q))

    def visit(
        self, scene: Scene, total: Array, own: Any, tile: Tile, product: Array | None
    ) -> tuple[Array, Any]:
        assert product is not None
        return _add(scene, total, product, tile.at, tile.at.k, together=self.together), own

    def result(self, scene: Scene, total: Array) -> Array:
        received = jnp.swapaxes(_heads_in_one(scene, total, together=self.together), -1, -2)
        return received[..., 0] if self.start is None else received


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gathered(Reading):
    """What each query gathers of some vectors, for `look`: the product of weights and vectors.

    Attributes:
      vectors: `[B, S, d]`, one for each key, the same for all heads.
      together: whether the result is the mean over heads.

    The result is float32 `[B, N, T, d]`; without N if `together`.
    """

    vectors: Float[Array, "B S d"]
    together: bool = dataclasses.field(default=False, metadata={"static": True})

    def check(self, found: Weights) -> None:
        check_vectors("Gathered.vectors", self.vectors, found, "S")

    def finite(self) -> Array:
        return jnp.all(jnp.isfinite(self.vectors))

    def zeros(self, scene: Scene) -> Array:
        t = scene.tiling
        heads = (1, 1) if self.together else (t.K, t.groups)
        return jnp.zeros((t.B, *heads, self.vectors.shape[-1], t.T), scene.kernel.dtype)

    def begin(self, scene: Scene) -> Array:
        t = scene.tiling
        return jnp.zeros((*t.row_shape, self.vectors.shape[-1]), scene.kernel.dtype)

    def visit(
        self, scene: Scene, total: Array, own: Array, tile: Tile, product: Array | None
    ) -> tuple[Array, Array]:
        t, at = scene.tiling, tile.at
        part = take(
            self.vectors, (at.b, at.k, 0), (t.block_b, t.block_k, self.vectors.shape[-1])
        ).astype(scene.kernel.dtype)
        part = jnp.broadcast_to(part[:, None, None], (*t.row_shape[:3], *part.shape[1:]))
        return total, own + scene.dot(tile.x, part)

    def finish(
        self, scene: Scene, total: Array, own: Array, at: Origin, i: Array, stream: int
    ) -> Array:
        return _add(scene, total, jnp.swapaxes(own, -1, -2), at, at.q, together=self.together)

    def result(self, scene: Scene, total: Array) -> Array:
        return jnp.swapaxes(_heads_in_one(scene, total, together=self.together), -1, -2)


def pooled(
    found: Weights, queries: int, keys: int, *, mean: bool = True
) -> Float[Array, "B N p q"]:
    """Returns a map of fixed size: the weights of each cell of queries by keys.

    Args:
      found: the weights.
      queries: rows of the map, at most T; they need not divide it.
      keys: columns, at most S.
      mean: whether cells hold means, over masked pairs too, rather than sums.

    Returns:
      float32.

    Raises:
      ValueError: if a size is out of range.
    """
    (result,) = look(found, Pooled(queries, keys, mean))
    return result


def received(found: Weights) -> Float[Array, "B N S"]:
    """Returns the weight that each key receives from all queries, the sums of columns, float32."""
    (result,) = look(found, Received())
    return result


def _add(
    scene: Scene, total: Array, part: Array, at: Origin, start: Array, *, together: bool
) -> Array:
    """Adds `[B', K', G', d, block]` to `[B, K, G, d, length]`, or its heads to `[B, 1, 1, ...]`.

    Tiles overlap where they are ragged, but what belongs to another tile is 0.
    """
    heads: tuple[Any, Any] = scene.tiling.head(at)
    if together:
        part, heads = jnp.sum(part, axis=(1, 2), keepdims=True), (0, 0)
    starts = (at.b, *heads, 0, start)
    return put(total, take(total, starts, part.shape) + part, starts)


def _heads_in_one(scene: Scene, total: Array, *, together: bool) -> Array:
    t = scene.tiling
    return total[:, 0, 0] / t.N if together else total.reshape(t.B, t.N, *total.shape[3:])


def check_vectors(name: str, x: Any, found: Weights, letter: str) -> None:
    """Raises ValueError if `x` is not `[B, T, d]`, or `[B, S, d]` for the letter S."""
    B, length = found.sizes["B"], found.sizes[letter]
    x = check_floats(name, x)
    if x.ndim != 3 or x.shape[:2] != (B, length) or not x.shape[2]:
        raise ValueError(
            f"{name}: expected shape [B={B}, {letter}={length}, d], got {tuple(x.shape)}."
        )
