"""Terms for the loss that keep attention in bounds, as functions of its statistics."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from attnjax.focus.heads import HeadStats
from attnjax.ops.softmax.stats import AttentionStats

Stats = AttentionStats | HeadStats


def entropy_penalty(
    stats: Stats,
    *,
    floor: float | Array | None = None,
    ceiling: float | Array | None = None,
    share: bool = False,
    keys: int | Array | None = None,
    weight: Float[Array, "B T"] | None = None,
    strength: float | Array = 1.0,
) -> Float[Array, ""]:
    """Returns how far entropies lie outside of their limits, squared, and averaged.

    Each row of queries (or, of `HeadStats`, each head) costs `max(0, floor - e)^2` and
    `max(0, e - ceiling)^2`. A limit may be the value of a schedule at the step, and one schedule
    for both makes it a target. The statistics have to carry gradients: `AttentionStats` do, the
    `HeadStats` of a model do under `Watch(differentiable=True)`.

    A floor keeps heads from collapsing; it cannot bring back one that has: where a softmax gives
    all its weight to one key, the gradient of its entropy is 0. `z_loss` and `qk_clip` still act.

    Sources: Pereyra et al., "Regularizing Neural Networks by Penalizing Confident Output
    Distributions" (2017), section 3, for the hinge at a threshold; Zhai et al., "Stabilizing
    Transformer Training by Preventing Attention Entropy Collapse" (2023) for the entropy of
    attention as what goes wrong.

    Args:
      stats: `AttentionStats` with arrays `[B, N, T]` (stacked over layers `[L, B, N, T]`), or
        `HeadStats` with `[N]` (`[L, N]`).
      floor: the least entropy that costs nothing; a number, `[]`, `[N]` or `[L, N]`.
      ceiling: the greatest one, likewise.
      share: limits are shares of the greatest possible entropy, 0 to 1, instead of nats.
      keys: of `AttentionStats`: how many keys each query may see, a learned sink included, a number
        or broadcastable to `[B, N, T]`. Rows with fewer than two are then left out, and no row
        is asked for more than the logarithm of its keys. Needed by `share`.
      weight: of `AttentionStats`: weight of each row, for example 0 at padding; None counts all
        rows that have something to attend to.
      strength: factor on each head, broadcastable to `[N]` or `[L, N]`.

    Returns:
      float32: the mean over heads, of each the weighted mean over rows; 0 of no rows.

    Raises:
      ValueError: if there is no limit, or an argument is missing or does not belong to the
        statistics.
    """
    if floor is None and ceiling is None:
        raise ValueError("entropy_penalty: expected a floor, a ceiling or both, got neither.")
    if isinstance(stats, HeadStats):
        _check_rows("entropy_penalty", keys=keys, weight=weight)
        mean = stats.share if share else stats.entropy
        known = ~jnp.isnan(mean)
        cost = _outside(jnp.where(known, mean, 0.0), floor, ceiling)
        return jnp.mean(strength * jnp.where(known, cost, 0.0))
    if share and keys is None:
        raise ValueError(
            "entropy_penalty: expected keys, the number of keys of each query, with share=True and "
            "AttentionStats; or take HeadStats, which have the share."
        )
    entropy, used = stats.entropy, _used(stats)
    low, high = (None if x is None else _per_row(x) for x in (floor, ceiling))
    if keys is not None:
        keys = jnp.asarray(keys)
        most = jnp.log(jnp.where(keys > 1, keys, 2).astype(jnp.float32))
        used &= keys > 1
        if share:
            entropy = entropy / most
        elif low is not None:
            low = jnp.minimum(low, most)
    return jnp.mean(strength * _over_rows(_outside(entropy, low, high), used, weight))


def z_loss(
    stats: Stats, *, weight: Float[Array, "B T"] | None = None, strength: float | Array = 1.0
) -> Float[Array, ""]:
    """Returns the mean squared logsumexp of the scores.

    It pulls the softmax's denominator to 1, so logits cannot drift up together, and large ones cost
    the more the larger they are. Usual factors on it are 1e-5 to 1e-3. The statistics have to carry
    gradients, as for `entropy_penalty`.

    Sources: Zoph et al., "ST-MoE" (2022), section 3.2, for the router's softmax; Chameleon Team,
    "Chameleon: Mixed-Modal Early-Fusion Foundation Models" (2024) and Wortsman et al., "Small-scale
    proxies for large-scale Transformer training instabilities" (2023) for logits of models.

    Args:
      stats: as in `entropy_penalty`.
      weight: likewise.
      strength: likewise.

    Returns:
      float32: the mean over heads, of each the weighted mean over rows; 0 of no rows.

    Raises:
      ValueError: if there are weights of rows with `HeadStats`.
    """
    if isinstance(stats, HeadStats):
        _check_rows("z_loss", weight=weight)
        known = ~jnp.isnan(stats.logsumexp_sq)
        return jnp.mean(strength * jnp.where(known, stats.logsumexp_sq, 0.0))
    used = _used(stats)
    squares = jnp.where(used, stats.logsumexp, 0.0) ** 2
    return jnp.mean(strength * _over_rows(squares, used, weight))


def _outside(entropy: Array, floor: Any, ceiling: Any) -> Array:
    """Returns the squared distance from the interval of the limits."""
    cost = jnp.zeros_like(entropy)
    if floor is not None:
        cost += jnp.maximum(floor - entropy, 0.0) ** 2
    if ceiling is not None:
        cost += jnp.maximum(entropy - ceiling, 0.0) ** 2
    return cost


def _used(stats: AttentionStats) -> Array:
    """Returns which rows have something to attend to."""
    return stats.logsumexp > -jnp.inf


def _per_row(limit: float | Array) -> Array:
    """Returns a limit `[]`, `[N]` or `[L, N]` so that it broadcasts to rows."""
    limit = jnp.asarray(limit, jnp.float32)
    return limit[..., None, :, None] if limit.ndim else limit


def _over_rows(cost: Array, used: Array, weight: Array | None) -> Array:
    """Returns the weighted mean over rows, of `[*, B, N, T]` as `[*, N]`."""
    mass = used.astype(jnp.float32)
    if weight is not None:
        mass = mass * jnp.asarray(weight, jnp.float32)[:, None, :]
    mass = jnp.broadcast_to(mass, cost.shape)
    total = jnp.sum(mass, axis=(-3, -1))
    cost = jnp.sum(jnp.where(mass > 0, cost, 0.0) * mass, axis=(-3, -1))
    return cost / jnp.where(total > 0, total, 1.0)


def _check_rows(name: str, **given: Any) -> None:
    for argument, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name}: expected {argument}=None with HeadStats, which are means over rows."
            )
