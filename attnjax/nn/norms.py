"""Normalisation layers by name."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

NormKind = Literal["layer", "rms", "rms_offset"]
NORMS: tuple[NormKind, ...] = ("layer", "rms", "rms_offset")


class OffsetRMSNorm(nnx.Module):
    """RMS normalisation times `1 + scale`, where the scale starts at 0; computed in float32.

    Weight decay then pulls the factor to 1, not to 0. Source: Gemma Team, "Gemma: Open Models
    Based on Gemini Research and Technology" (2024).

    Args:
      features: width F.
      epsilon: added to the mean square.
      dtype: dtype of the output; None promotes the input's with the parameter's.
      param_dtype: dtype of the scale.
    """

    def __init__(
        self,
        features: int,
        *,
        epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
    ) -> None:
        self.scale = nnx.Param(jnp.zeros(features, param_dtype))
        self.epsilon, self.dtype = epsilon, dtype

    def __call__(self, x: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
        """Normalises the last axis."""
        scale = self.scale[...]
        dtype = jnp.promote_types(x.dtype, scale.dtype) if self.dtype is None else self.dtype
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        return (wide * (1 + scale.astype(wide.dtype))).astype(dtype)


def build_norm(
    kind: NormKind,
    features: int,
    *,
    epsilon: float,
    use_bias: bool = True,
    dtype: Any,
    param_dtype: Any,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Returns a normalisation over the last axis.

    Args:
      kind: `layer`, `rms`, or `rms_offset` for `OffsetRMSNorm`.
      features: width.
      epsilon: added to the variance.
      use_bias: of `layer`.
      dtype: dtype of the computation.
      param_dtype: dtype of the parameters.
      rngs: for the parameters.
    """
    shared: dict[str, Any] = {"epsilon": epsilon, "dtype": dtype, "param_dtype": param_dtype}
    if kind == "rms_offset":
        return OffsetRMSNorm(features, **shared)
    if kind == "rms":
        return nnx.RMSNorm(features, rngs=rngs, **shared)
    return nnx.LayerNorm(features, use_bias=use_bias, rngs=rngs, **shared)
