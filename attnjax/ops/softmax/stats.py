"""What an attention call tells about where it looked."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from attnjax.ops.softmax.problem import Problem


class AttentionStats(NamedTuple):
    """Statistics of the softmax weights, in float32, from the same pass as the output.

    The weights are those before dropout. With learned sinks, the softmax runs over the keys and
    the sink. A row with nothing to attend to has logsumexp and max_logit minus infinity and 0
    elsewhere. `logsumexp` and `entropy` are differentiable; gradients stop at the others.

    Attributes:
      logsumexp: log of the softmax denominator, the sink's share included, `[B, N, T]`.
      max_logit: largest score of the keys, after score_mods, `[B, N, T]`.
      entropy: entropy of the weights in nats, the sink's included, `[B, N, T]`:
        `logsumexp - sum(weight * score)`.
      sink_mass: weight on key 0, `[B, N, T]`.
      distance: sum of `weight * |q_idx - k_idx|`, in positions, `[B, N, T]`; a learned sink counts
        as distance 0.
    """

    logsumexp: Float[Array, "B N T"]
    max_logit: Float[Array, "B N T"]
    entropy: Float[Array, "B N T"]
    sink_mass: Float[Array, "B N T"]
    distance: Float[Array, "B N T"]


def stats_of(problem: Problem, logsumexp: Array, *others: Array) -> AttentionStats | None:
    """Puts statistics together from what a kernel gave.

    Args:
      problem: the call.
      logsumexp: `[B, N, T]`.
      *others: with statistics, entropy, max_logit, sink_mass and distance, likewise.

    Returns:
      The statistics; for a part of a larger call that wants none, logsumexp and zeros; else None.
    """
    if problem.stats:
        logsumexp, entropy, *rest = (x.astype(jnp.float32) for x in (logsumexp, *others))
        max_logit, sink_mass, distance = rest
        return AttentionStats(logsumexp, max_logit, entropy, sink_mass, distance)
    if problem.origin is None:
        return None
    zero = jnp.zeros(logsumexp.shape, jnp.float32)
    return AttentionStats(logsumexp.astype(jnp.float32), zero, zero, zero, zero)
