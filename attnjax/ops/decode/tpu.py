"""Decoding on a TPU: one Pallas kernel that reads each visited block of the cache once.

Blocks beyond an example's length, and those that its mask excludes, are not read. The visited ones
are shared out between splits, whose sums are merged after the kernel.
Source: Dao et al., "Flash-Decoding for long-context inference" (2023).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from attnjax.numerics import LOWEST_EXPONENT, MASKED, default_precision, finite_max
from attnjax.ops.decode import xla
from attnjax.ops.decode.blocks import Blocks, Visits, blocks_of, visits_of
from attnjax.ops.decode.flat import Flat, column_factors, divide, flat_mask, flat_of, flat_scores
from attnjax.ops.decode.plain import Plain, derived, prepare
from attnjax.ops.decode.problem import DecodeProblem
from attnjax.ops.decode.sums import Sums, finish, merge
from attnjax.ops.kernels.programs import Tile, TileProgram, lower_mask, lower_scores
from attnjax.ops.kernels.refusals import need_precision
from attnjax.ops.kernels.tpu_parts import LANES, Place, parts_of
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.platform import platform

# Rows are filled up to a whole number of these: what a register of 16-bit numbers holds.
_ROWS = 16


@dataclasses.dataclass(frozen=True)
class _Call:
    """What is static in a call.

    Attributes:
      flat: how rows and columns are numbered.
      blocks: how the cache is cut.
      tile: a tile of the matrix of all scores.
      scores, mask: its programs, without arrays.
      splits: how many share the visited blocks of an example.
      precision: of matrix products.
      stats: whether statistics are wanted.
      interpret: whether the kernel runs in the interpreter.
    """

    flat: Flat
    blocks: Blocks
    tile: Tile
    scores: TileProgram
    mask: TileProgram
    splits: int
    precision: Any
    stats: bool
    interpret: bool


class _Arrays(NamedTuple):
    """What the kernel computes with beside the arrays of the call itself."""

    visits: Visits
    v_scale: Array | None
    scores: tuple[Array, ...]
    mask: tuple[Array, ...]


class _Reads(NamedTuple):
    """What the kernel reads: queries, the pieces of a block of keys and values, and the rest."""

    q: Any
    k: Any
    v: Any
    v_scale: Any
    scores: Any
    mask: Any


class _State(NamedTuple):
    """`Sums` over the blocks so far: `[rows, LANES]` with lanes alike, but for `out`."""

    largest: Any
    out: Any
    total: Any
    surprise: Any
    first: Any
    distance: Any


def attend(
    problem: DecodeProblem,
    *,
    block_k: int | None = None,
    splits: int | None = None,
    turned: bool | None = None,
) -> tuple[Array, AttentionStats | None]:
    """Computes attention of the last queries to the cache.

    Args:
      problem: the call.
      block_k: most slots of the cache in a block, or None; a paged cache is read by whole pages.
      splits: how many share the visited blocks of an example; None is 2 for a single example, for
        chips with two cores, and 1 for more.
      turned: the form in which the cache is read, see `Flat`; None is as it lies in memory.

    Returns:
      The output `[B, T, N, D]` in the dtype of `q`, and the statistics if they are wanted.

    Raises:
      NotImplementedError: with the reason, if the kernel can't.
    """
    plain, flat = prepare(problem)
    call, arrays = _lower(problem, block_k, splits, turned)
    more, structure = jax.tree.flatten(arrays)
    count = len(flat)

    def fast(*every: Array) -> tuple[Array, ...]:
        own: _Arrays = jax.tree.unflatten(structure, every[count:])
        return _fast(call, plain, own, every[:count])

    def smooth(*every: Array) -> tuple[Array, ...]:
        return xla.smooth(plain, *every[:count])

    out, *stats = derived(fast, smooth)(*flat, *more)
    return out, AttentionStats(*stats) if stats else None


def _lower(
    problem: DecodeProblem,
    block_k: int | None = None,
    splits: int | None = None,
    turned: bool | None = None,
) -> tuple[_Call, _Arrays]:
    """Takes a call apart for the kernel; raises NotImplementedError where it can't."""
    B, T, N, _ = problem.q.shape
    flat = flat_of(problem, turned)
    blocks = blocks_of(problem, flat, block_k)
    rows = -(-N * T // _ROWS) * _ROWS
    tile = Tile(B, 1, N * T, flat.capacity * flat.columns, rows, blocks.slots * flat.columns)
    try:
        scores = lower_scores((flat_scores(problem, flat),), problem.scale, tile)
        mask = lower_mask(flat_mask(problem, flat), tile)
    except NotImplementedError as error:
        reason = str(error).replace("implementation='blockwise'", "implementation='xla'")
        raise NotImplementedError(reason) from error
    call = _Call(
        flat,
        blocks,
        tile,
        scores.bare(),
        mask.bare(),
        splits or (2 if B == 1 and blocks.count > 1 else 1),
        default_precision(problem.q.dtype, problem.precision),
        problem.stats,
        platform().interpret,
    )
    v_scale = None
    if problem.v_scale is not None:
        v_scale = column_factors(problem, flat, problem.v_scale)
        if flat.turned:
            v_scale = jnp.pad(v_scale, ((0, 0), (0, rows - N * T), (0, 0)))
    return call, _Arrays(visits_of(problem, blocks), v_scale, scores.arrays, mask.arrays)


def _fast(call: _Call, plain: Plain, arrays: _Arrays, flat: tuple[Array, ...]) -> tuple[Array, ...]:
    """Returns the output and the statistics, looking for NaNs only where there are some."""
    bound = plain.bind(flat)
    given = bound.arguments
    B, T, N, _ = given.q.shape
    sinks = None if given.sinks is None else given.sinks.astype(jnp.float32)[:, None]

    def compute(careful: bool) -> tuple[Array, ...]:
        sums = merge(_sums(call, arrays, given.q, given.k, given.v, careful=careful), axis=1)
        rows = jax.tree.map(lambda x: x[:, : N * T].reshape(B, N, T, *x.shape[2:]), sums)
        return finish(rows, sinks)

    outputs = compute(careful=False)
    # A NaN or an infinity among the values is rare, and to look for it would take time. One that no
    # row may see spoils others here too, for 0 times NaN is NaN.
    finite = jnp.all(jnp.isfinite(outputs[0]))
    outputs = jax.lax.cond(finite, lambda: outputs, lambda: compute(careful=True))
    out, *stats = xla.spoil(bound, outputs)
    return jnp.moveaxis(out, 1, 2).astype(given.q.dtype), *stats


def _sums(call: _Call, arrays: _Arrays, q: Array, k: Array, v: Array, *, careful: bool) -> Sums:
    """Runs the kernel; the sums are `[B, splits, rows, ...]`."""
    t, blocks = call.tile, call.blocks
    B, H, D = q.shape[0], q.shape[-1], v.shape[-1]
    rows, columns = t.shape
    heads = call.flat.K if call.flat.turned else 1
    q, k, v = _lay_out(call, q, k, v)
    scores = call.scores.with_arrays(arrays.scores)
    mask = call.mask.with_arrays(arrays.mask)
    score_parts, mask_parts = parts_of(call.scores, t), parts_of(call.mask, t)
    reads = _Reads(
        q,
        [k] * blocks.pieces,
        [v] * blocks.pieces,
        arrays.v_scale,
        score_parts.arrays(scores),
        mask_parts.arrays(mask),
    )

    def locate(b: Array, p: Array, s: Array, visits: Visits) -> Place:
        return Place(b, jnp.int32(0), jnp.int32(0), blocks.visited(visits, call.splits, b, p, s)[0])

    def piece(width: int, n: int) -> pl.BlockSpec:
        def at(b: Array, p: Array, s: Array, *refs: Any) -> tuple[Any, ...]:
            visits = Visits(*refs)
            j = locate(b, p, s, visits).j
            if call.flat.turned:
                return b, 0, j
            return *blocks.piece(visits, b, j, n), 0

        if call.flat.turned:
            return pl.BlockSpec((pl.squeezed, heads * width, columns), at)
        return pl.BlockSpec((pl.squeezed, columns // blocks.pieces, width), at)

    def place(b: Array, p: Array, s: Array, *refs: Any) -> Place:
        return locate(b, p, s, Visits(*refs))

    factor_rows = 1 if arrays.v_scale is None else arrays.v_scale.shape[1]
    factors = pl.BlockSpec(
        (pl.squeezed, factor_rows, columns), lambda *g: ((at := place(*g)).b, 0, at.j)
    )
    specs = _Reads(
        pl.BlockSpec((pl.squeezed, rows, heads * H), lambda b, *g: (b, 0, 0)),
        [piece(H, n) for n in range(blocks.pieces)],
        [piece(D, n) for n in range(blocks.pieces)],
        None if reads.v_scale is None else factors,
        score_parts.specs(place),
        mask_parts.specs(place),
    )
    column = pltpu.VMEM((rows, LANES), jnp.float32)
    wide = [column if call.stats else None] * 3
    scratch = (
        _State(column, pltpu.VMEM((rows, heads * D), jnp.float32), column, *wide),
        score_parts.scratch,
        mask_parts.scratch,
    )

    def written(width: int) -> pl.BlockSpec:
        shape = (pl.squeezed, pl.squeezed, rows, width)
        return pl.BlockSpec(shape, lambda b, p, *g: (b, p, 0, 0))

    out, numbers = pl.pallas_call(
        functools.partial(_kernel, call, score_parts, mask_parts, careful),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(jax.tree.leaves(arrays.visits)),
            grid=(B, call.splits, -(-blocks.count // call.splits)),
            in_specs=[specs],
            out_specs=[written(heads * D), written(LANES)],
            scratch_shapes=scratch,
        ),
        out_shape=[
            jax.ShapeDtypeStruct((B, call.splits, rows, width), jnp.float32)
            for width in (heads * D, LANES)
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=call.interpret,
        name="attnjax_decode",
    )(*arrays.visits, reads)
    if call.flat.turned:
        out = out.reshape(*out.shape[:3], heads, D)
        out = jnp.sum(jnp.where(_own_heads(call)[..., None], out, 0), axis=-2)
    largest, total, *rest = (numbers[..., n] for n in range(5 if call.stats else 2))
    return Sums(largest, out, total, *rest)


def _lay_out(call: _Call, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """Returns the queries as rows, and the cache as it lies in memory: see `Flat`."""
    rows = call.tile.shape[0]
    (B, T, N, H), K = q.shape, call.flat.K
    q = jnp.moveaxis(q, 1, 2).reshape(B, N * T, H)
    q = jnp.pad(q, ((0, 0), (0, rows - N * T), (0, 0)))
    if not call.flat.turned:
        k, v = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in (k, v))
        return q, k, v
    q = jnp.where(_own_heads(call)[..., None], q[:, :, None], 0).reshape(B, rows, K * H)
    k, v = (jnp.moveaxis(x, 1, 3).reshape(B, -1, x.shape[1]) for x in (k, v))
    return q, k, v


def _own_heads(call: _Call) -> Array:
    """Returns which key head a row reads, bool `[rows, K]`."""
    row = jnp.arange(call.tile.shape[0])[:, None]
    return row // call.flat.rows == jnp.arange(call.flat.K)


def _kernel(call: _Call, score_parts: Any, mask_parts: Any, careful: bool, *refs: Any) -> None:
    *visits, reads, out_ref, numbers_ref, state, score_columns, mask_columns = refs
    b, p, s = (pl.program_id(n) for n in range(3))
    t = call.tile
    j, active = call.blocks.visited(Visits(*visits), call.splits, b, p, s)
    h = jnp.int32(0)
    by_width = 0 if call.flat.turned else 1

    @pl.when(s == 0)
    def start() -> None:
        state.largest[...] = jnp.full_like(state.largest, MASKED)
        for ref in state[1:]:
            if ref is not None:
                ref[...] = jnp.zeros_like(ref)
        score_parts.turn(reads.scores, score_columns)
        mask_parts.turn(reads.mask, mask_columns)

    @pl.when(active)
    def visit() -> None:
        index = t.index(b, h, jnp.int32(0), j * t.block_k)
        k, v = (_block(call, x, reads.q.dtype, j) for x in (reads.k, reads.v))
        bad = None
        if careful and call.flat.turned:
            k, bad = _clean(call, k, t.shape[0])
        dots = _dot(call, reads.q[...], k, by_width)
        parts = score_parts.read(reads.scores, score_columns, b, h)
        # A score_mod may make a number of an infinity; 0 times it is NaN.
        score = call.scores(dots, index=index, parts=parts) + dots * 0
        factors = None if reads.v_scale is None else reads.v_scale[...]
        if bad is not None:
            score += bad
        if careful:
            v, bad = _clean(call, v, t.shape[0])
            score += bad
            if factors is not None:
                score += factors * 0
                factors = jnp.where(jnp.abs(factors) < jnp.inf, factors, 0)
        seen = call.mask(index=index, parts=mask_parts.read(reads.mask, mask_columns, b, h))
        score = jnp.where(seen, score, MASKED)
        before = state.largest[:, :1]
        largest = jnp.maximum(before, jnp.max(score, axis=1, keepdims=True))
        shift = finite_max(largest)
        exponent = score - shift
        weight = jnp.exp(exponent)
        moved = before - shift
        shrink = jnp.exp(moved)

        def add(ref: Any, old: Array, new: Array) -> None:
            ref[...] = jnp.broadcast_to(
                old * shrink + jnp.sum(new, axis=1, keepdims=True), ref.shape
            )

        total = state.total[:, :1]
        if call.stats:
            # Minus infinity times its weight, 0, is NaN.
            surprise = state.surprise[:, :1] + total * jnp.maximum(moved, LOWEST_EXPONENT)
            add(state.surprise, surprise, weight * jnp.maximum(exponent, LOWEST_EXPONENT))
            length = Visits(*visits).length[b]
            own = call.flat.index(b, index.q, index.k, length)
            add(state.first, state.first[:, :1], jnp.where(own.k == 0, weight, 0))
            apart = jnp.abs(own.q - own.k).astype(jnp.float32)
            add(state.distance, state.distance[:, :1], weight * apart)
        add(state.total, total, weight)
        if factors is not None:
            weight = weight * factors
        state.out[...] = state.out[...] * shrink + _dot(
            call, weight.astype(v.dtype), v, 1 - by_width
        )
        state.largest[...] = jnp.broadcast_to(largest, state.largest.shape)

    @pl.when(s == pl.num_programs(2) - 1)
    def write() -> None:
        out_ref[...] = state.out[...]
        numbers = [x[...] for x in (state.largest, *state[2:]) if x is not None]
        lane = jax.lax.broadcasted_iota(jnp.int32, numbers[0].shape, 1)
        packed = numbers[0]
        for n, x in enumerate(numbers[1:], 1):
            packed = jnp.where(lane == n, x, packed)
        numbers_ref[...] = packed


def _block(call: _Call, refs: Any, dtype: jnp.dtype, j: Array) -> Array:
    """Reads a block of keys or values, in the dtype of the queries."""
    pieces = [ref[...].astype(dtype) for ref in refs]
    x = pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis=0)
    if call.tile.S % call.tile.block_k:
        # What lies beyond the cache may be anything, and 0 times NaN is NaN.
        axis, shape = (1, (1, x.shape[1])) if call.flat.turned else (0, (x.shape[0], 1))
        at = j * call.tile.block_k + jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        x = jnp.where(at < call.tile.S, x, jnp.zeros_like(x))
    return x


def _clean(call: _Call, x: Array, rows: int) -> tuple[Array, Array]:
    """Returns a block without NaNs and infinities, and NaN for rows and columns that had some."""
    finite = jnp.abs(x.astype(jnp.float32)) < jnp.inf
    # A sum over the width of a head, whose result lies along the columns as the scores do.
    if call.flat.turned:
        shape = (rows, x.shape[0])
        row, at = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
        own = divide(row, call.flat.rows)[0] == divide(at, x.shape[0] // call.flat.K)[0]
        ones, by_width = jnp.where(own, 1.0, 0.0).astype(x.dtype), 0
    else:
        ones, by_width = jnp.ones((rows, x.shape[1]), x.dtype), 1
    number = _dot(call, ones, jnp.where(finite, 0.0, 1.0).astype(x.dtype), by_width)
    clean = jnp.where(finite, x.astype(jnp.float32), 0).astype(x.dtype)
    return clean, jnp.where(number > 0, jnp.nan, 0.0)


def _dot(call: _Call, left: Array, right: Array, axis: int) -> Array:
    return jax.lax.dot_general(
        left,
        right,
        (((1,), (axis,)), ((), ())),
        precision=call.precision,
        preferred_element_type=jnp.float32,
    )


def check(problem: DecodeProblem) -> None:
    """Refuses what the kernel can't compute.

    Raises:
      NotImplementedError: with the reason and the remedy.
    """
    need_precision(problem.precision, "xla")
    jax.eval_shape(lambda: _lower(problem)[1])  # traced only, so that nothing is computed twice
