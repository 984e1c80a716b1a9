"""The strongest edges of each query, exactly."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from attnjax.focus.maps.readings import Reading, look
from attnjax.focus.maps.tiles import Scene, Tile
from attnjax.focus.maps.weights import Weights
from attnjax.ops.tiles import Origin


class Edges(NamedTuple):
    """The keys that each query weighs most, the strongest first.

    Attributes:
      weights: float32; 0 where the query may see fewer keys. NaN if the query sees anything that is
        not finite.
      keys: their positions, int32; -1 where the query may see fewer keys, or the weight is NaN.
        Keys of equal weight come in no particular order. A key that a score_mod hides by minus
        infinity, rather than the mask, counts as one of weight 0.
    """

    weights: Float[Array, "B N T k"]
    keys: Int[Array, "B N T k"]


class _Kept(NamedTuple):
    """Totals: for each tile side by side, weights of the block of rows at hand; and the results."""

    strips: tuple[Array, ...]
    weights: Array
    keys: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopEdges(Reading):
    """The keys that each query weighs most, for `look`; the result is `Edges`.

    While a block of queries is at hand, its weights lie in memory, and the largest of each group of
    keys; the strongest k keys lie in the k groups whose largest are largest, and only those are
    sorted.

    Attributes:
      count: edges for each query, at most S.
    """

    count: int = dataclasses.field(default=16, metadata={"static": True})

    keeps_rows = True

    def check(self, found: Weights) -> None:
        S = found.sizes["S"]
        if not isinstance(self.count, int | np.integer) or not 1 <= self.count <= S:
            raise ValueError(
                f"TopEdges.count: expected an integer from 1 to S={S}, got {self.count!r}."
            )

    def _group(self, scene: Scene) -> int:
        """Returns how many keys are in a group, a divisor of block_k.

        As many numbers are sorted as there are groups in a row, and keys in the chosen groups.
        """
        t = scene.tiling
        wanted = math.sqrt(t.S / self.count)
        return max(g for g in range(1, t.block_k + 1) if t.block_k % g == 0 and g <= max(1, wanted))

    def zeros(self, scene: Scene) -> _Kept:
        t, dtype = scene.tiling, scene.kernel.dtype
        strip = jnp.zeros((t.counts[-1], *t.score_shape), dtype)
        shape = (t.B, t.K, t.groups, t.T, self.count)
        return _Kept((strip,) * t.streams, jnp.zeros(shape, dtype), jnp.full(shape, -1, jnp.int32))

    def begin(self, scene: Scene) -> tuple[Array, Array]:
        """Returns the largest of each group, and which rows see anything that is not finite."""
        t = scene.tiling
        groups = (t.counts[-1], *t.row_shape, t.block_k // self._group(scene))
        return jnp.full(groups, -jnp.inf, scene.kernel.dtype), jnp.zeros(t.row_shape, bool)

    def visit(
        self, scene: Scene, total: _Kept, own: tuple[Array, Array], tile: Tile, product: Any
    ) -> tuple[_Kept, tuple[Array, Array]]:
        largest, bad = own
        x = tile.x
        if tile.allowed is not None:
            x = jnp.where(tile.allowed, x, -jnp.inf)
        # A group has its keys far apart, so that neighbours in memory are compared side by side.
        parts = jnp.split(x, self._group(scene), axis=-1)
        top = functools.reduce(jnp.maximum, parts)
        bad |= jax.lax.cond(
            scene.bad,
            lambda x: jnp.any(~jnp.isfinite(x), axis=-1),
            lambda x: jnp.zeros(x.shape[:-1], bool),
            tile.x,
        )
        strips = list(total.strips)
        strips[tile.stream] = strips[tile.stream].at[tile.j].set(x)
        return total._replace(strips=tuple(strips)), (largest.at[tile.j].set(top), bad)

    def finish(
        self,
        scene: Scene,
        total: _Kept,
        own: tuple[Array, Array],
        at: Origin,
        i: Array,
        stream: int,
    ) -> _Kept:
        t, group, (largest, bad) = scene.tiling, self._group(scene), own
        found, number = self._candidates(total.strips[stream], largest, group)
        weights, order = jax.lax.top_k(found, self.count)
        number = jnp.take_along_axis(number, order, axis=-1)
        start = jnp.minimum(number // t.block_k * t.block_k, t.S - t.block_k)
        absent, bad = weights == -jnp.inf, bad[..., None]
        keys = jnp.where(absent | bad, -1, start + number % t.block_k)
        weights = jnp.where(bad, jnp.nan, jnp.where(absent, 0, weights))
        index = t.index(at)
        return total._replace(
            weights=scene.kernel.put_rows(total.weights, weights, at, index, i),
            keys=scene.kernel.put_rows(total.keys, keys, at, index, i),
        )

    def _candidates(self, strip: Array, largest: Array, group: int) -> tuple[Array, Array]:
        """Returns the weights of the keys in the best groups of each row, and their numbers.

        Keys are numbered block by block, where the last block may overlap the one before.
        """
        blocks, *_, block_k = strip.shape
        width = block_k // group
        largest = jnp.moveaxis(largest, 0, -2)
        largest = largest.reshape(*largest.shape[:-2], blocks * width)
        tops, chosen = jax.lax.top_k(largest, min(self.count, blocks * width))
        number = chosen // width * block_k + chosen % width
        number = (number[..., None] + jnp.arange(group) * width).reshape(*chosen.shape[:-1], -1)
        lines = math.prod(strip.shape[1:-1])
        line = jnp.arange(lines).reshape(*strip.shape[1:-1], 1)
        at = (number // block_k * lines + line) * block_k + number % block_k
        found = strip.reshape(-1).at[at].get(mode="promise_in_bounds")
        # Blocks that were not visited hold what another block of rows left there.
        visited = jnp.repeat(tops > -jnp.inf, group, axis=-1)
        return jnp.where(visited, found, -jnp.inf), number

    def result(self, scene: Scene, total: _Kept) -> Edges:
        t = scene.tiling
        return Edges(*(x.reshape(t.B, t.N, t.T, -1) for x in (total.weights, total.keys)))


def top_edges(found: Weights, count: int = 16) -> Edges:
    """Returns the keys that each query weighs most, exactly.

    Args:
      found: the weights.
      count: edges for each query, at most S.

    Returns:
      The edges.

    Raises:
      ValueError: if there are fewer keys.
    """
    (result,) = look(found, TopEdges(count))
    return result
