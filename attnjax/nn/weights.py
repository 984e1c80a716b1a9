"""Attention weights of one query, from attention that keeps none."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def last_weights(
    attend: Callable[[Float[Array, "B S K 1"]], Float[Array, "B T N 1"]],
    shape: tuple[int, ...],
) -> Float[Array, "B S"]:
    """Returns the weights of the last query, averaged over the heads.

    The output is linear in the values, so its derivative by a value is the value's weight.

    Args:
      attend: attention as a function of the values.
      shape: batch, keys and key heads of the values.

    Returns:
      float32; rows sum to 1 less what learned sinks take, and are 0 where there is nothing to
      attend to.
    """

    def last(values: Array) -> Array:
        out = attend(values)[:, -1].astype(jnp.float32)
        return jnp.sum(out) / out.shape[1]

    return jnp.sum(jax.grad(last)(jnp.ones((*shape, 1), jnp.float32)), axis=(2, 3))
