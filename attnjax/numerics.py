"""Numbers that every implementation shares: dtypes, the mask fill value, the empty row.

The rules, for every implementation:

* Scores and the softmax are computed in `accumulation_dtype(input dtype)`, float32 for all inputs
  but float64.
* A masked score is `MASKED`, minus infinity, so that its weight is exactly 0.
* A row whose largest score is `MASKED` has nothing to attend to. Its output is 0, its logsumexp
  minus infinity, its entropy 0, and it sends back no gradient, with or without sinks.
* NaN or infinity in a query, key or value reaches the rows that may see it, and no other.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

MASKED = -float("inf")

# exp(x) is 0 in float32 below -104 and in float64 below -746, so clamping the exponent here leaves
# x * exp(x) unchanged and keeps 0 * inf out of it.
LOWEST_EXPONENT = -800.0


def accumulation_dtype(*dtypes: jnp.dtype) -> jnp.dtype:
    """Returns the dtype of scores and sums for inputs of these dtypes: float32, or float64."""
    return jnp.promote_types(jnp.result_type(*dtypes), jnp.float32)


def widen(x: Array, dtype: jnp.dtype) -> Array:
    """Returns a float array in `dtype` if that is wider, and any other array as it is."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return x.astype(jnp.promote_types(x.dtype, dtype))


def matmul_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype in which tiles are multiplied.

    float16 is widened: score gradients leave its range (65,504) long before a model diverges.
    """
    return jnp.dtype(jnp.float32) if dtype == jnp.float16 else jnp.dtype(dtype)


def default_precision(dtype: jnp.dtype, precision: Any) -> Any:
    """Returns the matmul precision: what was asked for, else full float32 for float32 inputs."""
    if precision is None and jnp.dtype(dtype).itemsize >= 4:
        return jax.lax.Precision.HIGHEST
    return precision


def split_nonfinite(x: Array) -> tuple[Array, Array]:
    """Separates an array `[..., F]` from its NaNs and infinities.

    A masked weight is 0, but 0 times NaN is NaN, so a matrix product would carry a masked NaN into
    rows that must not see it. The products therefore run on the finite part, and the flag is put
    back where a row may see it.

    Returns:
      The array with non-finite entries replaced by 0, and a bool array `[...]` that is True where
      any entry was not finite.
    """
    finite = jnp.isfinite(x)
    return jnp.where(finite, x, jnp.zeros_like(x)), ~jnp.all(finite, axis=-1)


def poison(bad: Array, dtype: jnp.dtype) -> Array:
    """Returns NaN where `bad`, else 0: an addend that spoils exactly the flagged entries."""
    return jnp.where(bad, jnp.asarray(jnp.nan, dtype), jnp.asarray(0, dtype))


def finite_max(row_max: Array) -> Array:
    """Returns a row maximum that is safe to subtract: 0 where the row has nothing to attend to."""
    return jnp.where(row_max == MASKED, jnp.zeros_like(row_max), row_max)
