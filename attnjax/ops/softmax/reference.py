"""The specification: exact softmax attention in plain jnp, O(T * S) memory.

Every other implementation is tested against this one, in values and in gradients.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.dropout import keep
from attnjax.masks import evaluate
from attnjax.numerics import MASKED, default_precision, finite_max, poison, split_nonfinite, widen
from attnjax.operands import whole
from attnjax.ops.softmax.problem import Problem
from attnjax.ops.softmax.stats import AttentionStats, stats_of
from attnjax.scores import ScoreMod, check_scores
from attnjax.typing import Index


def attend(problem: Problem) -> tuple[Array, AttentionStats | None]:
    """Computes attention as its definition reads.

    Args:
      problem: the call.

    Returns:
      The output `[B, T, N, D]` in the dtype of `v`, and the statistics if they are wanted.
    """
    size, dtype = problem.sizes, problem.accumulation_dtype
    (q, q_bad), (k, k_bad), (v, v_bad) = (
        split_nonfinite(x.astype(dtype)) for x in (problem.q, problem.k, problem.v)
    )
    groups = size["N"] // size["K"]
    k, v, kv_bad = (jnp.repeat(x, groups, axis=2) for x in (k, v, (k_bad | v_bad)))
    index = Index(
        jnp.arange(size["B"]).reshape(-1, 1, 1, 1),
        jnp.arange(size["N"]).reshape(1, -1, 1, 1),
        jnp.arange(size["T"]).reshape(1, 1, -1, 1),
        jnp.arange(size["S"]).reshape(1, 1, 1, -1),
    ).moved(problem.origin)
    precision = default_precision(dtype, problem.precision)
    fetch = whole(size["T"], size["S"])

    score = jnp.einsum("btnh,bsnh->bnts", q, k, precision=precision)
    score *= problem.scale.astype(dtype)
    for mod in problem.score_mods:
        if isinstance(mod, ScoreMod):
            tiles = (widen(fetch(o), dtype) for o in mod.operands(size))
            new = mod.apply(score, index, *tiles)
        else:
            new = mod(score, *index)
        score = check_scores(new, score)
    # The flags return after the score_mods, so that no derivative is taken at a NaN.
    score += poison(jnp.swapaxes(q_bad, 1, 2), dtype)[..., None]
    score += poison(jnp.swapaxes(kv_bad, 1, 2), dtype)[..., None, :]
    score = jnp.where(evaluate(problem.mask, index, fetch), score, MASKED)

    row_max = jax.lax.stop_gradient(jnp.max(score, axis=-1, initial=MASKED))
    empty = row_max == MASKED
    shift = finite_max(row_max)
    sinks = None
    if problem.sinks is not None:
        sinks = jnp.where(empty, MASKED, problem.sinks.astype(dtype)[:, None])
        shift = finite_max(jnp.maximum(row_max, jax.lax.stop_gradient(sinks)))
    shifted = score - shift[..., None]
    masked = score == MASKED
    weight = jnp.where(masked, 0, jnp.exp(shifted))
    total = jnp.sum(weight, axis=-1)
    if sinks is not None:
        total += jnp.exp(sinks - shift)
    total = jnp.where(empty, 1, total)
    # Again, because 0 divided by the NaN total of a row that sees a NaN would be NaN.
    weight = jnp.where(masked, 0, weight / total[..., None])

    kept = weight
    if problem.dropout is not None:
        dropout = problem.dropout
        kept_share = 1 - dropout.rate
        chosen = keep(dropout.words(), dropout.rate, index, dropout.shared)
        kept = jnp.where(chosen, weight / kept_share, 0)
    out = jnp.einsum("bnts,bsnd->btnd", kept, v, precision=precision)
    out = out.astype(problem.v.dtype)
    if not problem.stats and problem.origin is None:
        return out, None

    # weight * log(weight) is 0 where the weight is, and so is its derivative.
    positive = weight > 0
    log_weight = jnp.where(positive, shifted, 0) - jnp.log(total)[..., None]
    entropy = -jnp.sum(weight * jnp.where(positive, log_weight, 0), axis=-1)
    if sinks is not None:
        absent = sinks == MASKED
        log_sink = jnp.where(absent, 0, sinks - shift - jnp.log(total))
        entropy -= jnp.where(absent, 0, jnp.exp(log_sink)) * log_sink
    distance = jnp.sum(weight * jnp.abs(index.q - index.k), axis=-1)
    first = jnp.sum(jnp.where(index.k == 0, weight, 0), axis=-1)
    logsumexp = jnp.where(empty, MASKED, jnp.log(total) + shift)
    stop = jax.lax.stop_gradient
    return out, stats_of(problem, logsumexp, entropy, stop(row_max), stop(first), stop(distance))
