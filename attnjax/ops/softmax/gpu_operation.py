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
from attnjax.ops.softmax import blockwise
from attnjax.ops.softmax.gpu_backward import Backward, RowTerms, d_keys, d_queries
from attnjax.ops.softmax.gpu_call import (
    Inputs,
    Pass,
    Rows,
    bare,
    inputs_of,
    make_pass,
    make_rows,
    operands,
    pad,
    tables,
)
from attnjax.ops.softmax.gpu_forward import Forward, forward
from attnjax.ops.softmax.problem import Problem
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
    interpret: bool


def compute(problem: Problem, *, interpret: bool) -> Array:
    """Computes attention by the kernels.

    Args:
      problem: a call that `attnjax.ops.softmax.gpu.check` accepts; no axis may be empty.
      interpret: whether to run the kernels in the interpreter.

    Returns:
      The output `[B, T, N, D]` in the dtype of `v`.
    """
    passes, size = lower(problem), problem.sizes
    run_plain, plain = blockwise.operation(problem, make_tiling(problem))
    arguments = _Arguments(
        plain,
        tuple(make_rows(problem.mask, view, size["N"] // size["K"]) for view in passes),
        tuple(operands(view) for view in passes),
    )
    flat, structure = jax.tree.flatten(arguments)
    call = _Call(
        Passes(*(bare(view) for view in passes)),
        structure,
        run_plain,
        not problem.score_mods,
        interpret,
    )
    op = differentiable(
        functools.partial(_forward, call),
        functools.partial(_backward, call),
        num_smooth=1,
        refusal=_REFUSAL,
        plain=functools.partial(_plain, call),
    )
    return op(*flat)[0]


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
    view = call.passes.forward
    inputs = _inputs(arguments, call)
    scores, *masks = arguments.operands[0]
    if call.only_scaled:
        # The kernel finds the largest score by the largest dot product.
        sign = jnp.where(scores[0] < 0, -1, 1).astype(inputs.q.dtype)
        inputs, scores = inputs._replace(q=inputs.q * sign), (jnp.abs(scores[0]),)
    sinks = arguments.plain.sinks
    out, logsumexp = forward(
        Forward(view, _SLOTS, call.only_scaled, sinks is not None, call.interpret),
        inputs,
        tables(view, arguments.rows[0], (scores, *masks)),
        None if sinks is None else sinks.reshape(-1),
    )
    out, logsumexp = out[:, : view.tile.T], logsumexp[:, :, : view.tile.T]
    return (out,), (out, logsumexp)


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
    (out, logsumexp), (d_out,) = residuals, cotangents
    assert d_out is not None, "the only output has a cotangent"
    if any(want.plain.scores[1:]):
        _, pull = jax.vjp(lambda *x: _plain(call, x), *flat)
        return tuple(g if w else None for g, w in zip(pull((d_out,)), wanted, strict=True))
    inputs = _inputs(arguments, call)
    scale = arguments.plain.scores[0]
    # For its gradient the scale is left out of that of the queries, with room for larger numbers.
    scale_of_queries = _HEADROOM if want.plain.scores[0] else scale
    rows = _row_terms(inputs, out, logsumexp, d_out, (scale_of_queries, scale, 1.0))
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
        sinks = _sinks_gradient(sinks, out, logsumexp, d_out)
    T, S = call.passes.forward.tile.T, call.passes.forward.tile.S
    found = (dq[:, :T], dk[:, :S], dv[:, :S])
    grads = [*(jnp.moveaxis(x, 2, 1) for x in found), *([] if sinks is None else [sinks]), d_scale]
    # The kernels' own copies of the scale and other operands send nothing back.
    grads += [jnp.zeros_like(x) for x in flat[len(grads) :]]
    return tuple(
        g.astype(x.dtype) if w and g is not None else None
        for g, x, w in zip(grads, flat, wanted, strict=True)
    )


def _row_terms(
    inputs: Inputs,
    out: Array,
    logsumexp: Array,
    d_out: Array,
    factors: tuple[Array | float, ...],
) -> RowTerms:
    """Reduces the cotangent of a row to what its scores need."""
    empty = logsumexp == MASKED
    d_out = jnp.where(empty.swapaxes(1, 2)[..., None], 0, d_out)
    room = _room(d_out, inputs.v)
    delta = _delta(d_out, out) * room
    # The weights of a row that saw a NaN are NaN where the mask lets them be, and 0 elsewhere.
    delta = jnp.where(jnp.isnan(logsumexp), 0, delta)
    block = inputs.q.shape[1]
    return RowTerms(
        pad((d_out * room).astype(d_out.dtype), 1, block),
        pad(jnp.where(empty, jnp.inf, logsumexp * mgpu.LOG2_E), 2, block, jnp.inf),
        pad(delta, 2, block),
        jnp.stack([jnp.asarray(x, jnp.float32) / room for x in factors]),
    )


def _room(d_out: Array, v: Array) -> Array:
    """Returns the power of two that keeps score gradients inside float16; 1 for bfloat16."""
    if d_out.dtype != jnp.float16:
        return jnp.float32(1)
    wide = d_out.astype(jnp.float32), v.astype(jnp.float32)
    lengths = (jnp.sqrt(jnp.max(jnp.sum(x * x, axis=-1))) for x in wide)
    largest = jnp.max(jnp.abs(wide[0]))
    room = jnp.minimum(2.0**10 / functools.reduce(jnp.multiply, lengths), 2.0**14 / largest)
    room = jnp.exp2(jnp.floor(jnp.log2(room)))
    return jnp.where(jnp.isfinite(room) & (room > 0), room, 1)


def _delta(d_out: Array, out: Array) -> Array:
    """Returns what all scores of a row have in common, `[B, N, T]`."""
    return jnp.einsum("btnd,btnd->bnt", d_out, out, preferred_element_type=jnp.float32)


def _sinks_gradient(sinks: Array, out: Array, logsumexp: Array, d_out: Array) -> Array:
    """Returns the cotangent of the sinks: each is a key with weight, but with no value."""
    empty = logsumexp == MASKED
    weight = jnp.exp(sinks.reshape(-1, 1) - jnp.where(empty, jnp.inf, logsumexp))
    grads = weight * jnp.where(empty, 0, -_delta(d_out, out))
    return jnp.sum(grads, axis=(0, 2)).reshape(sinks.shape)
