"""Decoding in plain XLA, on every platform: keys and values are read once, where they lie."""

from __future__ import annotations

from typing import NamedTuple

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
from attnjax.ops.decode.problem import DecodeProblem
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.scores import check_scores
from attnjax.typing import Index

# Sums over the keys run side by side in so many parts.
_SPLITS = 64
# Up to so many rows of all heads, products with zeros are cheaper than a transposed cache.
_FEW_ROWS = 64


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


def attend(problem: DecodeProblem) -> tuple[Array, AttentionStats | None]:
    """Computes attention of the last queries to the cache.

    Args:
      problem: the call.

    Returns:
      The output `[B, T, N, D]` in the dtype of `q`, and the statistics if they are wanted.
    """
    B, T, N, H = problem.q.shape
    dtype = accumulation_dtype(problem.q.dtype)
    k, v = problem.layout.gather(problem.k), problem.layout.gather(problem.v)
    k_scale, v_scale = (
        None if x is None else jnp.moveaxis(problem.layout.gather(x).astype(dtype), 1, 2)
        for x in (problem.k_scale, problem.v_scale)
    )
    K = k.shape[2]
    inputs = _Inputs(problem.q.reshape(B, T, K, N // K, H), k, v, k_scale, v_scale, None)
    positions = problem.layout.positions(k.shape[1], problem.length)
    out, stats, finite = _compute(problem, inputs, positions)
    # A NaN or an infinity is rare, and looking for it in the cache would take as long as all else.
    # One that no row may see spoils others here too, for 0 times NaN is NaN.
    out, stats = jax.lax.cond(
        finite, lambda: (out, stats), lambda: _compute(problem, _clean(inputs), positions)[:2]
    )
    legal = problem.length >= T
    if not problem.layout.endless:
        legal &= problem.length <= k.shape[1]
    spoil = poison(~legal, out.dtype).reshape(-1, 1, 1, 1)
    if stats is not None:
        stats = AttentionStats(*(x + spoil[..., 0].astype(x.dtype) for x in stats))
    return out + spoil, stats


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


def _compute(
    problem: DecodeProblem, inputs: _Inputs, positions: Array
) -> tuple[Array, AttentionStats | None, Array]:
    """Returns the output, the statistics if wanted, and whether all that was met is finite."""
    B, T, K, G, _ = inputs.q.shape
    S, D = inputs.v.shape[1], inputs.v.shape[-1]
    N = K * G
    dtype = accumulation_dtype(problem.q.dtype)
    index = Index(
        jnp.arange(B).reshape(-1, 1, 1, 1),
        jnp.arange(N).reshape(1, -1, 1, 1),
        (problem.length[:, None] - T + jnp.arange(T)).reshape(-1, 1, T, 1),
        positions.reshape(-1, 1, 1, S),
    )
    held = index.k >= 0
    dots = _dots(problem, inputs, dtype)
    if inputs.k_scale is not None:
        dots *= inputs.k_scale[:, :, None, None]
    dots = dots.reshape(B, N, T, S)
    finite = jnp.all(jnp.isfinite(dots) | ~held)
    score = dots * problem.scale.astype(dtype)
    for mod in problem.score_mods:
        score = check_scores(mod(score, *index), score)
    if inputs.bad is not None:
        score += poison(inputs.bad, dtype)
    score = jnp.where(problem.mask.at(*index) & held, score, MASKED)
    seen = score != MASKED

    largest = jnp.max(score, axis=-1)
    empty = largest == MASKED
    sinks = None if problem.sinks is None else problem.sinks.astype(dtype)[:, None]
    shift = largest if sinks is None else jnp.maximum(largest, jnp.where(empty, MASKED, sinks))
    shift = finite_max(shift)
    weight = jnp.where(seen, jnp.exp(score - shift[..., None]), 0)
    total = jnp.sum(weight, axis=-1)
    sink = None
    if sinks is not None:
        sink = jnp.where(empty, LOWEST_EXPONENT, jnp.maximum(sinks - shift, LOWEST_EXPONENT))
        total += jnp.where(empty, 0, jnp.exp(sink))
    total = jnp.where(empty, 1, total)
    out = _weighted(problem, weight, inputs, dtype) / total.reshape(B, K, G, T, 1)
    finite &= jnp.all(jnp.isfinite(out))
    out = jnp.moveaxis(out, -2, 1).reshape(B, T, N, D).astype(problem.q.dtype)
    if not problem.stats:
        return out, None, finite

    exponent = jnp.where(seen, jnp.maximum(score - shift[..., None], LOWEST_EXPONENT), 0)
    score_sum = jnp.sum(weight * exponent, axis=-1)
    if sink is not None:
        score_sum += jnp.where(empty, 0, jnp.exp(sink) * sink)
    first = jnp.sum(jnp.where(index.k == 0, weight, 0), axis=-1)
    distance = jnp.sum(weight * jnp.abs(index.q - index.k), axis=-1)
    log_total = jnp.log(total)
    stats = AttentionStats(
        *(
            x.astype(jnp.float32)
            for x in (
                jnp.where(empty, MASKED, log_total + shift),
                largest,
                jnp.where(empty, 0, log_total - score_sum / total),
                first / total,
                distance / total,
            )
        )
    )
    return out, stats, finite


def _dots(problem: DecodeProblem, inputs: _Inputs, dtype: jnp.dtype) -> Array:
    """Returns `q.k`, `[B, K, G, T, S]`."""
    q, k = inputs.q, inputs.k.astype(problem.q.dtype)
    B, T, K, G, H = q.shape
    precision = default_precision(q.dtype, problem.precision)
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


def _weighted(problem: DecodeProblem, weight: Array, inputs: _Inputs, dtype: jnp.dtype) -> Array:
    """Returns the sum of the values over the keys, `[B, K, G, T, D]`."""
    v = inputs.v
    B, S, K, _ = v.shape
    weight = weight.reshape(B, K, -1, weight.shape[2], S)
    G, T = weight.shape[2:4]
    if inputs.v_scale is not None:
        weight *= inputs.v_scale[:, :, None, None]
    if K * G * T > _FEW_ROWS:
        v = v.astype(problem.q.dtype)
        return jnp.einsum(
            "bkgts,bskd->bkgtd",
            weight.astype(v.dtype),
            v,
            precision=default_precision(v.dtype, problem.precision),
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
