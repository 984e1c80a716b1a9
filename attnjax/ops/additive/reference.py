"""The specification: additive scores in plain jnp, O(T * S * H) memory."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array

from attnjax.numerics import default_precision
from attnjax.ops.additive.problem import AdditiveProblem, as_softmax
from attnjax.ops.softmax import reference
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.scores import bias


def attend(problem: AdditiveProblem) -> tuple[Array, AttentionStats | None]:
    """Computes additive attention as its definition reads.

    Args:
      problem: the call.

    Returns:
      The output `[B, T, N, D]` in the dtype of `v`, and the statistics if they are wanted.
    """
    q, k, w, softmax = as_softmax(problem)
    k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
    hidden = jnp.tanh(q[:, :, None] + k[:, None])
    precision = default_precision(q.dtype, None)
    scores = bias(jnp.einsum("btsnh,nh->bnts", hidden, w, precision=precision))
    return reference.attend(dataclasses.replace(softmax, score_mods=(scores, *softmax.score_mods)))
