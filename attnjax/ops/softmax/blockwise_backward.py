"""The backward pass in loops over blocks, from recomputed scores."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.numerics import LOWEST_EXPONENT, MASKED
from attnjax.ops.softmax.blockwise_call import Arguments, Inputs, Kernel, place, row_dot
from attnjax.ops.tiles import Origin, put


def backward(
    kernel: Kernel,
    structure: Any,
    flat: tuple[Array, ...],
    residuals: tuple[Array, ...],
    cotangents: tuple[Array | None, ...],
    wanted: tuple[bool, ...],
) -> tuple[Array | None, ...]:
    """Computes the cotangents of everything that is wanted, from recomputed blocks."""
    arguments: Arguments = jax.tree.unflatten(structure, flat)
    want: Arguments = jax.tree.unflatten(structure, wanted)
    kernel = kernel.bind(arguments)
    t, dtype = kernel.tiling, kernel.dtype
    inputs = kernel.inputs(arguments)
    rows = _row_terms(inputs, residuals, cotangents, dtype)
    schedule = arguments.by_key
    batches, groups, _, blocks = t.counts

    def one_block(n: Array, totals: _Totals) -> _Totals:
        b, h, j = place(n, groups, blocks)
        tiles = t.side_by_side(t.origin(b, h, jnp.int32(0), j))

        def visit(n: Array, sums: tuple, *, partial: bool) -> tuple:
            i = schedule.block(b, j, n)
            dq, keys, dscores = sums
            new = []
            for at, (dk, dv) in zip(t.side_by_side(t.origin(b, h, i, j)), keys, strict=True):
                dq, dk, dv, dscores = _pull_back(
                    kernel,
                    arguments,
                    inputs,
                    rows,
                    (dq, dk, dv, dscores),
                    at,
                    i,
                    j,
                    partial=partial,
                )
                new.append((dk, dv))
            return dq, new, dscores

        zero = tuple(
            jnp.zeros((t.block_b, t.heads[0], x.shape[-1], t.block_k), dtype)
            for x in (inputs.k, inputs.v)
        )
        sums = (totals.q, [zero] * t.streams, totals.scores)
        full, visited = schedule.counts(b, j)
        sums = jax.lax.fori_loop(0, full, functools.partial(visit, partial=False), sums)
        sums = jax.lax.fori_loop(full, visited, functools.partial(visit, partial=True), sums)
        dq, keys, dscores = sums
        total_k, total_v = totals.k, totals.v
        for at, (dk, dv) in zip(tiles, keys, strict=True):
            total_k, total_v = kernel.add_keys(total_k, dk, at), kernel.add_keys(total_v, dv, at)
        return _Totals(dq, total_k, total_v, dscores)

    zeros = _Totals(
        q=jnp.zeros(inputs.q.shape, dtype),
        k=jnp.zeros(jnp.matrix_transpose(inputs.k).shape, dtype),
        v=jnp.zeros(jnp.matrix_transpose(inputs.v).shape, dtype),
        scores=tuple(
            jnp.zeros(x.shape, jnp.promote_types(x.dtype, dtype)) if w else None
            for x, w in zip(arguments.scores, want.scores, strict=True)
        ),
    )
    totals = jax.lax.fori_loop(0, batches * groups * blocks, one_block, zeros)
    # In the order of the flattened arguments; masks, dropout and schedules have no derivative.
    grads = [
        totals.q.reshape(arguments.q.shape),
        jnp.matrix_transpose(totals.k),
        jnp.matrix_transpose(totals.v),
        *(() if arguments.sinks is None else (_sinks_gradient(arguments.sinks, rows),)),
        *totals.scores,
    ]
    grads += [None] * (len(flat) - len(grads))
    return tuple(
        g.astype(x.dtype) if w and g is not None else None
        for g, x, w in zip(grads, flat, wanted, strict=True)
    )


class _Rows(NamedTuple):
    """What the backward pass needs of each row, `[B, K, G, T]` unless stated.

    Attributes:
      q_columns: queries `[B, K, G, H, T]`.
      out: cotangent of the output, `[B, K, G, T, D]`.
      out_columns: the same as `[B, K, G, D, T]`.
      logsumexp: plus infinity for empty rows, so that their weights vanish.
      delta: what all scores of a row have in common.
      entropy: the entropy, if its cotangent is wanted.
      entropy_cotangent: its cotangent.
    """

    q_columns: Array
    out: Array
    out_columns: Array
    logsumexp: Array
    delta: Array
    entropy: Array | None
    entropy_cotangent: Array | None


class _Totals(NamedTuple):
    """Cotangents so far."""

    q: Array
    k: Array
    v: Array
    scores: tuple[Array | None, ...]


def _row_terms(
    inputs: Inputs,
    residuals: tuple[Array, ...],
    cotangents: tuple[Array | None, ...],
    dtype: jnp.dtype,
) -> _Rows:
    """Reduces the cotangents of a row to what its scores need.

    With weights p, scores s and the cotangents do, dl of logsumexp and de of entropy:
    `ds = p * (do.v - (do.out - dl) - de * (log(p) + entropy))`.
    """
    out, logsumexp, *rest = residuals
    empty = logsumexp == MASKED
    d_out, d_logsumexp, d_entropy = (*cotangents, None, None)[:3]
    d_out = jnp.zeros_like(out) if d_out is None else d_out
    d_out = jnp.where(empty[..., None], 0, d_out)
    delta = row_dot(d_out.astype(dtype), out.astype(dtype))
    if d_logsumexp is not None:
        delta = delta - jnp.where(empty, 0, d_logsumexp)
    if d_entropy is not None:
        d_entropy = jnp.where(empty, 0, d_entropy)
    d_out = d_out.astype(inputs.v.dtype)
    return _Rows(
        jnp.matrix_transpose(inputs.q),
        d_out,
        jnp.matrix_transpose(d_out),
        jnp.where(empty, jnp.inf, logsumexp),
        delta,
        rest[0] if d_entropy is not None else None,
        d_entropy,
    )


def _pull_back(
    kernel: Kernel,
    arguments: Arguments,
    inputs: Inputs,
    rows: _Rows,
    sums: tuple,
    at: Origin,
    i: Array,
    j: Array,
    *,
    partial: bool,
) -> tuple:
    """Adds what one block contributes to the cotangents."""
    t = kernel.tiling
    dq, dk, dv, dscores = sums
    index = t.index(at).moved(arguments.origin)
    q = kernel.fold(kernel.rows(inputs.q, at))
    k, v = kernel.keys(inputs.k, at), kernel.keys(inputs.v, at)
    d_out = kernel.fold(kernel.rows(rows.out, at))
    dots = kernel.dots(q, k)
    captured = kernel.scores.inputs(t, at)
    moved = [n for n, total in enumerate(dscores) if total is not None]

    def score_of(dots: Array, *some: Array) -> Array:
        given = list(captured)
        for n, x in zip(moved, some, strict=True):
            given[n] = x
        return kernel.scores(dots, *index, inputs=given)

    score, pull = jax.vjp(score_of, dots, *(captured[n] for n in moved))
    log_weight = score - kernel.rows(rows.logsumexp, at)[..., None]
    weight = jnp.exp(log_weight)
    allowed = kernel.allowed(index, at, i, j, own_rows=True) if partial else None
    if allowed is not None:
        weight = jnp.where(allowed, weight, 0)
    d_weight = kernel.dot(d_out, v, (3, 3)).reshape(t.score_shape)
    kept, d_weight = kernel.drop(arguments.dropout, index, weight, d_weight)
    dv = dv + kernel.over_rows(rows.out_columns, kept, at)
    slope = d_weight - kernel.rows(rows.delta, at)[..., None]
    if rows.entropy is not None and rows.entropy_cotangent is not None:
        surprise = jnp.maximum(log_weight, LOWEST_EXPONENT)
        surprise += kernel.rows(rows.entropy, at)[..., None]
        slope -= kernel.rows(rows.entropy_cotangent, at)[..., None] * surprise
    d_score = weight * slope
    if allowed is not None:
        d_score = jnp.where(allowed, d_score, 0)
    d_dots, *d_captured = pull(d_score)
    parts: list[Array | None] = [None] * len(captured)
    for n, x in zip(moved, d_captured, strict=True):
        parts[n] = x
    dscores = kernel.scores.add(dscores, parts, t, at)
    dk = dk + kernel.over_rows(rows.q_columns, d_dots, at)
    step = kernel.dot(kernel.fold(d_dots).astype(k.dtype), k, (3, 2)).reshape(
        *t.row_shape, k.shape[-1]
    )
    starts = (at.b, *t.head(at), at.q, 0)
    dq = put(dq, kernel.rows(dq, at) + step, starts)
    return dq, dk, dv, dscores


def _sinks_gradient(sinks: Array, rows: _Rows) -> Array:
    """Returns the cotangent `[K, G]` of the sinks: a key with weight, but with no value."""
    log_weight = sinks.astype(rows.delta.dtype)[None, :, :, None] - rows.logsumexp
    slope = -rows.delta
    if rows.entropy is not None and rows.entropy_cotangent is not None:
        surprise = jnp.maximum(log_weight, LOWEST_EXPONENT) + rows.entropy
        slope = slope - rows.entropy_cotangent * surprise
    return jnp.sum(jnp.exp(log_weight) * slope, axis=(0, 3))
