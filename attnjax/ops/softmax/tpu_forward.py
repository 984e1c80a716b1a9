"""The forward pass on a TPU: one Pallas kernel that walks over the steps of a schedule.

Source: Dao, "FlashAttention-2" (2023). Weights are powers of two, because that is what the hardware
computes: scores, or dot products where they are only scaled, are multiplied by one factor that
takes them to the logarithm's base 2. Sums over keys are kept apart for each lane, and lanes are
added up when a row of blocks ends.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from attnjax.masks import EMPTY, PARTIAL
from attnjax.numerics import LOWEST_EXPONENT, MASKED, finite_max
from attnjax.ops.kernels import steps
from attnjax.ops.kernels.programs import Tile
from attnjax.ops.kernels.tpu_parts import LANES, Place, parts_of, to_column
from attnjax.ops.softmax.tpu_call import (
    LN2,
    LOG2E,
    Arguments,
    Call,
    Inputs,
    across,
    allowed,
    dot,
    drop,
)
from attnjax.typing import Index

# Rows of the numbers per query that the kernel writes.
ROWS = 8


class _Reads(NamedTuple):
    """What the kernel reads; see `Arguments` and `Inputs`.

    `units` are two factors of what the kernel takes for scores: to logarithms of base 2, and to
    scores.
    """

    q: Any
    k: Any
    v: Any
    bad: Any
    units: Any
    sinks: Any
    words: Any
    origin: Any
    scores: Any
    mask: Any


class _State(NamedTuple):
    """The running softmax of a block of rows, `[block_q, LANES]` but for `out`.

    Attributes:
      largest: the largest score so far; lanes are alike.
      out: weighted sum of values, `[block_q, D]`.
      total: sum of weights, by lane.
      surprise: sum of weights times exponents, by lane.
      reach: sum of weights times distances, by lane.
      first: scores of the first keys; lane 0 is key 0.
    """

    largest: Any
    out: Any
    total: Any
    surprise: Any
    reach: Any
    first: Any

    def read(self) -> _State:
        """Returns what its references hold."""
        return _State(*(None if ref is None else ref[...] for ref in self))


def forward(call: Call, arguments: Arguments, inputs: Inputs) -> tuple[Array, Array]:
    """Computes the outputs and the numbers per row.

    Returns:
      The output `[B, N, T', D]` and `[B, N, 8, T']`: logsumexp, and with statistics the largest
      score, entropy, weight of the first key and distance. T' is T in whole blocks.
    """
    run = call.forward
    t, D = run.tile, inputs.v.shape[-1]
    T = inputs.q.shape[2]
    scores = run.scores.with_arrays(arguments.scores)
    mask = run.mask.with_arrays(arguments.mask)
    score_parts, mask_parts = parts_of(run.scores, t), parts_of(run.mask, t)
    q, unit = inputs.q, jnp.float32(1)
    if call.only_scaled:
        scale = arguments.scores[0]
        # The largest dot product must be the largest score; and 0 times minus infinity is NaN.
        q = jnp.where(scale < 0, -q, q)
        unit = jnp.maximum(jnp.abs(scale), 1e-30)
    reads = _Reads(
        q,
        inputs.k,
        inputs.v,
        inputs.bad_keys,
        jnp.stack([unit * LOG2E, unit]),
        None if arguments.sinks is None else arguments.sinks.astype(jnp.float32),
        arguments.dropout,
        arguments.origin,
        score_parts.arrays(scores),
        mask_parts.arrays(mask),
    )

    def locate(b: Array, h: Array, s: Array, words: Any) -> Place:
        step = steps.read(call.forward.steps, words, b, s)
        return Place(b, h, step.row, step.column)

    def at(shape: tuple[int, int], where: Any) -> pl.BlockSpec:
        return pl.BlockSpec((pl.squeezed, pl.squeezed, *shape), lambda *g: where(locate(*g)))

    def key_at(width: int) -> pl.BlockSpec:
        return at((t.block_k, width), lambda p: (p.b, p.h // call.groups, p.j, 0))

    smem = pl.BlockSpec(memory_space=pltpu.SMEM)
    specs = _Reads(
        at((t.block_q, q.shape[-1]), lambda p: (p.b, p.h, p.i, 0)),
        key_at(q.shape[-1]),
        key_at(D),
        at((1, t.block_k), lambda p: (p.b, p.h // call.groups, 0, p.j)),
        smem,
        None if reads.sinks is None else smem,
        None if reads.words is None else smem,
        None if reads.origin is None else smem,
        score_parts.specs(locate),
        mask_parts.specs(locate),
    )
    column = pltpu.VMEM((t.block_q, LANES), jnp.float32)
    wide = [column] * 3 if call.stats else [None] * 3
    scratch = (
        _State(column, pltpu.VMEM((t.block_q, D), jnp.float32), column, *wide),
        score_parts.scratch,
        mask_parts.scratch,
        pltpu.SMEM((1,), jnp.int32) if mask_parts.turned and PARTIAL in run.steps.kinds else None,
    )
    kernel = functools.partial(_kernel, call, score_parts, mask_parts)
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(t.B, t.N, steps.length(run.steps, arguments.by_query)),
            in_specs=[specs],
            out_specs=[
                at((t.block_q, D), lambda p: (p.b, p.h, p.i, 0)),
                at((ROWS, t.block_q), lambda p: (p.b, p.h, 0, p.i)),
            ],
            scratch_shapes=scratch,
        ),
        out_shape=[
            jax.ShapeDtypeStruct((t.B, t.N, T, D), inputs.v.dtype),
            jax.ShapeDtypeStruct((t.B, t.N, ROWS, T), jnp.float32),
        ],
        compiler_params=call.compiler_params("parallel", "parallel", "arbitrary"),
        interpret=call.interpret,
        name="attnjax_forward",
    )(arguments.by_query, reads)


def _kernel(
    call: Call,
    score_parts: Any,
    mask_parts: Any,
    words_ref: Any,
    reads: _Reads,
    out_ref: Any,
    rows_ref: Any,
    state: _State,
    score_columns: Any,
    mask_columns: Any,
    turned: Any,
) -> None:
    b, h, s = (pl.program_id(n) for n in range(3))
    t = call.forward.tile
    shape = call.forward.steps
    step = steps.read(shape, words_ref, b, s)

    @pl.when(step.first == 1)
    def turn() -> None:
        score_parts.turn(reads.scores, score_columns)
        if turned is not None:
            turned[0] = 0

    if turned is not None:
        # Only where it is needed: rows may have no block on which all of the mask is applied.
        @pl.when((step.kind == PARTIAL) & (turned[0] == 0))
        def turn_mask() -> None:
            mask_parts.turn(reads.mask, mask_columns)
            turned[0] = 1

    def visit(before: _State | None, kind: int) -> _State:
        # Here, for what is computed outside of the branches is computed at every step.
        q, k = step.row * t.block_q, step.column * t.block_k
        index = t.index(b, h, q, k).moved(reads.origin)
        parts = score_parts.read(reads.scores, score_columns, b, h)
        read = functools.partial(mask_parts.read, reads.mask, mask_columns, b, h)
        chosen = allowed(call.forward, kind, index, read, reads.origin)
        after = kind == steps.FULL_AFTER
        return _update(call, reads, before, step, index, parts, chosen, after=after)

    def finish(found: _State) -> None:
        sink = None if reads.sinks is None else reads.sinks[h]
        out, rows = _finish(call, found, reads.units[1], sink)
        out_ref[...] = out.astype(out_ref.dtype)
        for n, row in enumerate(rows):
            rows_ref[n : n + 1, :] = row

    def when(condition: Array, run: Callable[[int], None]) -> None:
        """Runs for each kind of block that has something to compute."""
        for kind in shape.kinds:
            pl.when(condition & (step.kind == kind))(functools.partial(run, kind))

    # A row with a single block needs no running state, and is finished in one go.
    alone = (step.first & step.last == 1) & (step.kind != EMPTY)
    if shape.alone:
        when(alone, lambda kind: finish(visit(None, kind)))

    @pl.when((step.first == 1) & ~alone)
    def start() -> None:
        for name, ref in state._asdict().items():
            if ref is not None:
                fill = MASKED if name in ("largest", "first") else 0
                ref[...] = jnp.full(ref.shape, fill, ref.dtype)

    def visit_next(kind: int) -> None:
        found = visit(state.read(), kind)
        for ref, x in zip(state, found, strict=True):
            if ref is not None:
                ref[...] = x

    when(~alone, visit_next)

    @pl.when((step.last == 1) & ~alone)
    def end() -> None:
        finish(state.read())


def _update(
    call: Call,
    reads: _Reads,
    state: _State | None,
    step: steps.Step,
    index: Index,
    parts: list[Array],
    chosen: Array | None,
    *,
    after: bool,
) -> _State:
    """Takes one block of keys into the running softmax of one block of rows, or begins it."""
    t, factor = call.forward.tile, reads.units[0]
    score = dot(call, reads.q[...], reads.k[...], (1, 1))
    if not call.only_scaled:
        score = call.forward.scores(score, index=index, parts=parts)
    if chosen is None:
        # Every row sees every key, so one bad key spoils them all.
        spoil = jnp.sum(reads.bad[...], axis=1, keepdims=True)
        top = jnp.max(score, axis=1, keepdims=True) + spoil
    else:
        score = jnp.where(chosen, score + reads.bad[...], MASKED)
        top = jnp.max(score, axis=1, keepdims=True)
    if state is None:
        largest = jnp.broadcast_to(top, (t.block_q, LANES))
    else:
        largest = jnp.maximum(state.largest, top)
    shift = finite_max(largest)
    exponent = (score - across(shift, t.block_k)) * factor
    weight = jnp.exp2(exponent)
    (kept,) = drop(call, reads.words, index, weight)
    out = dot(call, kept.astype(reads.v.dtype), reads.v[...], (1, 0))
    corner = _corner(t, step, reads.origin)
    total, reach = _reach(call, corner, index, weight, full=chosen is None, after=after)
    surprise = first = None
    if call.stats:
        if chosen is not None or not call.only_scaled:
            # Minus infinity times its weight, 0, is NaN.
            exponent = jnp.maximum(exponent, LOWEST_EXPONENT)
        surprise = lane_sums(weight * exponent)
        width = min(LANES, t.block_k)
        begun = jnp.full_like(largest, MASKED) if state is None else state.first
        # No branch: the compiler would not move anything past it.
        first = jnp.where(corner[1] == 0, score[:, :width], begun[:, :width])
        first = jnp.concatenate([first, begun[:, width:]], axis=1) if width < LANES else first
    if state is None:
        return _State(largest, out, total, surprise, reach, first)
    moved = (state.largest - shift) * factor
    shrink = jnp.exp2(moved)
    out = state.out * across(shrink, out.shape[1]) + out
    if surprise is not None and reach is not None:
        moved = jnp.maximum(moved, LOWEST_EXPONENT)
        surprise = (state.surprise + state.total * moved) * shrink + surprise
        reach = state.reach * shrink + reach
    return _State(largest, out, state.total * shrink + total, surprise, reach, first)


def lane_sums(x: Array) -> Array:
    """Sums `[n, width]` over keys, apart for each of `[n, LANES]` lanes."""
    n, width = x.shape
    if width % LANES:
        lane = jax.lax.broadcasted_iota(jnp.int32, (n, LANES), 1)
        return jnp.where(lane == 0, jnp.sum(x, axis=1, keepdims=True), 0)
    return functools.reduce(jnp.add, (x[:, c : c + LANES] for c in range(0, width, LANES)))


def _corner(tile: Tile, step: steps.Step, origin: Any) -> tuple[Array, Array]:
    """Returns the first query and the first key of a block."""
    q, k = step.row * tile.block_q, step.column * tile.block_k
    return (q, k) if origin is None else (q + origin[2], k + origin[3])


def _reach(
    call: Call,
    corner: tuple[Array, Array],
    index: Index,
    weight: Array,
    *,
    full: bool,
    after: bool,
) -> tuple[Array, Array | None]:
    """Sums weights and, with statistics, weights times distances, by lane.

    Where all keys lie on one side of all queries, the number of whole lanes' widths between a key
    and the block's end that is nearer to the queries is summed by adding partial sums up: one
    addition per weight, and nothing to cancel.
    """
    if not call.stats:
        return lane_sums(weight), None
    tile = call.forward.tile
    if tile.block_k % LANES or not (full or call.one_sided):
        apart = jnp.abs(index.q - index.k).astype(jnp.float32)
        return lane_sums(weight), lane_sums(weight * apart)
    chunks = [weight[:, c : c + LANES] for c in range(0, tile.block_k, LANES)]
    if after:
        chunks.reverse()
    total, far = chunks[0], jnp.zeros_like(chunks[0])
    for chunk in chunks[1:]:
        far = far + total
        total = total + chunk
    row = jax.lax.broadcasted_iota(jnp.int32, total.shape, 0)
    lane = jax.lax.broadcasted_iota(jnp.int32, total.shape, 1)
    q, k = corner[0] + row, corner[1] + lane
    # Of the nearest chunk: the last where keys come before queries, else the first.
    near = k - q if after else q - k - (tile.block_k - LANES)
    return total, far * LANES + total * near.astype(jnp.float32)


def _finish(
    call: Call, state: _State, unit: Array, sink: Array | None
) -> tuple[Array, list[Array]]:
    """Normalises finished rows.

    Returns:
      The output `[block_q, D]`; and the numbers per row, `[1, block_q]`, logsumexp first.
    """
    # Sums over lanes cost more than turning rows into columns and back.
    ends = state.largest
    if state.first is not None:
        lane = jax.lax.broadcasted_iota(jnp.int32, ends.shape, 1)
        ends = jnp.where(lane == 0, state.first, ends)
    ends = ends.T
    first, largest = ends[:1], ends[1:2]
    sums = [
        jnp.sum(x.T, axis=0, keepdims=True)
        for x in (state.total, state.surprise, state.reach)
        if x is not None
    ]
    scale, shift, total, weight = _normaliser(largest, sums[0], unit, sink)
    out = state.out * across(to_column(scale), state.out.shape[1])
    empty = largest == MASKED
    logsumexp = jnp.where(empty, MASKED, jnp.log(total) + shift)
    if not call.stats:
        return out, [logsumexp]
    finite = finite_max(largest)
    moved = jnp.maximum(finite * unit - shift, LOWEST_EXPONENT)
    surprise = jnp.exp(moved) * (sums[1] * LN2 + sums[0] * moved)
    if sink is not None:
        surprise += weight * jnp.maximum(sink - shift, LOWEST_EXPONENT)
    return out, [
        logsumexp,
        jnp.where(empty, MASKED, finite * unit),
        jnp.where(empty, 0, jnp.log(total) - surprise / total),
        jnp.exp((first - finite) * unit) * scale,
        sums[2] * scale,
    ]


def _normaliser(
    largest: Array, total: Array, unit: Array, sink: Array | None
) -> tuple[Array, Array, Array, Array | float]:
    """Takes a sink into the sums of rows.

    Returns:
      The factor that turns sums of weights into shares, 0 for a row with nothing to see; what
      scores are relative to; the sum of weights, 1 for such a row; the weight of the sink.
    """
    empty = largest == MASKED
    shift = finite_max(largest) * unit
    shrink: Array | float = 1.0
    weight: Array | float = 0.0
    if sink is not None:
        known, shift = shift, jnp.maximum(shift, sink)
        shrink, weight = jnp.exp(known - shift), jnp.exp(sink - shift)
        total = total * shrink + weight
    total = jnp.where(empty, 1, total)
    return jnp.where(empty, 0, shrink / total), shift, total, weight
