"""The forward pass in loops over blocks."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.numerics import LOWEST_EXPONENT, MASKED, finite_max
from attnjax.ops.softmax.blockwise_call import Arguments, Inputs, Kernel, place, row_dot
from attnjax.ops.softmax.problem import Known
from attnjax.ops.tiles import Origin, take
from attnjax.typing import Index

# The difference of two sums of float32 scores up to this size is exact to about 1e-5.
_SMALL_SCORES = 64.0

Carry = tuple[Array, ...]


class _Softmax(NamedTuple):
    """The running state of some rows.

    Attributes:
      largest: the largest score so far.
      out: the sum of values, times their weights `exp(score - largest)`.
      sums: of the weights; with statistics also of the weights times `score - largest`, and times
        the distance. One array, since every small operation costs a dispatch.
      first: the score of the first key; None without statistics.
    """

    largest: Array
    out: Array
    sums: Array
    first: Array | None


def forward(
    kernel: Kernel, structure: Any, flat: tuple[Array, ...]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Computes outputs and statistics; the residuals are what the backward pass reuses."""
    arguments: Arguments = jax.tree.unflatten(structure, flat)
    kernel = kernel.bind(arguments)
    t, dtype = kernel.tiling, kernel.dtype
    if (known := arguments.known) is not None:
        shape = (t.B, t.K, t.groups, t.T)
        out = jnp.moveaxis(known.out, 1, 2).reshape(*shape, -1)
        return Known(out, *jax.tree.map(lambda x: x.reshape(shape), known[1:])).results()
    inputs = kernel.inputs(arguments)
    schedule = arguments.by_query
    batches, groups, blocks, _ = t.counts
    small = _small_scores(kernel, inputs) if kernel.stats and kernel.only_scaled else None

    def one_block(n: Array, written: Carry) -> Carry:
        b, h, i = place(n, groups, blocks)
        tiles = t.side_by_side(t.origin(b, h, i, jnp.int32(0)))
        q = [kernel.fold(kernel.rows(inputs.q, at)) for at in tiles]

        def visit(
            n: Array, states: list[_Softmax], *, partial: bool, small: bool = False
        ) -> list[_Softmax]:
            j = schedule.block(b, i, n)
            here = t.side_by_side(t.origin(b, h, i, j))
            return [
                _update(kernel, arguments, inputs, *one, i, j, partial=partial, small=small)
                for one in zip(q, states, here, strict=True)
            ]

        nothing = jnp.full(t.row_shape, MASKED, dtype)
        state = _Softmax(
            nothing,
            jnp.zeros((*t.row_shape, inputs.v.shape[-1]), dtype),
            jnp.zeros((3 if kernel.stats else 1, *t.row_shape), dtype),
            nothing if kernel.stats else None,
        )
        states = [state] * t.streams
        full, visited = schedule.counts(b, i)
        for partial, first, end in ((False, 0, full), (True, full, visited)):
            step = functools.partial(visit, partial=partial)
            if small is None:
                states = jax.lax.fori_loop(first, end, step, states)
                continue
            # Of the two loops one is empty.
            middle = jnp.where(small, end, first)
            states = jax.lax.fori_loop(first, middle, functools.partial(step, small=True), states)
            states = jax.lax.fori_loop(middle, end, step, states)
        for state, at in zip(states, tiles, strict=True):
            bad = kernel.rows(inputs.bad_rows, at)
            rows = _finish(state, kernel.sinks(arguments.sinks, at), bad)
            index = t.index(at)
            written = tuple(
                kernel.put_rows(x, new.astype(x.dtype), at, index, i)
                for x, new in zip(written, rows, strict=True)
            )
        return written

    shape = (t.B, t.K, t.groups, t.T)
    numbers = 5 if kernel.stats else 1
    empty = (
        jnp.zeros((*shape, inputs.v.shape[-1]), arguments.v.dtype),
        *(jnp.zeros(shape, dtype) for _ in range(numbers)),
    )
    out, *rows = jax.lax.fori_loop(0, batches * groups * blocks, one_block, empty)
    return (out, *rows), (out, *rows[:2])


def _small_scores(kernel: Kernel, inputs: Inputs) -> Array:
    """Returns whether no score of the call can be large, by the norms of queries and keys."""
    q, k = (jax.lax.stop_gradient(x.astype(kernel.dtype)) for x in (inputs.q, inputs.k))
    k = k[:, :, None]
    squares = jnp.max(row_dot(q, q)) * jnp.max(row_dot(k, k))
    scale = jax.lax.stop_gradient(kernel.scores.operands[0].array)
    return _for_all(scale * scale * squares <= _SMALL_SCORES**2)


@jax.custom_batching.custom_vmap
def _for_all(condition: Array) -> Array:
    """Returns a condition; under `vmap` whether it holds for all, so that loops stay in step."""
    return condition


@_for_all.def_vmap
def _for_all_of_batch(
    axis_size: int, in_batched: list[bool], condition: Array
) -> tuple[Array, bool]:
    return _for_all(jnp.all(condition, axis=0)), False


