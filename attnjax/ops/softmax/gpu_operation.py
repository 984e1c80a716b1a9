"""The operation that the GPU kernels make up: arrays in, output and gradients out."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.numerics import MASKED
from attnjax.ops.derivatives import differentiable
from attnjax.ops.kernels import mosaic_gpu as mgpu
from attnjax.ops.kernels.padding import pad
from attnjax.ops.softmax import blockwise
from attnjax.ops.softmax.gpu_backward import Backward, RowTerms, d_keys, d_queries
from attnjax.ops.softmax.gpu_call import (
    LOWEST,
    Inputs,
    Pass,
    Rows,
    bare,
    inputs_of,
    make_pass,
    make_rows,
    operands,
    tables,
)
from attnjax.ops.softmax.gpu_forward import Forward, forward
from attnjax.ops.softmax.problem import Problem
from attnjax.ops.softmax.stats import AttentionStats, stats_of
from attnjax.ops.softmax.tiling import make_tiling

_REFUSAL = (
    "A second reverse-mode derivative of attention is not available on a GPU. Use forward mode for "
    "the outer derivative (jax.jvp of jax.grad, jax.hessian), or implementation='reference'."
)
_SLOTS = 2
_HEADROOM = 2.0**-4


class Passes(NamedTuple):
    """The view that each kernel has of a call."""

    forward: Pass
    d_queries: Pass
    d_keys: Pass


def lower(problem: Problem) -> Passes:
    """Chooses the tiles of each kernel, so that nothing is spilled from the registers.

    Raises:
      NotImplementedError: if the kernels cannot run the call's mask or score_mods.
    """
    rows = mgpu.WARPGROUP
    forward = make_pass(problem, rows, 128, 2, "T")
    return Passes(
        make_pass(problem, rows, 64, 2, "T") if forward.crowded else forward,
        make_pass(problem, rows, 64, 2, "T"),
        make_pass(problem, 64, rows, 2, "S"),
    )


class _Arguments(NamedTuple):
    """Everything that the operation computes with.

    Attributes:
      plain: the arrays of blockwise, which has derivatives of every kind.
      rows: schedules of each kernel.
      operands: arrays of each kernel's programs.
    """

    plain: blockwise.Arguments
    rows: tuple[Rows, ...]
    operands: tuple[tuple[tuple[Array, ...], ...], ...]


class _Call(NamedTuple):
    """What is static in a call."""

    passes: Passes
    structure: Any
    run_plain: Any
    only_scaled: bool
    stats: bool
    interpret: bool


def compute(problem: Problem, *, interpret: bool) -> tuple[Array, AttentionStats | None]:
    """Computes attention by the kernels.

    Args:
      problem: a call that `attnjax.ops.softmax.gpu.check` accepts; no axis may be empty.
      interpret: whether to run the kernels in the interpreter.

    Returns:
      The output `[B, T, N, D]` in the dtype of `v`, and the statistics if they are wanted.
    """
    passes, size = lower(problem), problem.sizes
    run_plain, plain = blockwise.operation(problem, make_tiling(problem))
    arguments = _Arguments(
        plain,
        tuple(
            make_rows(
                problem.mask,
                view,
                size["N"] // size["K"],
                apart=problem.stats and view is passes.forward,
                origin=problem.origin,
            )
            for view in passes
        ),
        tuple(operands(view) for view in passes),
    )
    flat, structure = jax.tree.flatten(arguments)
    call = _Call(
        Passes(*(bare(view) for view in passes)),
        structure,
        run_plain,
        not problem.score_mods,
        problem.stats,
        interpret,
    )
    op = differentiable(
        functools.partial(_forward, call),
        functools.partial(_backward, call),
        num_smooth=3 if problem.stats else 2,
        refusal=_REFUSAL,
        plain=functools.partial(_plain, call),
    )
    out, *rows = op(*flat)
    return out, stats_of(problem, *rows)


def _plain(call: _Call, flat: tuple[Array, ...]) -> tuple[Array, ...]:
    """Computes the same in plain JAX."""
    return call.run_plain(*jax.tree.unflatten(call.structure, flat).plain)


def _inputs(arguments: _Arguments, call: _Call) -> Inputs:
    q, k, v = (jnp.moveaxis(x, 1, 2) for x in arguments.plain[:3])
    multiples = (max(sizes) for sizes in zip(*(view.blocks for view in call.passes), strict=True))
    return inputs_of(q, k, v, tuple(multiples))


def _forward(call: _Call, flat: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Computes the output; the residuals are what the backward pass reuses."""
    arguments: _Arguments = jax.tree.unflatten(call.structure, flat)
    if (known := arguments.plain.known) is not None:
        assert known.entropy is None, "parts are computed without statistics"
        return known.results()
    view = call.passes.forward
    inputs = _inputs(arguments, call)
    scores, *masks = arguments.operands[0]
    if call.only_scaled:
        # The kernel finds the largest score by the largest dot product.
        sign = jnp.where(scores[0] < 0, -1, 1).astype(inputs.q.dtype)
        inputs, scores = inputs._replace(q=inputs.q * sign), (jnp.abs(scores[0]), *scores[1:])
    sinks = arguments.plain.sinks
    out, numbers = forward(
        Forward(view, _SLOTS, call.only_scaled, sinks is not None, call.stats, call.interpret),
        inputs,
        tables(view, arguments.rows[0], (scores, *masks)),
        None if sinks is None else sinks.reshape(-1),
    )
    out, numbers = out[:, : view.tile.T], numbers[..., : view.tile.T]
    rows = tuple(numbers[:, :, n] for n in range(numbers.shape[2]))
    return (out, *rows), (out, *rows[:2])


