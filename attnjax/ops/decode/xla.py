"""Decoding in plain XLA, on every platform: keys and values are read once, where they lie."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.numerics import (
    LOWEST_EXPONENT,
    MASKED,
    accumulation_dtype,
    default_precision,
    finite_max,
    poison,
    split_nonfinite,
)
from attnjax.ops.decode.lowering import places, tiles
from attnjax.ops.decode.plain import Call, Plain, derived, prepare
from attnjax.ops.decode.problem import DecodeProblem
from attnjax.ops.decode.sums import Sums, finish
from attnjax.ops.softmax.stats import AttentionStats

# Sums over the keys run side by side in so many parts.
_SPLITS = 64
# Up to so many rows of all heads, products with zeros are cheaper than a transposed cache.
_FEW_ROWS = 64


def attend(problem: DecodeProblem) -> tuple[Array, AttentionStats | None]:
    """Computes attention of the last queries to the cache.

    Args:
      problem: the call.

    Returns:
      The output `[B, T, N, D]` in the dtype of `q`, and the statistics if they are wanted.
    """
    plain, flat = prepare(problem)
    out, *stats = derived(functools.partial(fast, plain), functools.partial(smooth, plain))(*flat)
    return out, AttentionStats(*stats) if stats else None


def fast(plain: Plain, *flat: Array) -> tuple[Array, ...]:
    """Returns the output and the statistics, looking for NaNs only where there are some."""
    call = plain.bind(flat)
    inputs = _gather(call)
    outputs, finite = _compute(call, inputs)
    # A NaN or an infinity is rare, and looking for it in the cache would take as long as all else.
    # One that no row may see spoils others here too, for 0 times NaN is NaN.
    outputs = jax.lax.cond(finite, lambda: outputs, lambda: _compute(call, _clean(inputs))[0])
    return spoil(call, outputs)


def smooth(plain: Plain, *flat: Array) -> tuple[Array, ...]:
    """Returns the same in a form whose derivatives are right, whatever the cache holds."""
    call = plain.bind(flat)
    out, *stats = spoil(call, _compute(call, _clean(_gather(call)))[0])
    if not stats:
        return (out,)
    logsumexp, max_logit, entropy, *rest = stats
    max_logit, *rest = (jax.lax.stop_gradient(x) for x in (max_logit, *rest))
    return out, logsumexp, max_logit, entropy, *rest


class _Inputs(NamedTuple):
    """What is computed with, gathered by example.

    Attributes:
      q: `[B, T, K, G, H]`.
      k: `[B, S, K, H]`.
      v: `[B, S, K, D]`.
      k_scale: `[B, K, S]` or None.
      v_scale: likewise.
      bad: scores `[B, N, T, S]` to spoil, if anything was not finite.
    """

    q: Array
    k: Array
    v: Array
    k_scale: Array | None
    v_scale: Array | None
    bad: Array | None


def _gather(call: Call) -> _Inputs:
    given, layout = call.arguments, call.arguments.layout
    B, T, N, H = given.q.shape
    dtype = accumulation_dtype(given.q.dtype)
    k, v = layout.gather(given.k), layout.gather(given.v)
    k_scale, v_scale = (
        None if x is None else jnp.moveaxis(layout.gather(x).astype(dtype), 1, 2)
        for x in (given.k_scale, given.v_scale)
    )
    K = k.shape[2]
    return _Inputs(given.q.reshape(B, T, K, N // K, H), k, v, k_scale, v_scale, None)


def _clean(inputs: _Inputs) -> _Inputs:
    (q, q_bad), (k, k_bad), (v, v_bad) = (split_nonfinite(x) for x in inputs[:3])
    kv_bad = jnp.moveaxis(k_bad | v_bad, 1, 2)
    factors = []
    for factor in (inputs.k_scale, inputs.v_scale):
        if factor is not None:
            kv_bad |= ~jnp.isfinite(factor)
            factor = jnp.where(jnp.isfinite(factor), factor, 1)
        factors.append(factor)
    B, T, K, G, _ = q.shape
    bad = jnp.moveaxis(q_bad, 1, -1)[..., None] | kv_bad[:, :, None, None, :]
    return _Inputs(q, k, v, factors[0], factors[1], bad.reshape(B, K * G, T, -1))


def spoil(call: Call, outputs: tuple[Array, ...]) -> tuple[Array, ...]:
    """Makes the outputs NaN where a length is impossible."""
    length, layout = call.arguments.length, call.arguments.layout
    legal = length >= call.arguments.q.shape[1]
    if not layout.endless:
        legal &= length <= layout.capacity(call.arguments.k)
    return tuple(x + poison(~legal, x.dtype).reshape(-1, *(1,) * (x.ndim - 1)) for x in outputs)


def _compute(call: Call, inputs: _Inputs) -> tuple[tuple[Array, ...], Array]:
    """Returns the output and the statistics if wanted, and whether all that was met is finite."""
    B, T, K, G, _ = inputs.q.shape
    S, D = inputs.v.shape[1], inputs.v.shape[-1]
    given = call.arguments
    dtype = accumulation_dtype(given.q.dtype)
    at = places(given.layout, given.length, T, S)
    index = at.over(B, K * G)
    held = index.k >= 0
    dots = _dots(call.precision, inputs, dtype)
    if inputs.k_scale is not None:
        dots *= inputs.k_scale[:, :, None, None]
    dots = dots.reshape(B, K * G, T, S)
    finite = jnp.all(jnp.isfinite(dots) | ~held)
    score = call.scores(dots * given.scale.astype(dtype), *index, inputs=tiles(call.scores, at))
    if inputs.bad is not None:
        score += poison(inputs.bad, dtype)
    allowed = call.mask(*index, inputs=tiles(call.mask, at))
    score = jnp.where(allowed & held, score, MASKED)
    seen = score != MASKED

    largest = jnp.max(score, axis=-1)
    exponent = score - jax.lax.stop_gradient(finite_max(largest))[..., None]
    weight = jnp.where(seen, jnp.exp(exponent), 0)
    values = _weighted(call.precision, weight, inputs, dtype).reshape(B, K * G, T, D)
    sums = Sums(largest, values, jnp.sum(weight, axis=-1))
    if call.stats:
        exponent = jnp.where(seen, jnp.maximum(exponent, LOWEST_EXPONENT), 0)
        sums = sums._replace(
            surprise=jnp.sum(weight * exponent, axis=-1),
            first=jnp.sum(jnp.where(index.k == 0, weight, 0), axis=-1),
            distance=jnp.sum(weight * jnp.abs(index.q - index.k), axis=-1),
        )
    sinks = None if given.sinks is None else given.sinks.astype(dtype)[:, None]
    out, *stats = finish(sums, sinks)
    finite &= jnp.all(jnp.isfinite(out))
    return (jnp.moveaxis(out, 1, 2).astype(given.q.dtype), *stats), finite


def _dots(precision: Any, inputs: _Inputs, dtype: jnp.dtype) -> Array:
    """Returns `q.k`, `[B, K, G, T, S]`."""
    q, k = inputs.q, inputs.k.astype(inputs.q.dtype)
    B, T, K, G, H = q.shape
    precision = default_precision(q.dtype, precision)
    if K * G * T > _FEW_ROWS:
        return jnp.einsum(
            "btkgh,bskh->bkgts", q, k, precision=precision, preferred_element_type=dtype
        )
    # One product of keys `[S, K * H]` as they lie, with the queries of each head among zeros: to
    # bring the heads of the cache to the front would be a copy of it.
    among_zeros = jnp.einsum("btkgh,kx->bxgtkh", q, jnp.eye(K, dtype=q.dtype))
    dots = jnp.einsum(
        "brx,bsx->brs",
        among_zeros.reshape(B, -1, K * H),
        k.reshape(B, -1, K * H),
        precision=precision,
        preferred_element_type=dtype,
    )
    return dots.reshape(B, K, G, T, -1)


def _weighted(precision: Any, weight: Array, inputs: _Inputs, dtype: jnp.dtype) -> Array:
    """Returns the sum of the values over the keys, `[B, K, G, T, D]`."""
    v = inputs.v
    B, S, K, _ = v.shape
    weight = weight.reshape(B, K, -1, weight.shape[2], S)
    G, T = weight.shape[2:4]
    if inputs.v_scale is not None:
        weight *= inputs.v_scale[:, :, None, None]
    if K * G * T > _FEW_ROWS:
        v = v.astype(inputs.q.dtype)
        return jnp.einsum(
            "bkgts,bskd->bkgtd",
            weight.astype(v.dtype),
            v,
            precision=default_precision(v.dtype, precision),
            preferred_element_type=dtype,
        )

    def part(weight: Array, v: Array) -> Array:
        return jnp.sum(weight[..., None] * v.astype(dtype)[..., None, None, :], axis=-5)

    weight = jnp.moveaxis(weight, -1, 1)
    size = S // _SPLITS
    main = size * _SPLITS
    out = part(weight[:, main:], v[:, main:])
    if size:
        split = (x[:, :main].reshape(B, _SPLITS, size, *x.shape[2:]) for x in (weight, v))
        out += jnp.sum(part(*split), axis=1)
    return out
