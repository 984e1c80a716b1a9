"""How many keys each query may see, without an array over queries and keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from attnjax.masks import Mask, evaluate
from attnjax.operands import gather
from attnjax.typing import Index

_TILE = 1 << 22
"""Most pairs of query and key that are looked at together."""


def allowed_keys(mask: Mask, *, B: int, T: int, S: int, N: int) -> Int[Array, "#B #N T"]:
    """Counts the keys that each query may see.

    Every pair is looked at, a few queries at a time; the memory is O(T + S).

    Args:
      mask: which query may see which key.
      B: batch elements.
      T: queries.
      S: keys.
      N: query heads.

    Returns:
      Counts, int32; with an axis of 1 where the mask is the same along it.
    """
    b, h, keys = jnp.arange(B)[:, None, None], jnp.arange(N)[:, None], jnp.arange(S)

    def allowed(query: Array) -> Array:
        index = Index(b, h, query, keys)
        # Not `mask.at`, which would spread what is the same for all heads over the heads.
        found = evaluate(mask, index, gather(index))
        return jnp.broadcast_to(found, (*jnp.broadcast_shapes(found.shape, (1, 1, 1))[:2], S))

    batch, heads, _ = jax.eval_shape(allowed, jnp.int32(0)).shape
    rows = max(1, min(T, _TILE // max(1, batch * heads * S)))

    def count(query: Array) -> Array:
        return jnp.sum(allowed(query), axis=-1, dtype=jnp.int32)

    return jnp.moveaxis(jax.lax.map(count, jnp.arange(T), batch_size=rows), 0, -1)
