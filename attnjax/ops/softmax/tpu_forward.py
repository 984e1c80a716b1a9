"""The forward pass on a TPU: one Pallas kernel that walks over the steps of a schedule.

Source: Dao, "FlashAttention-2" (2023). Weights are powers of two, because that is what the hardware
computes: scores, or dot products where they are only scaled, are multiplied by one factor that
takes them to the logarithm's base 2. Sums over keys are kept apart for each lane, and lanes are
added up when a row of blocks ends.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from attnjax.masks import FULL, PARTIAL
from attnjax.numerics import LOWEST_EXPONENT, MASKED, finite_max
from attnjax.ops.kernels import steps
from attnjax.ops.kernels.tpu_parts import LANES, Place, parts_of
from attnjax.ops.softmax.tpu_call import (
    Arguments,
    Call,
    Inputs,
    across,
    allowed,
    dot,
    drop,
    padded,
)
from attnjax.typing import Index

_LOG2E = math.log2(math.e)
_LN2 = math.log(2)
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


def forward(call: Call, arguments: Arguments, inputs: Inputs) -> tuple[Array, Array]:
    """Computes the outputs and the numbers per row.

    Returns:
      The output `[B, N, T', D]` and `[B, N, 8, T']`: logsumexp, and with statistics the largest
      score, entropy, weight of the first key and distance. T' is T in whole blocks.
    """
    run = call.forward
    t, D = run.tile, inputs.v.shape[-1]
    T, _ = padded(t)
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
        jnp.stack([unit * _LOG2E, unit]),
        None if arguments.sinks is None else arguments.sinks.astype(jnp.float32),
        arguments.dropout,
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
        score_parts.specs(locate),
        mask_parts.specs(locate),
    )
    column = pltpu.VMEM((t.block_q, LANES), jnp.float32)
    wide = [column] * 3 if call.stats else [None] * 3
    scratch = (
        _State(column, pltpu.VMEM((t.block_q, D), jnp.float32), column, *wide),
        score_parts.scratch,
        mask_parts.scratch,
    )
    kernel = functools.partial(_kernel, call, score_parts, mask_parts)
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(t.B, t.N, run.steps.count),
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
) -> None:
    b, h, s = (pl.program_id(n) for n in range(3))
    t = call.forward.tile
    step = steps.read(call.forward.steps, words_ref, b, s)
    index = t.index(b, h, step.row * t.block_q, step.column * t.block_k)

    @pl.when(step.first == 1)
    def start() -> None:
        for ref in (state.largest, state.first):
            if ref is not None:
                ref[...] = jnp.full_like(ref, MASKED)
        for ref in (state.out, state.total, state.surprise, state.reach):
            if ref is not None:
                ref[...] = jnp.zeros_like(ref)
        score_parts.turn(reads.scores, score_columns)
        mask_parts.turn(reads.mask, mask_columns)

    def visit(*, partial: bool, after: bool = False) -> None:
        parts = score_parts.read(reads.scores, score_columns, b, h)
        chosen = None
        if partial:
            seen = mask_parts.read(reads.mask, mask_columns, b, h)
            chosen = allowed(call.forward, index, seen)
        _update(call, reads, state, step, index, parts, chosen, after=after)

    pl.when(step.kind == PARTIAL)(functools.partial(visit, partial=True))
    if call.stats:
        pl.when(step.kind == FULL)(functools.partial(visit, partial=False))
        pl.when(step.kind == steps.FULL_AFTER)(functools.partial(visit, partial=False, after=True))
    else:
        pl.when(step.kind >= FULL)(functools.partial(visit, partial=False))

    @pl.when(step.last == 1)
    def finish() -> None:
        sink = None if reads.sinks is None else reads.sinks[h]
        out, rows = _finish(call, state, reads.units[1], sink)
        out_ref[...] = out.astype(out_ref.dtype)
        rows_ref[...] = rows


def _update(
    call: Call,
    reads: _Reads,
    state: _State,
    step: steps.Step,
    index: Index,
    parts: list[Array],
    chosen: Array | None,
    *,
    after: bool,
) -> None:
    """Takes one block of keys into the running softmax of one block of rows."""
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
    before = state.largest[...]
    largest = jnp.maximum(before, top)
    shift = finite_max(largest)
    moved = (before - shift) * factor
    shrink = jnp.exp2(moved)
    exponent = (score - across(shift, t.block_k)) * factor
    weight = jnp.exp2(exponent)
    if call.stats:
        found = _Found(score, weight, exponent, shrink, moved, chosen is None, after)
        _update_stats(call, state, step, index, found)
    state.total[...] = state.total[...] * shrink + lane_sums(weight)
    (kept,) = drop(call, reads.words, index, weight)
    product = dot(call, kept.astype(reads.v.dtype), reads.v[...], (1, 0))
    state.out[...] = state.out[...] * across(shrink, product.shape[1]) + product
    state.largest[...] = largest


class _Found(NamedTuple):
    """What `_update` knows of a block: see there.

    Attributes:
      score, weight, exponent, shrink: as there.
      moved: the exponent of `shrink`.
      full: whether every row sees every key, and all keys are on one side of all rows.
      after: whether they are after them, if so.
    """

    score: Array
    weight: Array
    exponent: Array
    shrink: Array
    moved: Array
    full: bool
    after: bool


def _update_stats(call: Call, state: _State, step: steps.Step, index: Index, found: _Found) -> None:
    """Takes one block of keys into the sums of which the statistics are made."""
    t, weight, shrink = call.forward.tile, found.weight, found.shrink
    exponent = found.exponent
    if not (found.full and call.only_scaled):
        # Minus infinity times its weight, 0, is NaN.
        exponent = jnp.maximum(exponent, LOWEST_EXPONENT)
    moved = jnp.maximum(found.moved, LOWEST_EXPONENT)
    old = state.surprise[...] + state.total[...] * moved
    state.surprise[...] = old * shrink + lane_sums(weight * exponent)
    if found.full and t.block_k % LANES == 0:
        reach = _reach(weight, step, t, after=found.after)
    else:
        apart = jnp.abs(index.q - index.k).astype(jnp.float32)
        reach = lane_sums(weight * apart)
    state.reach[...] = state.reach[...] * shrink + reach

    @pl.when(step.column == 0)
    def keep_first() -> None:
        width = min(LANES, t.block_k)
        state.first[:, :width] = found.score[:, :width]


def lane_sums(x: Array) -> Array:
    """Sums `[n, width]` over keys, apart for each of `[n, LANES]` lanes."""
    n, width = x.shape
    if width % LANES:
        lane = jax.lax.broadcasted_iota(jnp.int32, (n, LANES), 1)
        return jnp.where(lane == 0, jnp.sum(x, axis=1, keepdims=True), 0)
    return functools.reduce(jnp.add, (x[:, c : c + LANES] for c in range(0, width, LANES)))


def _reach(weight: Array, step: steps.Step, tile: Any, *, after: bool) -> Array:
    """Sums weights times distances by lane, where all keys lie on one side of all queries.

    The number of whole lanes' widths between a key and the block's end that is nearer to the
    queries is summed by adding partial sums up: one addition per weight, and nothing to cancel.
    """
    chunks = [weight[:, c : c + LANES] for c in range(0, tile.block_k, LANES)]
    if after:
        chunks.reverse()
    total, far = chunks[0], jnp.zeros_like(chunks[0])
    for chunk in chunks[1:]:
        far = far + total
        total = total + chunk
    shape = (tile.block_q, LANES)
    row = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    q, k = step.row * tile.block_q + row, step.column * tile.block_k + lane
    # Of the nearest chunk: the last where keys come before queries, else the first.
    near = k - q if after else q - k - (tile.block_k - LANES)
    return far * LANES + total * near.astype(jnp.float32)


def _finish(call: Call, state: _State, unit: Array, sink: Array | None) -> tuple[Array, Array]:
    """Normalises finished rows: output, and the numbers per row, of which the first is logsumexp.

    All but the output are `[block_q, LANES]` with lanes alike.
    """

    def whole(x: Array) -> Array:
        return jnp.broadcast_to(jnp.sum(x, axis=1, keepdims=True), x.shape)

    largest = state.largest[...]
    empty = largest == MASKED
    first = (state.first[:, :1] - finite_max(largest)) * unit if call.stats else None
    largest = finite_max(largest) * unit
    total = whole(state.total[...])
    shift, shrink = largest, jnp.ones_like(largest)
    surprise = whole(state.surprise[...]) * _LN2 if call.stats else None
    if sink is not None:
        shift = jnp.maximum(largest, sink)
        shrink = jnp.exp(largest - shift)
        weight = jnp.exp(sink - shift)
        if surprise is not None:
            moved = jnp.maximum(largest - shift, LOWEST_EXPONENT)
            surprise = shrink * (surprise + total * moved)
            surprise += weight * jnp.maximum(sink - shift, LOWEST_EXPONENT)
        total = total * shrink + weight
    total = jnp.where(empty, 1, total)
    scale = jnp.where(empty, 0, shrink / total)
    out = state.out[...] * across(scale, state.out.shape[1])
    log_total = jnp.log(total)
    logsumexp = jnp.where(empty, MASKED, log_total + shift)
    rows = [logsumexp]
    if surprise is not None and first is not None:
        rows += [
            jnp.where(empty, MASKED, largest),
            jnp.where(empty, 0, log_total - surprise / total),
            jnp.exp(first) * scale,
            jnp.where(empty, 0, whole(state.reach[...]) * scale),
        ]
    lane = jax.lax.broadcasted_iota(jnp.int32, rows[0].shape, 1)
    packed = rows[0]
    for n, row in enumerate(rows[1:], 1):
        packed = jnp.where(lane == n, row, packed)
    return out, packed.T[:ROWS]
