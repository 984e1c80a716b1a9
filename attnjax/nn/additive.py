"""Additive (Bahdanau) attention as a module."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from attnjax.additive import additive_attention
from attnjax.dropout import Dropout
from attnjax.masks import Mask, as_mask
from attnjax.nn.checks import check_sequence
from attnjax.nn.sigma import kernel_of
from attnjax.nn.watching import Seen, Watchable
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.sharding.partition import Partition, check_partition


class AdditiveAttention(Watchable):
    """Attention with scores `w . tanh(Wq x + Wk kv + b)`, of a sequence to itself or to another.

    Kernels are shaped as in `MultiHeadAttention`: `query [F, N, H]`, `key [G, K, H]`, `value [G, K,
    D]`, `out [N, D, O]`; `score_weight` and `score_bias` are `[N, H]`. `train()` and `eval()`
    switch dropout on and off; it is on at first.

    Source: Bahdanau et al., "Neural Machine Translation by Jointly Learning to Align and Translate"
    (2015), appendix A.1.2; here with several heads, and with values and output projected.

    Args:
      features: width F of the queries' sequence.
      num_heads: number of query heads N.
      num_kv_heads: number of key and value heads K, a divisor of N; None is N.
      hidden_features: number of hidden units H of each head; None is `features / num_heads`.
      head_dim: width D of each head's values; None is `features / num_heads`.
      kv_features: width G of the sequence that keys and values come from; None is F.
      out_features: width O of the output; None is F.
      dropout_rate: dropout on the attention weights.
      partition: axes of the mesh in context to spread attention over, as in
        `attnjax.additive_attention`.
      dtype: dtype of the computation; None promotes the input's with the parameters'.
      param_dtype: dtype of the parameters.
      rngs: for the parameters, and the stream `dropout`.

    Raises:
      ValueError: if sizes do not divide or the rate is outside `[0, 1)`.
    """

    def __init__(
        self,
        features: int,
        *,
        num_heads: int = 1,
        num_kv_heads: int | None = None,
        hidden_features: int | None = None,
        head_dim: int | None = None,
        kv_features: int | None = None,
        out_features: int | None = None,
        dropout_rate: float = 0.0,
        partition: Partition | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads < 1 or num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(
                "num_heads: expected a positive multiple of num_kv_heads, got "
                f"num_heads={num_heads}, num_kv_heads={num_kv_heads}."
            )
        if None in (hidden_features, head_dim) and features % num_heads:
            raise ValueError(
                f"features: expected a multiple of num_heads={num_heads}, or both hidden_features "
                f"and head_dim, got features={features}."
            )
        if not 0 <= dropout_rate < 1:
            raise ValueError(f"dropout_rate: expected a number in [0, 1), got {dropout_rate!r}.")
        hidden = features // num_heads if hidden_features is None else hidden_features
        head_dim = features // num_heads if head_dim is None else head_dim
        kv_features = features if kv_features is None else kv_features
        self.features, self.kv_features, self.num_heads = features, kv_features, num_heads
        self.dropout_rate = dropout_rate
        self.partition = None if partition is None else check_partition(partition)
        self.deterministic = False

        def project(inputs: Any, outputs: Any, **kwargs: Any) -> nnx.LinearGeneral:
            return nnx.LinearGeneral(
                inputs, outputs, dtype=dtype, param_dtype=param_dtype, rngs=rngs, **kwargs
            )

        # One bias inside the tanh serves queries and keys.
        self.query = project(features, (num_heads, hidden), use_bias=False)
        self.key = project(kv_features, (num_kv_heads, hidden), use_bias=False)
        self.value = project(kv_features, (num_kv_heads, head_dim))
        out_features = features if out_features is None else out_features
        self.out = project((num_heads, head_dim), out_features, axis=(-2, -1))
        init = nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        self.score_weight = nnx.Param(init(rngs.params(), (num_heads, hidden), param_dtype))
        self.score_bias = nnx.Param(jnp.zeros((num_heads, hidden), param_dtype))
        self.rngs = rngs.dropout.fork() if dropout_rate > 0 else None

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
        kv = x if kv is None else kv
        check_sequence("x", x, self.features)
        check_sequence("kv", kv, self.kv_features)
        dropout = None
        if self.rngs is not None and not self.deterministic:
            dropout = Dropout(self.dropout_rate, self.rngs())
        q, k, v, w = self.query(x), self.key(kv), self.value(kv), self.score_weight[...]
        arguments: dict[str, Any] = {"bias": self.score_bias[...], "mask": mask}
        result: Any = additive_attention(
            q, k, v, w, **arguments, dropout=dropout, partition=self.partition, stats=stats
        )
        out, found = result if stats else (result, None)

        def attend(q: Array, k: Array, v: Array) -> Any:
            return additive_attention(q, k, v, w, **arguments, partition=self.partition, stats=True)

        projected = self.out(out)
        self._show(lambda: Seen(q, k, as_mask(mask), False, attend, out, kernel_of(self.out)))
        return (projected, found) if found is not None else projected
