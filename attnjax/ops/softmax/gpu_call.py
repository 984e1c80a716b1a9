"""What is static in a call of the GPU kernels, and the arrays that they share."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from attnjax.masks import EMPTY, FULL, And, Full, Lengths, Mask, Window
from attnjax.numerics import poison, split_nonfinite
from attnjax.ops.kernels import gpu_parts
from attnjax.ops.kernels.padding import pad
from attnjax.ops.kernels.programs import Part, Tile, TileProgram, lower_mask, lower_scores, part
from attnjax.ops.schedule import tile_kinds
from attnjax.ops.softmax.problem import Problem
from attnjax.ops.tiles import Tiling
from attnjax.typing import is_concrete

HEAD_BITS = 16
# 2 to this power is 0, and so is its product with this number: it keeps 0 * inf out.
LOWEST = -1000.0
Refs = dict[str, Any]
"""References by name."""


class Rows(NamedTuple):
    """Which blocks each row of blocks visits, or each column.

    Attributes:
      order: block numbers along the other axis: FULL ones, then PARTIAL ones, then the rest. Where
        a row is one of keys, the number of the head in its group stands above `HEAD_BITS`.
      counts: how many are FULL, and how many are FULL or PARTIAL.
    """

    order: Int[Array, "b rows blocks"]
    counts: Int[Array, "b rows 2"]


@dataclasses.dataclass(frozen=True)
class Pass:
    """One kernel's view of a call.

    Attributes:
      tile: the tiles that a warpgroup computes.
      groups: warpgroups that compute, each on rows of its own.
      scores: the program of the scores on a tile.
      masks: programs that must all allow a score.
      pulled: the program of the scores with its derivative; see `gpu_parts.with_pull`.
      width: the head width.
      stats: whether statistics are wanted.
    """

    tile: Tile
    groups: int
    scores: TileProgram
    masks: tuple[TileProgram, ...]
    pulled: TileProgram
    width: int
    stats: bool

    @property
    def crowded(self) -> bool:
        """Whether programs need registers that wide sums or wide tiles would take.

        Found by compiling, see `attnjax.bench.cuda_aot`.
        """
        if self.width <= 64:
            return False
        if self.stats or len(self.scores.closed.jaxpr.eqns) > 1 or len(self.masks) > 2:
            return True
        vectors = any(part(o) is not Part.SCALAR for mask in self.masks for o in mask.operands)
        names = {eqn.primitive.name for mask in self.masks for eqn in mask.closed.jaxpr.eqns}
        return (vectors and len(self.masks) > 1) or "rem" in names

    @property
    def blocks(self) -> tuple[int, int]:
        """Queries and keys that all warpgroups visit together."""
        t = self.tile
        if t.rows == "T":
            return t.block_q * self.groups, t.block_k
        return t.block_q, t.block_k * self.groups


class Tables(NamedTuple):
    """What one pass looks up: its schedule, and the operands of its programs, laid out.

    Attributes:
      rows: the schedule.
      scores, masks: arrays in global memory, for each program.
    """

    rows: Rows
    scores: tuple[Array, ...]
    masks: tuple[tuple[Array, ...], ...]


class Inputs(NamedTuple):
    """Queries, keys and values in whole blocks, without NaNs and infinities.

    Attributes:
      q, k, v: finite, padded with zeros.
      bad_rows: NaN where a query is not finite, else 0.
      bad_keys: the same for keys and their values.
    """

    q: Float[Array, "B T N H"]
    k: Float[Array, "B S K H"]
    v: Float[Array, "B S K H"]
    bad_rows: Float[Array, "B N T"]
    bad_keys: Float[Array, "B K S"]


def make_pass(problem: Problem, block_q: int, block_k: int, groups: int, rows: str) -> Pass:
    """Lowers a call's score_mods and mask for one kernel; the arrays stay in the programs.

    Raises:
      NotImplementedError: if a kernel cannot run them.
    """
    size = problem.sizes
    tile = Tile(size["B"], size["N"], size["T"], size["S"], block_q, block_k, rows)
    origin = problem.origin
    scores = lower_scores(problem.score_mods, problem.scale, tile, origin, inside=True)
    masks = tuple(lower_mask(mask, tile, origin, inside=True) for mask in _conjuncts(problem.mask))
    pulled = gpu_parts.with_pull(scores, tile)
    gpu_parts.check(scores, "score_mod")
    gpu_parts.check(pulled, "derivative of the score_mod")
    for mask in masks:
        gpu_parts.check(mask, "mask")
    return Pass(tile, groups, scores, masks, pulled, size["H"], problem.stats)


def _conjuncts(mask: Mask) -> list[Mask]:
    """Splits a mask into parts that must all allow a score.

    One after the other they need fewer registers than all at once.
    """
    match mask:
        case Full():
            return []
        case And():
            return _conjuncts(mask.left) + _conjuncts(mask.right)
        case Lengths(q=q, kv=kv) if q is not None and kv is not None:
            return [Lengths(q, None), Lengths(None, kv)]
        case Window(left=left, right=right) if left is not None and right is not None:
            return [Window(left, None), Window(None, right)]
    return [mask]


def make_rows(
    mask: Mask, view: Pass, heads: int, *, apart: bool, origin: Array | None = None
) -> Rows:
    """Lists the blocks to visit: on the host for static masks, else in the trace.

    Args:
      mask: the mask.
      view: the pass.
      heads: query heads per key head; blocks of keys visit those of all these heads.
      apart: whether FULL blocks have all keys on one side of all queries.
      origin: as in `Problem`.

    Raises:
      NotImplementedError: if there are more blocks than a visit can number.
    """
    t = view.tile
    tiling = Tiling(t.B, t.T, t.S, t.N, t.N, 1, t.N, *view.blocks)
    host = is_concrete(*mask.leaves()) and origin is None
    xp: Any = np if host else jnp
    kinds = xp.asarray(tile_kinds(mask, tiling, host=host, apart=apart, origin=origin))
    if max(kinds.shape[1:]) >> HEAD_BITS:
        raise NotImplementedError(
            f"the GPU kernels number at most {1 << HEAD_BITS} blocks along an axis, got "
            f"{max(kinds.shape[1:])}. Shard the sequence, or use implementation='blockwise'."
        )
    if t.rows == "S":
        kinds = xp.tile(kinds.swapaxes(1, 2), (1, 1, heads))
    order = xp.argsort(-kinds, axis=-1, stable=True).astype(xp.int32)
    if t.rows == "S":
        blocks = order.shape[-1] // heads
        order = (order // blocks << HEAD_BITS) | order % blocks
    counts = [(kinds == FULL).sum(axis=-1), (kinds != EMPTY).sum(axis=-1)]
    rows = Rows(order, xp.stack(counts, axis=-1).astype(xp.int32))
    return Rows(*(jnp.asarray(x) for x in rows))


def bare(view: Pass) -> Pass:
    """Returns a pass without the arrays of its programs."""
    return dataclasses.replace(
        view,
        scores=view.scores.bare(),
        masks=tuple(mask.bare() for mask in view.masks),
        pulled=view.pulled.bare(),
    )


def operands(view: Pass) -> tuple[tuple[Array, ...], ...]:
    """Returns the arrays of a pass's programs: of the scores, then of each mask."""
    return tuple(program.arrays for program in (view.scores, *view.masks))


