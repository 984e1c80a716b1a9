"""Several maps in one pass over the tiles of the weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from attnjax.focus.maps.tiles import Scene, Tile, make_scene
from attnjax.focus.maps.weights import Weights, fixed
from attnjax.ops.softmax.blockwise_call import place
from attnjax.ops.softmax.tiling import make_tiling
from attnjax.ops.tiles import Origin, Tiling

_STREAMS = 4
_KEPT_BYTES = 128 << 20
"""Most memory for weights of whole rows, where a reading keeps some."""


class Reading:
    """One map, gathered tile by tile. All of it is a pytree whose sizes are static."""

    keeps_rows = False
    """Whether the weights of a block of whole rows lie in memory at a time."""

    def check(self, found: Weights) -> None:
        """Raises ValueError if the map can't be made of these weights."""

    def finite(self) -> Array | bool:
        """Returns whether all its own numbers are finite."""
        return True

    def zeros(self, scene: Scene) -> Any:
        """Returns the totals before the first tile."""

    def begin(self, scene: Scene) -> Any:
        """Returns what is gathered for a block of queries before its first tile."""

    def left(self, scene: Scene, at: Origin, i: Array) -> Array | None:
        """Returns rows `[B', K', G', c, block_q]` by which tiles are multiplied, or None."""
        return None

    def visit(
        self, scene: Scene, total: Any, own: Any, tile: Tile, product: Array | None
    ) -> tuple[Any, Any]:
        """Takes in a tile, and the product `left @ tile`; returns totals and the block's own."""
        return total, own

    def finish(self, scene: Scene, total: Any, own: Any, at: Origin, i: Array, stream: int) -> Any:
        """Returns the totals after the last tile of a block of queries."""
        return total

    def result(self, scene: Scene, total: Any) -> Any:
        """Returns the map."""
        raise NotImplementedError


def look(found: Weights, *readings: Reading) -> tuple[Any, ...]:
    """Makes several maps in one pass over the weights.

    Each tile is computed once for all of them. Memory is O(T + S), and blocks that the mask
    excludes are skipped. Gradients stop here. Example:

        found = maps.weights(q, k, mask=attnjax.Causal(), logsumexp=stats.logsumexp)
        picture, received, edges = maps.look(
            found, maps.Pooled(256, 256), maps.Received(), maps.TopEdges(16)
        )

    Args:
      found: what `weights`, `additive_weights`, `by_values` or `by_gradient` returned.
      *readings: `Pooled`, `Received`, `Gathered` and `TopEdges`, one or more.

    Returns:
      What each of them describes.

    Raises:
      ValueError: if a map can't be made of these weights.
    """
    if not readings:
        raise ValueError(
            "readings: expected at least one, such as maps.Pooled(256, 256), got none."
        )
    for reading in readings:
        if not isinstance(reading, Reading):
            raise ValueError(
                "readings: expected maps.Pooled(...), maps.Received(...), maps.Gathered(...) or "
                f"maps.TopEdges(...), got {type(reading).__name__}."
            )
        reading.check(found)
    # Eager calls would compile their loops anew every time. Functions of the caller stay outside,
    # for their closures may change between calls.
    run = _look if found.problem.user_functions else _look_cached
    return run(found, fixed(readings))


def _look(found: Weights, readings: tuple[Reading, ...]) -> tuple[Any, ...]:
    return read_tiles(found, readings, choose_tiling(found, readings))


_look_cached = jax.jit(_look)


def choose_tiling(found: Weights, readings: Sequence[Reading]) -> Tiling:
    """Chooses the tiles for a pass."""
    problem, block_q = found.problem, found.block
    while True:
        t = make_tiling(problem, block_q, found.block, streams=_STREAMS)
        kept = t.block_b * t.block_n * t.streams * t.block_q * t.counts[-1] * t.block_k
        fits = kept * problem.accumulation_dtype.itemsize <= _KEPT_BYTES
        if fits or block_q <= 32 or not any(r.keeps_rows for r in readings):
            return t
        block_q //= 2


def read_tiles(found: Weights, readings: tuple[Reading, ...], tiling: Tiling) -> tuple[Any, ...]:
    """Makes maps in one pass over given tiles.

    Args:
      found: the weights.
      readings: the maps.
      tiling: the tiles.

    Returns:
      The maps.
    """
    scene, t = make_scene(found, tiling), tiling
    scene = scene.with_bad(*(~jnp.asarray(r.finite()) for r in readings))
    batches, groups, blocks, _ = t.counts

    def one_block(n: Array, totals: list[Any]) -> list[Any]:
        b, h, i = place(n, groups, blocks)
        starts = t.side_by_side(t.origin(b, h, i, jnp.int32(0)))
        rows = [scene.rows(at) for at in starts]
        lefts = [[r.left(scene, at, i) for r in readings] for at in starts]

        def visit(n: Array, carry: tuple[Any, Any], *, partial: bool) -> tuple[Any, Any]:
            totals, owns = carry
            totals, owns = list(totals), [list(own) for own in owns]
            j = scene.schedule.block(b, i, n)
            for s, at in enumerate(t.side_by_side(t.origin(b, h, i, j))):
                tile = scene.tile(rows[s], at, i, j, partial=partial, stream=s)
                products = _multiply(scene, lefts[s], tile)
                for m, reading in enumerate(readings):
                    totals[m], owns[s][m] = reading.visit(
                        scene, totals[m], owns[s][m], tile, products[m]
                    )
            return totals, owns

        carry = totals, [[r.begin(scene) for r in readings] for _ in starts]
        full, visited = scene.schedule.counts(b, i)
        for partial, first, end in ((False, 0, full), (True, full, visited)):
            step = functools.partial(visit, partial=partial)
            carry = jax.lax.fori_loop(first, end, step, carry)
        totals, owns = carry
        for s, at in enumerate(starts):
            totals = [
                r.finish(scene, total, own, at, i, s)
                for r, total, own in zip(readings, totals, owns[s], strict=True)
            ]
        return totals

    totals = [r.zeros(scene) for r in readings]
    totals = jax.lax.fori_loop(0, batches * groups * blocks, one_block, totals)
    return tuple(r.result(scene, total) for r, total in zip(readings, totals, strict=True))


def _multiply(scene: Scene, lefts: Sequence[Array | None], tile: Tile) -> list[Array | None]:
    """Multiplies a tile by the rows of all readings at once, so that it is read once."""
    given = [left for left in lefts if left is not None]
    if not given:
        return [None] * len(lefts)
    product = scene.dot(jnp.concatenate(given, axis=-2), tile.x)
    ends = np.cumsum([left.shape[-2] for left in given])
    parts = iter(jnp.split(product, ends[:-1], axis=-2))
    return [None if left is None else next(parts) for left in lefts]
