"""An integer fingerprint of every array of a pytree, computed where the arrays are."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def fingerprint(tree: Any) -> dict[str, int]:
    """A 32-bit number for each array, keyed by its path.

    Integer arithmetic modulo 2^32 has no rounding, so the numbers do not depend on how an array is
    laid out over devices. Word i of n counts, plus one, 2 (n + i) + 1 times: an odd weight of its
    own, so that one changed word always changes the number, and nearly every other change does.
    """
    leaves = jax.tree_util.tree_leaves_with_path(_numbers(tree))
    return {jax.tree_util.keystr(path): int(x) for path, x in leaves}


@jax.jit
def _numbers(tree: Any) -> Any:
    return jax.tree.map(_number, tree)


def _number(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    words = _words(x)
    index = jnp.uint32(math.prod(words.shape) % 2**32)
    for axis in range(words.ndim):
        stride = jnp.uint32(math.prod(words.shape[axis + 1 :]) % 2**32)
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * stride
    return jnp.sum((words + jnp.uint32(1)) * (jnp.uint32(2) * index + 1), dtype=jnp.uint32)


def _words(x: jax.Array) -> jax.Array:
    """The bits of `x` as uint32 values; complex and 64-bit numbers become several words."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag])
    bits = jnp.iinfo(x.dtype).bits if jnp.issubdtype(x.dtype, jnp.integer) else None
    bits = bits or jnp.finfo(x.dtype).bits
    if bits < 8:
        return x.astype(jnp.float32).view(jnp.uint32)
    unsigned = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint32}[bits]
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
