"""The backward pass on a TPU: a kernel for keys and values, and one for queries.

Both compute the weights anew from the logsumexp. Where the cotangents of all queries of a head fit
into vector memory, the first sums them too, and there is no second. The first has keys as rows of
its tiles, so that what varies with the query lies along lanes, and visits the query heads of a key
head in turn, so that keys and values are read, and their cotangents written, once.
Source: Dao, "FlashAttention-2" (2023).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from attnjax.numerics import LOWEST_EXPONENT, MASKED
from attnjax.ops.kernels import steps
from attnjax.ops.kernels.padding import pad
from attnjax.ops.kernels.programs import Part, Tile
from attnjax.ops.kernels.tpu_grads import Gradient
from attnjax.ops.kernels.tpu_parts import LANES, Parts, Place, parts_of, to_column
from attnjax.ops.softmax.tpu_call import (
    LN2,
    LOG2E,
    Arguments,
    Call,
    Inputs,
    Pass,
    allowed,
    dot,
    drop,
)
from attnjax.typing import Index

# Of the vector memory, which no TPU has less than 64 MiB of.
_SUMS_BUDGET = 24 * 2**20
_VMEM_LIMIT = 56 * 2**20
# Rows of what the kernels read for each query.
_LOGSUMEXP, _DELTA, _ENTROPY, _ENTROPY_COTANGENT, _ROWS = 0, 1, 2, 3, 8


class _Reads(NamedTuple):
    """What a kernel reads: see `Arguments`; `rows` are those of `_row_terms`."""

    q: Any
    k: Any
    v: Any
    out: Any
    rows: Any
    scale: Any
    words: Any
    origin: Any
    scores: Any
    mask: Any


@dataclasses.dataclass(frozen=True)
class _Run:
    """What is static in one of the two kernels.

    Attributes:
      call: the call.
      own: what the call says of this kernel.
      score_parts, mask_parts: how their operands get into it.
      moved: for each operand of `scores` whose cotangent this kernel makes, its number and how.
      entropy: whether the entropy has a cotangent.
      only_scaled: whether scores are scaled dot products whose scale needs no cotangent.
      groups: query heads that it visits in turn at each step.
      queries: whether the kernel for keys makes the cotangent of queries too.
    """

    call: Call
    own: Pass
    score_parts: Parts
    mask_parts: Parts
    moved: tuple[tuple[int, Gradient], ...]
    entropy: bool
    only_scaled: bool
    groups: int
    queries: bool = False

    @property
    def tile(self) -> Tile:
        """Its tiles."""
        return self.own.tile


def backward(
    call: Call,
    arguments: Arguments,
    inputs: Inputs,
    residuals: tuple[Array, ...],
    cotangents: tuple[Array | None, ...],
    want: Arguments,
) -> Arguments:
    """Computes the cotangents of everything that is wanted.

    Args:
      call: the call.
      arguments: its arguments.
      inputs: what the kernels read of them.
      residuals: output `[B, N, T, D]`, logsumexp and, with statistics, entropy `[B, N, T]`.
      cotangents: of the same; None where there is none.
      want: which cotangents are wanted.

    Returns:
      The cotangents in the shape of the arguments; None where there is none.
    """
    d_out, rows = _row_terms(residuals, cotangents)
    by_query, by_key = _runs(call, want, entropy=bool(rows.entropy))
    tile = call.by_query.tile
    T = inputs.q.shape[2]
    base = LOG2E if by_key.only_scaled else 1
    rows_in = jnp.stack([rows.logsumexp * base, rows.delta, *rows.entropy], axis=2)
    # Rows that only fill the last block have no weights.
    fill = jnp.full((*rows_in.shape[:3], T - tile.T), jnp.inf).at[:, :, 1:].set(0)
    rows_in = pad(jnp.concatenate([rows_in, fill], axis=3), 2, _ROWS)
    d_out = pad(d_out, 2, tile.block_q)
    reads = _Reads(
        inputs.q,
        inputs.k,
        inputs.v,
        d_out,
        rows_in,
        arguments.scores[0].reshape(1),
        arguments.dropout,
        arguments.origin,
        None,
        None,
    )
    d_scores: list[Array | None] = [None] * len(arguments.scores)
    dq = dk = dv = None
    if want.q and (want.k or want.v) and not by_query.moved and _fits(inputs.q, call):
        by_key = dataclasses.replace(by_key, queries=True)
    if by_query.moved or (want.q and not by_key.queries):
        dq, *grads = _run(by_query, arguments, reads, (inputs.q,))
        _collect(by_query, grads, d_scores)
    if want.k or want.v or by_key.moved:
        dk, dv, *grads = _run(by_key, arguments, reads, (inputs.k, inputs.v))
        if by_key.queries:
            dq, *grads = grads
            dq = dq * arguments.scores[0] if by_key.only_scaled else dq
        _collect(by_key, grads, d_scores)
        dk, dv = dk[:, :, : tile.S], dv[:, :, : tile.S]
    dq = None if dq is None else dq[:, :, : tile.T]
    sinks = None if arguments.sinks is None else _sinks_gradient(arguments.sinks, rows)
    return Arguments(dq, dk, dv, sinks, tuple(d_scores), *[None] * 5)  # type: ignore[arg-type]


def _runs(call: Call, want: Arguments, *, entropy: bool) -> tuple[_Run, _Run]:
    only_scaled = call.only_scaled and not want.scores[0]
    result = []
    for own, groups in ((call.by_query, 1), (call.by_key, call.groups)):
        tile = own.tile
        score_parts, mask_parts = parts_of(own.scores, tile), parts_of(own.mask, tile)
        moved = tuple(
            (n, Gradient(t, groups))
            for n, (t, wanted) in enumerate(zip(score_parts.transports, want.scores, strict=True))
            if wanted and (t.part is Part.ALONG_S) == (tile.rows == "S")
        )
        result.append(_Run(call, own, score_parts, mask_parts, moved, entropy, only_scaled, groups))
    return result[0], result[1]


def _fits(q: Array, call: Call) -> bool:
    """Returns whether the sums for all queries of a key head fit into vector memory, twice."""
    width = -(-q.shape[-1] // LANES) * LANES
    return 2 * 4 * call.groups * q.shape[2] * width <= _SUMS_BUDGET


def _collect(run: _Run, grads: Sequence[Array], d_scores: list[Array | None]) -> None:
    for (n, gradient), result in zip(run.moved, grads, strict=True):
        d_scores[n] = gradient.total(result)


class _Rows(NamedTuple):
    """What the backward pass needs of each row, `[B, N, T]`.

    Attributes:
      logsumexp: plus infinity for empty rows, so that their weights vanish.
      delta: what all scores of a row have in common.
      entropy: entropy and its cotangent, if it has one.
    """

    logsumexp: Array
    delta: Array
    entropy: tuple[Array, ...]


def _row_terms(
    residuals: tuple[Array, ...], cotangents: tuple[Array | None, ...]
) -> tuple[Array, _Rows]:
    """Reduces the cotangents of a row to what its scores need.

    With weights p, scores s and the cotangents do, dl of logsumexp and de of entropy:
    `ds = p * (do.v - (do.out - dl) - de * (log(p) + entropy))`.
    """
    out, logsumexp, *rest = residuals
    empty = logsumexp == MASKED
    d_out, d_logsumexp, d_entropy = (*cotangents, None, None)[:3]
    d_out = jnp.zeros_like(out) if d_out is None else d_out
    d_out = jnp.where(empty[..., None], 0, d_out).astype(out.dtype)
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    if d_logsumexp is not None:
        delta = delta - jnp.where(empty, 0, d_logsumexp)
    entropy = () if d_entropy is None else (rest[0], jnp.where(empty, 0, d_entropy))
    return d_out, _Rows(jnp.where(empty, jnp.inf, logsumexp), delta, entropy)


def _sinks_gradient(sinks: Array, rows: _Rows) -> Array:
    """Returns the cotangent `[N]` of the sinks: a key with weight, but with no value."""
    log_weight = sinks.astype(jnp.float32)[None, :, None] - rows.logsumexp
    slope = -rows.delta
    if rows.entropy:
        entropy, cotangent = rows.entropy
        slope = slope - cotangent * (jnp.maximum(log_weight, LOWEST_EXPONENT) + entropy)
    return jnp.sum(jnp.exp(log_weight) * slope, axis=(0, 2))


def _run(run: _Run, arguments: Arguments, reads: _Reads, like: tuple[Array, ...]) -> list[Array]:
    """Runs one of the two kernels.

    Returns:
      Cotangents of the arrays in `like`, then the results of `run.moved`.
    """
    call, t, by_key = run.call, run.tile, run.tile.rows == "S"
    words = arguments.by_key if by_key else arguments.back_by_query
    reads = reads._replace(
        scores=run.score_parts.arrays(run.own.scores.with_arrays(arguments.scores)),
        mask=run.mask_parts.arrays(run.own.mask.with_arrays(arguments.mask)),
    )

    def locate(*grid: Any) -> Place:
        if by_key:
            b, kh, s, g, words = grid
            step = steps.read(run.own.steps, words, b, s)
            return Place(b, kh * run.groups + g, step.column, step.row)
        b, h, s, words = grid
        step = steps.read(run.own.steps, words, b, s)
        return Place(b, h, step.row, step.column)

    def at(shape: tuple[int, int], where: Any) -> pl.BlockSpec:
        return pl.BlockSpec((pl.squeezed, pl.squeezed, *shape), lambda *g: where(locate(*g)))

    def query_at(x: Array) -> pl.BlockSpec:
        return at((t.block_q, x.shape[-1]), lambda p: (p.b, p.h, p.i, 0))

    def key_at(x: Array) -> pl.BlockSpec:
        return at((t.block_k, x.shape[-1]), lambda p: (p.b, p.h // call.groups, p.j, 0))

    smem, own = pl.BlockSpec(memory_space=pltpu.SMEM), key_at if by_key else query_at
    specs = _Reads(
        query_at(reads.q),
        key_at(reads.k),
        key_at(reads.v),
        query_at(reads.out),
        at((_ROWS, t.block_q), lambda p: (p.b, p.h, 0, p.i)),
        smem,
        None if reads.words is None else smem,
        None if reads.origin is None else smem,
        run.score_parts.specs(locate),
        run.mask_parts.specs(locate),
    )
    gradients = [gradient for _, gradient in run.moved]
    all_queries = []
    if run.queries:
        shape = (pl.squeezed, run.groups, *reads.q.shape[2:])
        all_queries = [
            pl.BlockSpec(shape, lambda *g: ((p := locate(*g)).b, p.h // run.groups, 0, 0))
        ]
    # A block of scores that no step visits keeps the zeros that lie there.
    zeros = [
        jnp.zeros(g.shape, jnp.float32) if g.transport.part is Part.TILE else None
        for g in gradients
    ]
    column = pltpu.VMEM((t.shape[0], LANES), jnp.float32)
    scratch = (
        [pltpu.VMEM((t.shape[0], x.shape[-1]), jnp.float32) for x in like],
        None if by_key else [column] * (4 if run.entropy else 2),
        run.score_parts.scratch,
        run.mask_parts.scratch,
        [g.scratch for g in gradients],
    )
    before = 1 + len(jax.tree.leaves(reads))
    first = len(like) + len(all_queries)
    places = [n for n, z in enumerate(zeros) if z is not None]
    length = steps.length(run.own.steps, words)
    heads = (call.K, length, run.groups) if by_key else (t.N, length)
    rest: list[Literal["arbitrary"]] = ["arbitrary" for _ in heads[1:]]
    return pl.pallas_call(
        functools.partial(_kernel, run),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(t.B, *heads),
            in_specs=[
                specs,
                [None if z is None else pl.BlockSpec(memory_space=pl.ANY) for z in zeros],
            ],
            out_specs=[
                *(own(x) for x in like),
                *all_queries,
                *(g.spec(locate) for g in gradients),
            ],
            scratch_shapes=scratch,
        ),
        out_shape=[
            *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like),
            *(jax.ShapeDtypeStruct(reads.q.shape, jnp.float32) for _ in all_queries),
            *(jax.ShapeDtypeStruct(g.shape, jnp.float32) for g in gradients),
        ],
        input_output_aliases={before + n: first + at for n, at in enumerate(places)},
        compiler_params=call.compiler_params(
            "parallel", "parallel", *rest, vmem_limit=_VMEM_LIMIT if run.queries else None
        ),
        interpret=call.interpret,
        name="attnjax_backward_keys" if by_key else "attnjax_backward_queries",
    )(words, reads, zeros)


def _kernel(run: _Run, words_ref: Any, reads: _Reads, zeros: Any, *refs: Any) -> None:
    del zeros  # They lie where the outputs do.
    t, by_key = run.tile, run.tile.rows == "S"
    (*results, sums, row_columns, score_columns, mask_columns, columns) = refs
    outs, grads = results[: len(sums)], results[len(sums) :]
    d_queries = None
    if run.queries:
        d_queries, *grads = grads
    b, h, s = (pl.program_id(n) for n in range(3))
    g: Any = 0
    if by_key:
        g = pl.program_id(3)
        h = h * run.groups + g
    step = steps.read(run.own.steps, words_ref, b, s)
    i, j = (step.column, step.row) if by_key else (step.row, step.column)
    window = run.score_parts.transports[0].window(Place(b, h, i, j))
    first = step.first == 1

    @pl.when(first & (g == 0))
    def start() -> None:
        for ref in sums:
            ref[...] = jnp.zeros_like(ref)
        run.score_parts.turn(reads.scores, score_columns, per_head=None if not by_key else False)
        run.mask_parts.turn(reads.mask, mask_columns, per_head=None if not by_key else False)
        if row_columns is not None:
            for n, ref in enumerate(row_columns):
                ref[...] = to_column(reads.rows[n : n + 1, :])

    if by_key:

        @pl.when(first | (run.groups > 1))
        def start_head() -> None:
            run.score_parts.turn(reads.scores, score_columns, per_head=True)
            run.mask_parts.turn(reads.mask, mask_columns, per_head=True)

    if d_queries is not None:

        @pl.when((s == 0) & (g == 0))
        def clear_queries() -> None:
            # In a loop, for the compiler would write a longer store out.
            def clear(n: Array, _: None) -> None:
                part = pl.ds(pl.multiple_of(n * t.block_q, t.block_q), t.block_q)
                zeros = jnp.zeros((t.block_q, d_queries.shape[-1]), jnp.float32)
                for head in range(run.groups):
                    d_queries[head, part, :] = zeros

            jax.lax.fori_loop(0, d_queries.shape[1] // t.block_q, clear, None)

    for (_, gradient), out, column in zip(run.moved, grads, columns, strict=True):
        gradient.start(out, column, g, call=(s == 0) & (g == 0), row=first)

    def visit(kind: int) -> None:
        # Here, for what is computed outside of the branches is computed at every step.
        index = t.index(b, h, i * t.block_q, j * t.block_k).moved(reads.origin)
        parts = run.score_parts.read(reads.scores, score_columns, b, h)
        read = functools.partial(run.mask_parts.read, reads.mask, mask_columns, b, h)
        chosen = allowed(run.own, kind, index, read, reads.origin)
        if row_columns is None:
            rows = [reads.rows[n : n + 1, :] for n in range(4 if run.entropy else 2)]
        else:
            rows = [ref[:, :1] for ref in row_columns]
        weight, d_dots, d_parts = _pull_back(run, reads, index, parts, rows, chosen)
        if by_key:
            d_out, q = reads.out[...], reads.q[...]
            sums[0][...] += dot(run.call, d_dots.astype(q.dtype), q, (1, 0))
            sums[1][...] += dot(run.call, weight.astype(d_out.dtype), d_out, (1, 0))
            if d_queries is not None:
                k = reads.k[...]
                part = pl.ds(pl.multiple_of(i * t.block_q, t.block_q), t.block_q)
                d_queries[g, part, :] += dot(run.call, d_dots.astype(k.dtype), k, (0, 0))
        else:
            k = reads.k[...]
            sums[0][...] += dot(run.call, d_dots.astype(k.dtype), k, (1, 0))
        for (_, gradient), out, column, x in zip(run.moved, grads, columns, d_parts, strict=True):
            gradient.add(out, column, g, x, window)

    for kind in run.own.steps.kinds:
        pl.when(step.kind == kind)(functools.partial(visit, kind))
    last = step.last == 1

    @pl.when(last & (g == run.groups - 1))
    def finish() -> None:
        for n, (out, ref) in enumerate(zip(outs, sums, strict=True)):
            total = ref[...]
            if run.only_scaled and n == 0:
                total = total * reads.scale[0]
            out[...] = total.astype(out.dtype)

    @pl.when(last)
    def finish_head() -> None:
        for (_, gradient), out, column in zip(run.moved, grads, columns, strict=True):
            gradient.finish(out, column, g)


def _pull_back(
    run: _Run,
    reads: _Reads,
    index: Index,
    parts: list[Array],
    rows: list[Array],
    chosen: Array | None,
) -> tuple[Array, Array, list[Array]]:
    """Computes the weights of a tile, and the cotangents of its dot products and parts."""
    call, by_key = run.call, run.tile.rows == "S"

    def tile_of(queries: Array, keys: Array) -> Array:
        return dot(call, keys, queries, (1, 1)) if by_key else dot(call, queries, keys, (1, 1))

    dots = tile_of(reads.q[...], reads.k[...])
    numbers = [n for n, _ in run.moved]

    def score_of(dots: Array, *some: Array) -> Array:
        given = list(parts)
        for n, x in zip(numbers, some, strict=True):
            given[n] = x
        return run.own.scores(dots, index=index, parts=given)

    if run.only_scaled:
        exponent = dots * (reads.scale[0] * LOG2E) - rows[_LOGSUMEXP]
    else:
        score, pull = jax.vjp(score_of, dots, *(parts[n] for n in numbers))
        # Large scores differ exactly, but not once they are multiplied.
        exponent = (score - rows[_LOGSUMEXP]) * LOG2E
    weight = jnp.exp2(exponent)
    if chosen is not None:
        weight = jnp.where(chosen, weight, 0)
    d_weight = tile_of(reads.out[...], reads.v[...])
    kept, d_weight = drop(call, reads.words, index, weight, d_weight)
    slope = d_weight - rows[_DELTA]
    if run.entropy:
        surprise = jnp.maximum(exponent * LN2, LOWEST_EXPONENT) + rows[_ENTROPY]
        slope = slope - rows[_ENTROPY_COTANGENT] * surprise
    d_score = weight * slope
    if chosen is not None:
        d_score = jnp.where(chosen, d_score, 0)
    if run.only_scaled:
        return kept, d_score, []
    d_dots, *d_parts = pull(d_score)
    return kept, d_dots, d_parts
