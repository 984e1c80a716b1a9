"""Attention in loops over blocks, in plain XLA: every platform's fallback and the CPU's choice.

Visits only blocks that the mask does not exclude, and applies the mask only in those it cuts.
Memory is O(T + S), forward and backward. Sources: Milakov and Gimelshein, "Online normalizer
calculation for softmax" (2018); Dao, "FlashAttention-2" (2023).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.dropout import keep
from attnjax.numerics import (
    LOWEST_EXPONENT,
    MASKED,
    finite_max,
    matmul_dtype,
    poison,
    split_nonfinite,
)
from attnjax.ops.derivatives import differentiable
from attnjax.ops.lowering import Program, lower_mask, lower_scores
from attnjax.ops.schedule import Schedule, make_schedules
from attnjax.ops.softmax.problem import Known, Problem
from attnjax.ops.softmax.stats import AttentionStats, stats_of
from attnjax.ops.softmax.tiling import make_tiling
from attnjax.ops.tiles import Origin, Tiling
from attnjax.typing import Index

_REFUSAL = (
    "A second reverse-mode derivative of blockwise attention is not available. Use forward mode "
    "for the outer derivative (jax.jvp of jax.grad, jax.hessian), or implementation='reference'."
)

# The difference of two sums of float32 scores up to this size is exact to about 1e-5.
_SMALL_SCORES = 64.0

Carry = tuple[Array, ...]


def attend(
    problem: Problem,
    *,
    block_q: int | None = None,
    block_k: int | None = None,
    block_n: int | None = None,
    streams: int | None = None,
) -> tuple[Array, AttentionStats | None]:
    """Computes attention block by block.

    Args:
      problem: the call; no axis may be empty.
      block_q: queries in a block; None as in `make_tiling`, and so for the others.
      block_k: keys in a block.
      block_n: query heads in a tile.
      streams: most tiles, of different heads, that are computed side by side.

    Returns:
      The output `[B, T, N, D]` in the dtype of `v`, and the statistics if they are wanted.
    """
    tiling = make_tiling(problem, block_q, block_k, block_n, streams)
    run, arrays = operation(problem, tiling)
    out, *rows = run(*arrays)
    return out, stats_of(problem, *rows)


def operation(
    problem: Problem, tiling: Tiling
) -> tuple[Callable[..., tuple[Array, ...]], Arguments]:
    """Splits a call into a function and all its arrays, for kernels that borrow its derivatives.

    Args:
      problem: the call; no axis may be empty.
      tiling: the tiles.

    Returns:
      A function of the arrays that holds none itself. It gives the output `[B, T, N, D]`, logsumexp
      and, with statistics, entropy, max_logit, sink_mass and distance `[B, N, T]`. And the arrays.
    """
    dtype = problem.accumulation_dtype
    dropout = problem.dropout
    settings = None if dropout is None else (dropout.rate, dropout.shared)
    scores = lower_scores(problem.score_mods, problem.scale, tiling, dtype)
    mask = lower_mask(problem.mask, tiling)
    kernel = _Kernel(
        tiling,
        scores,
        mask,
        dtype,
        problem.matmul_precision,
        problem.stats,
        settings,
        only_scaled=not problem.score_mods,
    )
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (problem.q, problem.k, problem.v))
    by_query, by_key = make_schedules(
        problem.mask, tiling, apart=problem.stats, origin=problem.origin
    )
    arguments = Arguments(
        q=q,
        k=k,
        v=v,
        sinks=None if problem.sinks is None else problem.sinks.reshape(tiling.K, tiling.groups),
        scores=scores.arrays,
        mask=mask.arrays,
        dropout=None if dropout is None else dropout.words(),
        by_query=by_query,
        by_key=by_key,
        origin=problem.origin,
        known=problem.known,
    )
    structure = jax.tree.structure(arguments)
    # The kernel must not hold the caller's arrays, for it outlives the trace that they belong to.
    op = differentiable(
        functools.partial(_forward, kernel.bare(), structure),
        functools.partial(_backward, kernel.bare(), structure),
        num_smooth=3 if problem.stats else 2,
        refusal=_REFUSAL,
    )
    B, T, N, D = (problem.sizes[a] for a in "BTND")

    def run(*arrays: Any) -> tuple[Array, ...]:
        out, *rows = op(*jax.tree.leaves(arrays))
        out = jnp.moveaxis(out.reshape(B, N, T, D), 1, 2)
        return (out, *(x.reshape(B, N, T) for x in rows))

    return run, arguments


class Arguments(NamedTuple):
    """Everything that the kernel computes with; q, k and v as `[B, K, (G,) time, width]`."""

    q: Array
    k: Array
    v: Array
    sinks: Array | None
    scores: tuple[Array, ...]
    mask: tuple[Array, ...]
    dropout: Array | None
    by_query: Schedule
    by_key: Schedule
    origin: Array | None
    known: Known | None


def _take(x: Array, starts: tuple[Array | int, ...], lengths: tuple[int, ...]) -> Array:
    return jax.lax.dynamic_slice(x, starts, lengths)


class _Inputs(NamedTuple):
    """Queries, keys and values without their NaNs and infinities, and where those were.

    Attributes:
      q, k, v: finite.
      bad_rows: NaN where a query is not finite, else 0: `[B, K, G, T]`.
      bad_keys: the same for keys and their values: `[B, K, S]`.
      bad_blocks: the same for blocks of keys: `[B, K, nk]`.
    """

    q: Array
    k: Array
    v: Array
    bad_rows: Array
    bad_keys: Array
    bad_blocks: Array


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """What is static in a call, and the steps that forward and backward share."""

    tiling: Tiling
    scores: Program
    mask: Program
    dtype: jnp.dtype
    precision: Any
    stats: bool
    dropout: tuple[float, str] | None
    only_scaled: bool

    def bare(self) -> _Kernel:
        """Returns the kernel without the arrays of its programs."""
        return dataclasses.replace(self, scores=self.scores.bare(), mask=self.mask.bare())

    def bind(self, arguments: Arguments) -> _Kernel:
        """Returns the kernel with the arrays of its programs taken from the arguments."""
        return dataclasses.replace(
            self,
            scores=self.scores.with_arrays(arguments.scores),
            mask=self.mask.with_arrays(arguments.mask),
        )

    def inputs(self, arguments: Arguments) -> _Inputs:
        """Prepares queries, keys and values for matrix products."""
        tiling = self.tiling
        q, k, v = (x.astype(matmul_dtype(x.dtype)) for x in (arguments.q, arguments.k, arguments.v))
        q = q.reshape(tiling.B, tiling.K, tiling.groups, tiling.T, q.shape[-1])
        (q, q_bad), (k, k_bad), (v, v_bad) = (split_nonfinite(x) for x in (q, k, v))
        bad = k_bad | v_bad
        nk = tiling.counts[-1]
        padded = jnp.pad(bad, ((0, 0), (0, 0), (0, nk * tiling.block_k - tiling.S)))
        blocks = jnp.any(padded.reshape(*bad.shape[:2], nk, tiling.block_k), axis=-1)
        return _Inputs(q, k, v, *(poison(x, self.dtype) for x in (q_bad, bad, blocks)))

    def rows(self, x: Array, at: Origin) -> Array:
        """Cuts `[B, K, G, T, ...]` to the rows of a tile."""
        t = self.tiling
        return _take(
            x,
            (at.b, *t.head(at), at.q, *(0,) * (x.ndim - 4)),
            (*t.row_shape, *x.shape[4:]),
        )

    def put_rows(self, x: Array, new: Array, at: Origin, index: Index, i: Array) -> Array:
        """Writes the rows of a tile, leaving those that belong to the tile before."""
        if self.tiling.T % self.tiling.block_q:
            own = (index.q >= i * self.tiling.block_q).reshape(1, 1, 1, -1, *(1,) * (x.ndim - 4))
            new = jnp.where(own, new, self.rows(x, at))
        starts = (at.b, *self.tiling.head(at), at.q, *(0,) * (x.ndim - 4))
        return jax.lax.dynamic_update_slice(x, new, starts)

    def over_rows(self, columns: Array, tile: Array, at: Origin) -> Array:
        """Multiplies `[B, K, G, width, T]`, cut to a tile's rows, by the tile, over all its rows.

        XLA:CPU takes this form, whose left side lies transposed in memory, in half the time of
        `tile.T @ rows`.

        Returns:
          `[B', K', width, block_k]`.
        """
        t = self.tiling
        part = _take(
            columns,
            (at.b, *t.head(at), 0, at.q),
            (t.block_b, *t.heads, columns.shape[3], t.block_q),
        )
        return jax.lax.dot_general(
            part,
            tile.astype(part.dtype),
            (((2, 4), (2, 3)), ((0, 1), (0, 1))),
            precision=self.precision,
            preferred_element_type=self.dtype,
        )

    def keys(self, x: Array, at: Origin) -> Array:
        """Cuts `[B, K, S, ...]` to the keys of a tile."""
        t = self.tiling
        return _take(
            x,
            (at.b, t.head(at)[0], at.k, *(0,) * (x.ndim - 3)),
            (t.block_b, t.heads[0], t.block_k, *x.shape[3:]),
        )

    def add_keys(self, total: Array, part: Array, at: Origin) -> Array:
        """Adds a tile's keys to `[B, K, width, S]`; tiles overlap in masked keys, which add 0."""
        starts = (at.b, self.tiling.head(at)[0], 0, at.k)
        old = _take(total, starts, part.shape)
        return jax.lax.dynamic_update_slice(total, old + part, starts)

    def sinks(self, sinks: Array | None, at: Origin) -> Array | None:
        """Cuts `[K, G]` to the heads of a tile: `[K', G', 1]`."""
        if sinks is None:
            return None
        return _take(sinks, self.tiling.head(at), self.tiling.heads)[..., None]

    def dot(self, left: Array, right: Array, contract: tuple[int, int]) -> Array:
        """Multiplies `[B', K', x, y]` by `[B', K', z, w]` over one axis of each."""
        return jax.lax.dot_general(
            left,
            right,
            (((contract[0],), (contract[1],)), ((0, 1), (0, 1))),
            precision=self.precision,
            preferred_element_type=self.dtype,
        )

    def fold(self, x: Array) -> Array:
        """Folds the query groups into the rows: `[B', K', G' * block_q, ...]`."""
        return x.reshape(*x.shape[:2], -1, *x.shape[4:])

    def dots(self, q: Array, k: Array) -> Array:
        """Multiplies folded rows by keys: one tile of dot products."""
        return self.dot(q, k, (3, 3)).reshape(self.tiling.score_shape)

    def top(self, dots: Array, score: Array, scale: Array) -> Array:
        """Returns the largest score of each row of a tile.

        Rounding keeps order, so where scores are but scaled, that of the largest dot product (or of
        the smallest) is the largest, and the scores need not lie in memory to be compared.
        """
        if not self.only_scaled:
            return jnp.max(score, axis=-1)
        most = jax.lax.cond(
            scale < 0, lambda x: jnp.min(x, axis=-1), lambda x: jnp.max(x, axis=-1), dots
        )
        return most * scale

    def allowed(self, index: Index, at: Origin, i: Array, j: Array, *, own_rows: bool) -> Array:
        """Evaluates the mask on a tile, without what belongs to another tile."""
        t = self.tiling
        allowed = self.mask(*index, inputs=self.mask.inputs(t, at))
        here = t.index(at)
        if t.S % t.block_k:
            allowed &= here.k >= j * t.block_k
        if own_rows and t.T % t.block_q:
            allowed &= here.q >= i * t.block_q
        return allowed

    def drop(self, words: Array | None, index: Index, *tiles: Array) -> tuple[Array, ...]:
        """Applies dropout to tiles: what is dropped becomes 0, the rest is scaled up."""
        if self.dropout is None or words is None:
            return tiles
        rate, shared = self.dropout
        chosen = keep(words, rate, index, shared)
        return tuple(jnp.where(chosen, x / (1 - rate), 0) for x in tiles)


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