def _update(
    kernel: Kernel,
    arguments: Arguments,
    inputs: Inputs,
    q: Array,
    state: _Softmax,
    at: Origin,
    i: Array,
    j: Array,
    *,
    partial: bool,
    small: bool,
) -> _Softmax:
    """Takes one block of keys into the running softmax of one block of rows.

    `partial` blocks need the mask. Scores that are `small` are scaled dot products, nothing else.
    """
    t = kernel.tiling
    index = t.index(at).moved(arguments.origin)
    k, v = kernel.keys(inputs.k, at), kernel.keys(inputs.v, at)
    dots = kernel.dots(q, k)
    captured = kernel.scores.inputs(t, at)
    scale = captured[0]
    score = kernel.scores(dots, *index, inputs=captured)
    exact = kernel.stats and not small
    if partial or exact:
        # The sum also keeps scale and shift from being contracted, differently in each use.
        score = score + kernel.keys(inputs.bad_keys, at)[:, :, None, None, :]
        if partial:
            allowed = kernel.allowed(index, at, i, j, own_rows=False)
            score = jnp.where(allowed, score, MASKED)
        top = jnp.max(score, axis=-1)
    else:
        # Every row sees every key, so one bad key spoils them all.
        spoil = take(inputs.bad_blocks, (at.b, t.head(at)[0], j), (t.block_b, t.heads[0], 1))
        top = kernel.top(dots, score, scale) + spoil[..., None]
    largest = jnp.maximum(state.largest, jax.lax.stop_gradient(top))
    shift = finite_max(largest)
    shrink = jnp.exp(state.largest - shift)
    exponent = score - shift[..., None]
    if exact:
        # Statistics multiply exponents by their weights, and -inf * 0 is NaN.
        exponent = jnp.maximum(exponent, LOWEST_EXPONENT)
    weight = jnp.exp(exponent)
    (kept,) = kernel.drop(arguments.dropout, index, weight)
    product = kernel.dot(kernel.fold(kept).astype(v.dtype), v, (3, 2))
    out = state.out * shrink[..., None] + product.reshape(state.out.shape)
    if state.first is None:
        sums = state.sums * shrink + jnp.sum(weight, axis=-1)
        return _Softmax(largest, out, sums, None)
    total, distance = _reach(weight, index, partial=partial)
    if small:
        # The dot products lie in memory already; the exponents need not.
        score_sum = scale * row_dot(weight, dots) - shift * total
    else:
        score_sum = row_dot(weight, exponent)
    moved = jnp.maximum(state.largest - shift, LOWEST_EXPONENT)
    old_total, old_score_sum, old_distance = state.sums
    old = jnp.stack([old_total, old_score_sum + old_total * moved, old_distance])
    sums = old * shrink + jnp.stack([total, score_sum, distance])
    first = jnp.where(index.k[..., 0] == 0, score[..., 0], state.first)
    return _Softmax(largest, out, sums, first)


def _reach(weight: Array, index: Index, *, partial: bool) -> tuple[Array, Array]:
    """Returns a tile's sums of `weight` and of `weight * |q_idx - k_idx|`.

    In a FULL block all keys lie on one side of all queries, and the distance is linear in the key's
    position, so both sums are one product with two columns. Positions count from the end that is
    nearer to the queries: nothing is subtracted, and small distances keep their digits.
    """
    dtype = weight.dtype
    ones = jnp.ones(weight.shape[-1], dtype)
    if partial:
        total = jnp.matmul(weight, ones, precision=jax.lax.Precision.HIGHEST)
        reach = jnp.broadcast_to(jnp.abs(index.q - index.k).astype(dtype), weight.shape)
        # Else XLA would turn the product with a broadcast array into multiplying and summing.
        return total, row_dot(weight, jax.lax.optimization_barrier(reach))
    first, last = index.k[..., :1], index.k[..., -1:]
    nearest = jnp.where(index.q[..., :1, :] > first, last, first)
    beyond = jnp.abs(index.k - nearest).reshape(-1).astype(dtype)
    columns = jnp.stack([ones, beyond], axis=-1)
    sums = jnp.matmul(weight, columns, precision=jax.lax.Precision.HIGHEST)
    total, moment = sums[..., 0], sums[..., 1]
    return total, total * jnp.abs(index.q - nearest)[..., 0].astype(dtype) + moment


def _finish(state: _Softmax, sinks: Array | None, bad: Array) -> tuple[Array, ...]:
    """Normalises finished rows: output, logsumexp and, if wanted, the other statistics."""
    empty = state.largest == MASKED
    largest, (total, *rest) = finite_max(state.largest), state.sums
    shift, shrink = largest, jnp.ones_like(total)
    if sinks is not None:
        sink = jnp.broadcast_to(sinks.astype(total.dtype), total.shape)
        shift = jax.lax.stop_gradient(jnp.maximum(largest, sink))
        shrink = jnp.exp(largest - shift)
        weight = jnp.exp(sink - shift)
        if rest:
            moved = jnp.maximum(largest - shift, LOWEST_EXPONENT)
            rest[0] = shrink * (rest[0] + total * moved)
            rest[0] += weight * jnp.maximum(sink - shift, LOWEST_EXPONENT)
        total = total * shrink + weight
    # The flags of bad queries return here; an empty row saw nothing, its own NaN included.
    spoil = jnp.where(empty, 0, bad)
    total = jnp.where(empty, 1, total) + spoil
    out = state.out * jnp.where(empty, 0, shrink / total)[..., None]
    logsumexp = jnp.where(empty, MASKED, jnp.log(total) + shift)
    if state.first is None:
        return out, logsumexp
    score_sum, distance = rest
    entropy = jnp.where(empty, 0, jnp.log(total) - score_sum / total)
    first = jnp.where(empty, 0, jnp.exp(state.first - logsumexp))
    distance = jnp.where(empty, 0, distance * shrink / total)
    return out, logsumexp, entropy, state.largest + spoil, first, distance
