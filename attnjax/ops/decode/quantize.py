"""Keys and values in eight bits."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


def quantize_kv(
    x: Float[Array, "*axes width"], dtype: Any = jnp.int8
) -> tuple[Array, Float[Array, "*axes"]]:
    """Rounds each key or value to eight bits, with a factor of its own.

    Args:
      x: keys or values.
      dtype: int8, or a float type of eight bits such as `jnp.float8_e4m3fn`.

    Returns:
      The rounded array and float32 factors, so that `values * factors[..., None]` is about `x`. A
      NaN or an infinity makes the factor of its key NaN.

    Raises:
      ValueError: if `x` is not float, or `dtype` not of eight bits.
    """
    if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x: expected a float array, got {getattr(x, 'dtype', type(x).__name__)}.")
    dtype = jnp.dtype(dtype)
    is_float = jnp.issubdtype(dtype, jnp.floating)
    if dtype != jnp.int8 and not (is_float and dtype.itemsize == 1):
        raise ValueError(f"dtype: expected int8 or a float type of eight bits, got {dtype}.")
    limit = float(jnp.finfo(dtype).max) if is_float else 127.0
    wide = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=-1)
    bad = ~jnp.isfinite(largest)
    scale = jnp.where((largest == 0) | bad, 1, largest / limit)
    ratio = jnp.where(bad[..., None], 0, wide / scale[..., None])
    ratio = jnp.clip(ratio, -limit, limit)
    values = (ratio if is_float else jnp.round(ratio)).astype(dtype)
    return values, jnp.where(bad, jnp.nan, scale)