def _forward(
    kernel: _Kernel, structure: Any, flat: tuple[Array, ...]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Computes outputs and statistics; the residuals are what the backward pass reuses."""
    arguments: Arguments = jax.tree.unflatten(structure, flat)
    kernel = kernel.bind(arguments)
    t, dtype = kernel.tiling, kernel.dtype
    if arguments.known is not None:
        return _known_outputs(t, arguments.known)
    inputs = kernel.inputs(arguments)
    schedule = arguments.by_query
    batches, groups, blocks, _ = t.counts
    small = _small_scores(kernel, inputs) if kernel.stats and kernel.only_scaled else None

    def one_block(n: Array, written: Carry) -> Carry:
        b, h, i = _place(n, groups, blocks)
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


def _known_outputs(t: Tiling, known: Known) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Returns outputs and residuals of a part of a call whose result is known."""
    shape = (t.B, t.K, t.groups, t.T)
    out = jnp.moveaxis(known.out, 1, 2).reshape(*shape, -1)
    if known.entropy is None:
        rows = (known.logsumexp.reshape(shape),)
        return (out, *rows), (out, *rows)
    both = (known.logsumexp.reshape(shape), known.entropy.reshape(shape))
    return (out, *both, *(jnp.zeros_like(both[0]),) * 3), (out, *both)


def _small_scores(kernel: _Kernel, inputs: _Inputs) -> Array:
    """Returns whether no score of the call can be large, by the norms of queries and keys."""
    q, k = (jax.lax.stop_gradient(x.astype(kernel.dtype)) for x in (inputs.q, inputs.k))
    k = k[:, :, None]
    squares = jnp.max(_row_dot(q, q)) * jnp.max(_row_dot(k, k))
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


def _place(n: Array, groups: int, blocks: int) -> tuple[Array, Array | int, Array]:
    """Splits a running number into batch tile, group of heads (known if it is alone) and block."""
    if groups == 1:
        return n // blocks, 0, n % blocks
    return n // (groups * blocks), n // blocks % groups, n % blocks


def _update(
    kernel: _Kernel,
    arguments: Arguments,
    inputs: _Inputs,
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
        spoil = _take(inputs.bad_blocks, (at.b, t.head(at)[0], j), (t.block_b, t.heads[0], 1))
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
        score_sum = scale * _row_dot(weight, dots) - shift * total
    else:
        score_sum = _row_dot(weight, exponent)
    moved = jnp.maximum(state.largest - shift, LOWEST_EXPONENT)
    old_total, old_score_sum, old_distance = state.sums
    old = jnp.stack([old_total, old_score_sum + old_total * moved, old_distance])
    sums = old * shrink + jnp.stack([total, score_sum, distance])
    first = jnp.where(index.k[..., 0] == 0, score[..., 0], state.first)
    return _Softmax(largest, out, sums, first)


def _row_dot(left: Array, right: Array) -> Array:
    """Returns `sum(left * right)` of each row.

    A matrix product is the fastest sum that XLA:CPU has: up to 50 times as fast as multiplying and
    summing, which it does on one thread.
    """
    return jnp.einsum("bkgqx,bkgqx->bkgq", left, right, precision=jax.lax.Precision.HIGHEST)


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
        return total, _row_dot(weight, jax.lax.optimization_barrier(reach))
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


def _backward(
    kernel: _Kernel,
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
        b, h, j = _place(n, groups, blocks)
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
    inputs: _Inputs,
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
    delta = _row_dot(d_out.astype(dtype), out.astype(dtype))
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
    kernel: _Kernel,
    arguments: Arguments,
    inputs: _Inputs,
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
    dq = jax.lax.dynamic_update_slice(dq, kernel.rows(dq, at) + step, starts)
    return dq, dk, dv, dscores


def _sinks_gradient(sinks: Array, rows: _Rows) -> Array:
    """Returns the cotangent `[K, G]` of the sinks: a key with weight, but with no value."""
    log_weight = sinks.astype(rows.delta.dtype)[None, :, :, None] - rows.logsumexp
    slope = -rows.delta
    if rows.entropy is not None and rows.entropy_cotangent is not None:
        surprise = jnp.maximum(log_weight, LOWEST_EXPONENT) + rows.entropy
        slope = slope - rows.entropy_cotangent * surprise
    return jnp.sum(jnp.exp(log_weight) * slope, axis=(0, 3))