def _backward(
    call: _Call,
    flat: tuple[Array, ...],
    residuals: tuple[Array, ...],
    cotangents: tuple[Array | None, ...],
    wanted: tuple[bool, ...],
) -> tuple[Array | None, ...]:
    """Computes the cotangents of everything that is wanted."""
    arguments: _Arguments = jax.tree.unflatten(call.structure, flat)
    want: _Arguments = jax.tree.unflatten(call.structure, wanted)
    if any(want.plain.scores[1:]):
        return _plain_backward(call, flat, cotangents, wanted)
    inputs = _inputs(arguments, call)
    scale = arguments.plain.scores[0]
    # For its gradient the scale is left out of that of the queries, with room for larger numbers.
    scale_of_queries = _HEADROOM if want.plain.scores[0] else scale
    cut = _cotangents(residuals, cotangents)
    rows = _row_terms(inputs, cut, (scale_of_queries, scale, 1.0))
    _, for_queries, for_keys = (
        tables(*one) for one in zip(call.passes, arguments.rows, arguments.operands, strict=True)
    )
    static = functools.partial(
        Backward, slots=_SLOTS, only_scaled=call.only_scaled, interpret=call.interpret
    )
    dq = d_queries(static(call.passes.d_queries), inputs, rows, for_queries)
    dk, dv = d_keys(static(call.passes.d_keys), inputs, rows, for_keys)
    d_scale = None
    if want.plain.scores[0]:
        d_scale = jnp.vdot(inputs.q, dq, preferred_element_type=jnp.float32) / _HEADROOM
        dq = (dq.astype(jnp.float32) * (scale / _HEADROOM)).astype(dq.dtype)
    sinks = arguments.plain.sinks
    if sinks is not None:
        sinks = _sinks_gradient(sinks, cut)
    T, S = call.passes.forward.tile.T, call.passes.forward.tile.S
    found = (dq[:, :T], dk[:, :S], dv[:, :S])
    grads = [*(jnp.moveaxis(x, 2, 1) for x in found), *([] if sinks is None else [sinks]), d_scale]
    # The kernels' own copies of the scale and other operands send nothing back.
    grads += [jnp.zeros_like(x) for x in flat[len(grads) :]]
    return tuple(
        g.astype(x.dtype) if w and g is not None else None
        for g, x, w in zip(grads, flat, wanted, strict=True)
    )


def _plain_backward(
    call: _Call,
    flat: tuple[Array, ...],
    cotangents: tuple[Array | None, ...],
    wanted: tuple[bool, ...],
) -> tuple[Array | None, ...]:
    """Computes the cotangents by the operation in plain JAX."""
    outputs, pull = jax.vjp(lambda *x: _plain(call, x)[: len(cotangents)], *flat)
    filled = (
        jnp.zeros_like(x) if c is None else c for x, c in zip(outputs, cotangents, strict=True)
    )
    return tuple(g if w else None for g, w in zip(pull(tuple(filled)), wanted, strict=True))