def tables(view: Pass, rows: Rows, arrays: tuple[tuple[Array, ...], ...]) -> Tables:
    """Lays out what a pass looks up, given its `operands`."""
    scores, *masks = (
        tuple(
            gpu_parts.lay_out(operand, view.tile, view.blocks)
            for operand in program.with_arrays(given).operands
        )
        for program, given in zip((view.scores, *view.masks), arrays, strict=True)
    )
    return Tables(rows, scores, tuple(masks))


def inputs_of(q: Array, k: Array, v: Array, multiples: tuple[int, int]) -> Inputs:
    """Prepares queries, keys and values, as `[B, time, heads, width]`, for the kernels."""
    (q, q_bad), (k, k_bad), (v, v_bad) = (split_nonfinite(x) for x in (q, k, v))
    bad_rows, bad_keys = (poison(x.swapaxes(1, 2), jnp.float32) for x in (q_bad, k_bad | v_bad))
    T, S = multiples
    return Inputs(
        pad(q, 1, T),
        pad(k, 1, S),
        pad(v, 1, S),
        pad(bad_rows, 2, T),
        pad(bad_keys, 2, S),
    )


def spoiled_blocks(bad_keys: Array, block: int) -> Array:
    """Returns NaN for each block of keys that holds a bad one, else 0: `[B, K, blocks]`."""
    blocks = bad_keys.reshape(*bad_keys.shape[:2], -1, block)
    return poison(jnp.any(jnp.isnan(blocks), axis=-1), jnp.float32)


def hide(view: Pass, refs: Any, place: gpu_parts.Place, x: Array, value: float) -> Array:
    """Puts a value where the masks hide a score, and at keys that only fill the last block."""
    t = view.tile
    for mask, arrays in zip(view.masks, refs, strict=True):
        (seen,) = gpu_parts.run(mask, (), arrays, t, place)
        x = jnp.where(seen, x, value)
    if t.S % view.blocks[1]:
        x = jnp.where(gpu_parts.positions("S", t, place) < t.S, x, value)
    return x


def take_turns(order: Any, counts: Any, b: Array, row: Array) -> tuple[Array, Array, Array]:
    """Returns the batch index of a schedule, how many blocks are FULL, and how many are visited."""
    b = b if order.shape[0] > 1 else jnp.int32(0)
    return b, counts[b, row, 0], counts[b, row, 1]
