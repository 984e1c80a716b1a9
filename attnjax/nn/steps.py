"""Attention of the next positions of a sequence to a cache of all so far."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Float

from attnjax.api import attention
from attnjax.decoding import decode
from attnjax.dropout import Dropout
from attnjax.masks import Mask, Prefix
from attnjax.nn.cache import KVCache
from attnjax.nn.options import AttentionOptions
from attnjax.nn.shift import shift_mask, shift_score_mod
from attnjax.scores import ScoreFn, ScoreMod

# Measured on 4 cores: up to here `decode` is the faster one, with 256 to 32,768 keys, and its
# memory, O(T * S) for each head, stays a small part of the cache.
FEW_QUERIES = 16


def attend_to_cache(
    q: Float[Array, "B T N H"],
    cache: KVCache,
    mask: Mask,
    score_mods: tuple[ScoreMod | ScoreFn, ...],
    *,
    sinks: Float[Array, "N"] | None,
    dropout: Dropout | None,
    options: AttentionOptions,
) -> Float[Array, "B T N H"]:
    """Attends from the last T positions of a cache to all of it.

    Up to `FEW_QUERIES` queries go through `attnjax.decode`. More, those with dropout, and all where
    an implementation is named go through `attnjax.attention`, which that name is for.

    Args:
      q: queries of the last T positions.
      cache: keys and values, those of the last T positions included.
      mask: over positions of the whole sequence; arrays along queries belong to these T.
      score_mods: likewise.
      sinks: learned logits of the layer, or None.
      dropout: dropout on the weights, or None.
      options: what else the layer does.

    Returns:
      The output; NaN where a traced length is beyond the capacity is left to the caller.
    """
    k, v = cache.k.astype(q.dtype), cache.v.astype(q.dtype)
    shared: dict[str, Any] = {
        "scale": options.scale,
        "sinks": sinks,
        "precision": options.precision,
    }
    if q.shape[1] <= FEW_QUERIES and dropout is None and options.implementation is None:
        out: Array = decode(q, k, v, length=cache.length, mask=mask, score_mod=score_mods, **shared)
        return out
    offset = cache.length - q.shape[1]
    out = attention(
        q,
        k,
        v,
        mask=shift_mask(mask, offset) & Prefix(cache.length),
        score_mod=tuple(shift_score_mod(mod, offset) for mod in score_mods),
        dropout=dropout,
        implementation=options.implementation,
        **shared,
    )
    return out
