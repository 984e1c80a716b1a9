"""Attention with the general activated score as a module."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from attnjax.masks import Mask
from attnjax.nn.attention import MultiHeadAttention
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.scores import Activation, activated


class ActivatedAttention(nnx.Module):
    """Attention with weights `softmax(sigma(q.k / sqrt(H) + v.h + b_a))`.

    `h` is the attended position before its projections, `v` a learned vector and `b_a` a learned
    number per head. The factor of the dot product only changes where training starts, for the
    projections can undo it. With `activation="identity"` the true gradient of `b_a` is 0.

    Args:
      features: width F of the queries' sequence.
      activation: sigma: `sigmoid`, `tanh`, `relu` or `identity`.
      num_heads: number of query heads N.
      kv_features: width G of the sequence that keys and values come from; None is F.
      dtype: dtype of the computation; None promotes the input's with the parameters'.
      param_dtype: dtype of the parameters.
      rngs: for the parameters, and the stream `dropout`.
      **sizes: what else `MultiHeadAttention` takes: `num_kv_heads`, `head_dim`, `out_features`,
        `options`.

    Raises:
      ValueError: if the activation is unknown, or sizes or options do not fit.
    """

    def __init__(
        self,
        features: int,
        *,
        activation: Activation = "sigmoid",
        num_heads: int = 1,
        kv_features: int | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
        **sizes: Any,
    ) -> None:
        activated(activation)
        kv_features = features if kv_features is None else kv_features
        self.activation = activation
        self.attention = MultiHeadAttention(
            features,
            num_heads=num_heads,
            kv_features=kv_features,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
            **sizes,
        )
        self.per_key = nnx.Linear(
            kv_features, num_heads, use_bias=False, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.score_bias = nnx.Param(jnp.zeros(num_heads, param_dtype))

    def __call__(
        self,
        x: Float[Array, "B T F"],
        kv: Float[Array, "B S G"] | None = None,
        *,
        mask: Mask | Array | None = None,
        stats: bool = False,
    ) -> Array | tuple[Array, AttentionStats]:
        """Attends.

        Args:
          x: the sequence that asks.
          kv: the sequence that is attended to; None is `x`.
          mask: a Mask, or a bool array broadcastable to `[B, N, T, S]`, True = attend.
          stats: also return `AttentionStats`.

        Returns:
          `[B, T, O]`; with `stats=True`, a pair of it and the statistics.

        Raises:
          ValueError: if an argument is wrong.
        """
        per_key = jnp.swapaxes(self.per_key(x if kv is None else kv), 1, 2)
        score = activated(self.activation, per_key=per_key, bias=self.score_bias[...])
        return self.attention(x, kv, mask=mask, score_mod=score, stats=stats)