class _Rows(NamedTuple):
    """Each query's own part in the backward pass, 0 in empty rows unless stated.

    Attributes:
      d_out: cotangent of the output `[B, T, N, D]`.
      logsumexp: plus infinity in empty rows.
      delta: what all scores of a row have in common, `[B, N, T]`.
      d_entropy: cotangent of the entropy, or None.
    """

    d_out: Array
    logsumexp: Array
    delta: Array
    d_entropy: Array | None


def _cotangents(residuals: tuple[Array, ...], cotangents: tuple[Array | None, ...]) -> _Rows:
    """Reduces the cotangents of a row to what its scores need.

    With weights p and the cotangents do, dl of logsumexp and de of entropy:
    `ds = p * (do.v - (do.out - dl + de * entropy) - de * log(p))`.
    """
    (out, logsumexp, *entropy), (d_out, d_logsumexp, d_entropy) = (
        residuals,
        (*cotangents, None, None)[:3],
    )
    empty = logsumexp == MASKED
    d_out = jnp.zeros_like(out) if d_out is None else d_out
    d_out = jnp.where(empty.swapaxes(1, 2)[..., None], 0, d_out)
    delta = jnp.einsum("btnd,btnd->bnt", d_out, out, preferred_element_type=jnp.float32)
    if d_logsumexp is not None:
        delta -= jnp.where(empty, 0, d_logsumexp)
    if d_entropy is not None:
        d_entropy = jnp.where(empty, 0, d_entropy)
        delta += d_entropy * entropy[0]
    logsumexp = jnp.where(empty, jnp.inf, logsumexp)
    return _Rows(d_out, logsumexp, delta, d_entropy)


def _row_terms(inputs: Inputs, rows: _Rows, factors: tuple[Array | float, ...]) -> RowTerms:
    """Brings rows into the form that the kernels read."""
    room = _room(rows, inputs.v)
    # The weights of a row that saw a NaN are NaN where the mask lets them be, and 0 elsewhere.
    spoilt = jnp.isnan(rows.logsumexp)
    block = inputs.q.shape[1]
    d_entropy = None
    if rows.d_entropy is not None:
        d_entropy = jnp.where(spoilt, 0, rows.d_entropy * (room / mgpu.LOG2_E))
        d_entropy = pad(d_entropy, 2, block)
    return RowTerms(
        pad((rows.d_out * room).astype(rows.d_out.dtype), 1, block),
        pad(rows.logsumexp * mgpu.LOG2_E, 2, block, jnp.inf),
        pad(jnp.where(spoilt, 0, rows.delta * room), 2, block),
        d_entropy,
        jnp.stack([jnp.asarray(x, jnp.float32) / room for x in factors]),
    )


def _room(rows: _Rows, v: Array) -> Array:
    """Returns the power of two that keeps score gradients inside float16; 1 for bfloat16."""
    if v.dtype != jnp.float16:
        return jnp.float32(1)
    d_out, v = rows.d_out.astype(jnp.float32), v.astype(jnp.float32)
    lengths = (jnp.sqrt(jnp.max(jnp.sum(x * x, axis=-1))) for x in (d_out, v))
    slope = functools.reduce(jnp.multiply, lengths)
    delta = jnp.where(jnp.isfinite(rows.delta), jnp.abs(rows.delta), 0)
    slope = jnp.maximum(slope, jnp.max(delta))
    if rows.d_entropy is not None:
        slope = jnp.maximum(slope, jnp.max(jnp.abs(rows.d_entropy)))
    room = jnp.minimum(2.0**10 / slope, 2.0**14 / jnp.max(jnp.abs(d_out)))
    room = jnp.exp2(jnp.floor(jnp.log2(room)))
    return jnp.where(jnp.isfinite(room) & (room > 0), room, 1)


def _sinks_gradient(sinks: Array, rows: _Rows) -> Array:
    """Returns the cotangent of the sinks: each is a key with weight, but with no value."""
    log_weight = sinks.reshape(-1, 1) - rows.logsumexp
    slope = -rows.delta
    if rows.d_entropy is not None:
        slope -= rows.d_entropy * jnp.maximum(log_weight, LOWEST)
    return jnp.sum(jnp.exp(log_weight) * slope, axis=(0, 2)).reshape(sinks.shape)
