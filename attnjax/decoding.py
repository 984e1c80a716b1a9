"""Attention of new queries to a cache of keys and values."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from attnjax.api import ScoreMods
from attnjax.masks import Causal, Mask, as_mask
from attnjax.ops.decode import dispatch
from attnjax.ops.decode.checks import check_cache, check_factors, check_reach, lengths_of
from attnjax.ops.decode.layout import Contiguous
from attnjax.ops.decode.problem import DecodeProblem
from attnjax.ops.softmax.plan import Plan
from attnjax.scores import as_score_mods
from attnjax.validate import (
    check_precision,
    check_scale,
    check_sinks,
    check_stats,
    over_shapes,
)


def decode(
    q: Any,
    k: Any,
    v: Any,
    *,
    length: int | Int[Array, "*B"],
    layout: Contiguous | None = None,
    k_scale: Float[Array, "B S K"] | None = None,
    v_scale: Float[Array, "B S K"] | None = None,
    mask: Mask | Array | None = None,
    score_mod: ScoreMods | None = None,
    scale: float | Array | None = None,
    sinks: Float[Array, "N"] | None = None,
    precision: Any = None,
    stats: bool = False,
    implementation: str | None = None,
) -> Any:
    """Computes attention of the last positions of a sequence to all of it, from a cache.

    Gives the last T rows of `attnjax.attention` over the whole sequence. Reads keys and values
    once where they lie, if the heads have few queries; memory is `O(T * S)` for each head beside
    the cache. Made for inference: gradients are right, but computed without care for speed.

    Args:
      q: queries of the last T positions, `length - T` to `length - 1`.
      k: cache of keys, the new ones written: `[B, S, K, H]`, or pages `[P, page_size, K, H]`.
        Floats in the dtype of `q`, or eight bits with `k_scale`. What it holds beyond `length` has
        no effect, but NaNs and infinities take time.
      v: cache of values, `[B, S, K, D]` or `[P, page_size, K, D]`, likewise.
      length: positions in the cache, the new ones included: an integer, or an array `[]` or `[B]`.
      layout: where the cache keeps each position: `Contiguous()` (or None), `Ring()` or
        `Paged(table)`.
      k_scale: factor of each key, in the layout of `k` without its last axis; see `quantize_kv`.
      v_scale: factor of each value.
      mask: as in `attention`; None is `Causal()`. Its arrays along keys are as long as the capacity
        of the cache. Those along queries have an entry for each of the T queries, or are as long as
        the capacity too and looked up by position.
      score_mod: as in `attention`, its arrays likewise.
      scale: as in `attention`.
      sinks: as in `attention`.
      precision: as in `attention`.
      stats: also return `AttentionStats` of these rows.
      implementation: a name never falls back; None chooses. `xla` runs everywhere; `tpu` is a
        kernel that reads only the blocks of the cache that hold something and that the mask may
        allow, where they lie; pages of heads narrower than 128 may be copied for it.

    Returns:
      The output `[B, T, N, D]` in the dtype of `q`; with `stats=True`, a pair of it and
      `AttentionStats`. Where a traced length is below T or beyond the capacity, they are NaN.

    Raises:
      ValueError: if an argument is wrong, or if a ring is too short for the mask.
      NotImplementedError: if the named implementation can't do what was asked.
    """
    problem = _problem(
        q=q,
        k=k,
        v=v,
        length=length,
        layout=layout,
        k_scale=k_scale,
        v_scale=v_scale,
        mask=mask,
        score_mod=score_mod,
        scale=scale,
        sinks=sinks,
        precision=precision,
        stats=stats,
    )
    out, statistics = dispatch.attend(problem, implementation)
    return out if statistics is None else (out, statistics)


def explain_decode(
    q: Any,
    k: Any,
    v: Any,
    *,
    length: int | Int[Array, "*B"],
    layout: Contiguous | None = None,
    k_scale: Float[Array, "B S K"] | None = None,
    v_scale: Float[Array, "B S K"] | None = None,
    mask: Mask | Array | None = None,
    score_mod: ScoreMods | None = None,
    scale: float | Array | None = None,
    sinks: Float[Array, "N"] | None = None,
    precision: Any = None,
    stats: bool = False,
    implementation: str | None = None,
) -> Plan:
    """Says how `decode` would compute a call, and why so; runs nothing.

    Args:
      q: queries, an array or a `jax.ShapeDtypeStruct`; so are all other arrays.
      k: as in `decode`, and so are all others.
      v: likewise.
      length: likewise; a count of visited blocks needs its value.
      layout: likewise.
      k_scale: likewise.
      v_scale: likewise.
      mask: likewise; a count of visited blocks needs the values of its arrays.
      score_mod: likewise.
      scale: likewise.
      sinks: likewise.
      precision: likewise.
      stats: likewise.
      implementation: likewise.

    Returns:
      The plan. Backward costs are those of plain XLA, through which gradients are computed.

    Raises:
      ValueError: if an argument is wrong.
      NotImplementedError: if the named implementation can't do what was asked.
    """
    arrays = dict(
        q=q,
        k=k,
        v=v,
        length=length,
        layout=layout,
        k_scale=k_scale,
        v_scale=v_scale,
        mask=mask,
        score_mod=score_mod,
        scale=scale,
        sinks=sinks,
    )

    def plan(**given: Any) -> Plan:
        problem = _problem(**given, precision=precision, stats=stats)
        known = Causal() if mask is None else as_mask(mask)
        return dispatch.explain(problem, known, length, implementation)

    return over_shapes(plan, arrays)


def _problem(
    *,
    q: Any,
    k: Any,
    v: Any,
    length: Any,
    layout: Any,
    k_scale: Any,
    v_scale: Any,
    mask: Any,
    score_mod: Any,
    scale: Any,
    sinks: Any,
    precision: Any,
    stats: Any,
) -> DecodeProblem:
    """Validates a call."""
    layout = Contiguous() if layout is None else layout
    if not isinstance(layout, Contiguous):
        raise ValueError(
            "layout: expected attnjax.Contiguous(), Ring() or Paged(table), "
            f"got {type(layout).__name__}."
        )
    q, k, v = (jnp.asarray(x) if isinstance(x, np.ndarray) else x for x in (q, k, v))
    check_cache(q, k, v, layout)
    (B, T, N, H), capacity = q.shape, layout.capacity(k)
    for name, factors, cache in (("k", k_scale, k), ("v", v_scale, v)):
        check_factors(name, factors, cache, q.dtype)
    mask = Causal() if mask is None else as_mask(mask)
    mods = as_score_mods(score_mod)
    check_reach(layout, mask, mods, {"B": B, "N": N, "T": capacity, "S": capacity}, T)
    return DecodeProblem(
        q,
        k,
        v,
        k_scale,
        v_scale,
        lengths_of(length, B, T, None if layout.endless else capacity),
        layout,
        mask,
        mods,
        check_scale(scale, H, jnp.promote_types(q.dtype, jnp.float32)),
        check_sinks(sinks, N),
        check_precision(precision),
        check_stats(stats),
    )
