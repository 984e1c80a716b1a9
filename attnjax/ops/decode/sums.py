"""Sums over the keys of a cache: made part by part, merged, and normalised at last."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attnjax.numerics import LOWEST_EXPONENT, MASKED, finite_max


class Sums(NamedTuple):
    """Sums over some keys, with the weights `exp(score - largest)`, or 0 for what is not seen.

    Attributes:
      largest: the largest score, minus infinity if no key is seen.
      out: of the values.
      total: of the weights.
      surprise: of `score - largest`; None without statistics, and so are the last two.
      first: the weight of key 0.
      distance: of `|q_idx - k_idx|`.
    """

    largest: Float[Array, "*rows"]
    out: Float[Array, "*rows D"]
    total: Float[Array, "*rows"]
    surprise: Float[Array, "*rows"] | None = None
    first: Float[Array, "*rows"] | None = None
    distance: Float[Array, "*rows"] | None = None


def merge(parts: Sums, axis: int) -> Sums:
    """Merges sums over parts of the keys, which lie along an axis of every array."""
    largest = jnp.max(parts.largest, axis=axis)
    moved = parts.largest - jnp.expand_dims(finite_max(largest), axis)
    shrink = jnp.exp(moved)
    surprise = None
    if parts.surprise is not None:
        moved = jnp.maximum(moved, LOWEST_EXPONENT)
        surprise = jnp.sum(shrink * (parts.surprise + parts.total * moved), axis=axis)
    first, distance = (
        None if x is None else jnp.sum(shrink * x, axis=axis) for x in (parts.first, parts.distance)
    )
    return Sums(
        largest,
        jnp.sum(shrink[..., None] * parts.out, axis=axis),
        jnp.sum(shrink * parts.total, axis=axis),
        surprise,
        first,
        distance,
    )


def finish(sums: Sums, sinks: Array | None) -> tuple[Array, ...]:
    """Normalises the sums over all keys.

    Args:
      sums: over all keys.
      sinks: logits that join the denominator, broadcastable to the rows, or None.

    Returns:
      The output `[*rows, D]`, and with statistics each of `AttentionStats`, in float32.
    """
    empty = sums.largest == MASKED
    shift = jax.lax.stop_gradient(finite_max(sums.largest))
    total, surprise, shrink = sums.total, sums.surprise, jnp.ones_like(shift)
    if sinks is not None:
        top = jnp.where(empty, shift, jnp.maximum(shift, jax.lax.stop_gradient(sinks)))
        sink = jnp.where(empty, LOWEST_EXPONENT, jnp.maximum(sinks - top, LOWEST_EXPONENT))
        weight = jnp.where(empty, 0, jnp.exp(sink))
        moved = jnp.maximum(shift - top, LOWEST_EXPONENT)
        shift, shrink = top, jnp.exp(moved)
        if surprise is not None:
            surprise = shrink * (surprise + total * moved) + weight * sink
        total = total * shrink + weight
    total = jnp.where(empty, 1, total)
    share = shrink / total
    out = sums.out * share[..., None]
    if surprise is None or sums.first is None or sums.distance is None:
        return (out,)
    log_total = jnp.log(total)
    stats = (
        jnp.where(empty, MASKED, log_total + shift),
        sums.largest,
        jnp.where(empty, 0, log_total - surprise / total),
        sums.first * share,
        sums.distance * share,
    )
    return out, *(x.astype(jnp.float32) for x in stats)
