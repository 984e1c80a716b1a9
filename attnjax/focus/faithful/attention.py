"""Attention as an explanation: raw weights, and weights times the gradient by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from attnjax.masks import Mask
from attnjax.nn import AttentionPooling


class WeightedPooling(NamedTuple):
    """Weights of an attention pooling, and what the score would gain by more of each.

    Attributes:
      weights: the attention weights, 0 where a position does not count.
      gradients: derivative of the score by each weight, as if it were free (the softmax keeps the
        sum at 1); 0 where a position does not count.
    """

    weights: Float[Array, "B N T"]
    gradients: Float[Array, "B N T"]

    @property
    def raw(self) -> Float[Array, "B T"]:
        """The weights, averaged over the heads."""
        return jnp.mean(self.weights, axis=1)

    @property
    def gradient_weighted(self) -> Float[Array, "B T"]:
        """Weights times gradients, summed over the heads: what each position adds to first order.

        Source: Chefer et al., "Transformer Interpretability Beyond Attention Visualization" (2021),
        equation 13, without the restriction to positive terms, so that it can speak against.
        """
        return jnp.sum(self.weights * self.gradients, axis=1)


def pooling_attention(
    pooling: AttentionPooling,
    x: Float[Array, "B T F"],
    score: Callable[[Float[Array, "B F"]], Float[Array, "B"]],
    *,
    mask: Mask | Bool[Array, "B T"] | None = None,
    lengths: Int[Array, "B"] | None = None,
) -> WeightedPooling:
    """Takes the weights of an attention pooling and the gradient of a score by them.

    A head's output is its weights' mean of the values, so the derivative by a weight is its value
    times the derivative by the output: one gradient, whatever the number of positions.

    Args:
      pooling: the module.
      x: the positions that it pools.
      score: what follows it, given its output; each number from its own example alone.
      mask: as in the call of the module.
      lengths: as in the call of the module.

    Returns:
      Weights and gradients, in float32.

    Raises:
      ValueError: as the module.
    """
    result = pooling(x, mask=mask, lengths=lengths, return_weights=True)
    pooled, weights = result
    (B, T, _), N = x.shape, pooling.num_heads
    cotangent = jax.grad(lambda pooled: jnp.sum(score(pooled)))(pooled)
    gradients = jnp.einsum(
        "btnd,bnd->bnt",
        x.reshape(B, T, N, -1).astype(jnp.float32),
        cotangent.reshape(B, N, -1).astype(jnp.float32),
    )
    return WeightedPooling(weights, jnp.where(weights > 0, gradients, 0))
