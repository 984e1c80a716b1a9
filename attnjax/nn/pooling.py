"""Attention pooling: one vector for a whole sequence, and how much each position gave to it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from attnjax.api import attention
from attnjax.masks import Mask, Prefix, as_mask
from attnjax.nn.watching import Watchable, seen_attention
from attnjax.sharding.partition import Partition

_SCORES = ("additive", "dot")


class AttentionPooling(Watchable):
    """Averages a sequence under learned weights.

    Each head has a learned query `w`. A position `x` scores `w . tanh(W x + c)` (`additive`) or
    `w . x / sqrt(F / N)` (`dot`); the weights are the softmax of the scores over the positions.
    Head `n` averages the `n`-th of N equal slices of the features, so that with one head the result
    is the weighted mean of whole positions. The values themselves are not projected.

    Source: Yang et al., "Hierarchical Attention Networks for Document Classification" (2016),
    section 2.2, for the additive score with one head.

    Args:
      features: width F of the positions, a multiple of `num_heads`.
      num_heads: number of heads N.
      score: `additive` or `dot`.
      hidden_features: for `additive`: width of the tanh layer over all heads, a multiple of
        `num_heads`; None is `features`.
      dtype: dtype of the computation; None promotes the input's with the parameters'.
      param_dtype: dtype of the parameters.
      rngs: for the parameters.

    Raises:
      ValueError: if the sizes don't divide or the score is unknown.
    """

    single_query: ClassVar[bool] = True
    """`attnjax.nn.spread` gives it batch axes only."""

    def __init__(
        self,
        features: int,
        *,
        num_heads: int = 1,
        score: Literal["additive", "dot"] = "additive",
        hidden_features: int | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if score not in _SCORES:
            raise ValueError(f"score: expected one of {', '.join(_SCORES)}; got {score!r}.")
        if score == "dot" and hidden_features is not None:
            raise ValueError(
                "hidden_features: expected None with score='dot', which has no hidden layer, "
                f"got {hidden_features}."
            )
        hidden = features if hidden_features is None else hidden_features
        for name, width in (("features", features), ("hidden_features", hidden)):
            if num_heads < 1 or width < 1 or width % num_heads:
                raise ValueError(
                    f"{name}: expected a positive multiple of num_heads={num_heads}, got {width}."
                )
        self.features = features
        self.num_heads = num_heads
        self.score = score
        self.dtype = dtype
        self.partition: Partition | None = None  # set by `attnjax.nn.spread`
        init = nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        shape = (num_heads, hidden // num_heads)
        self.query = nnx.Param(init(rngs.params(), shape, param_dtype))
        self.hidden = (
            nnx.Linear(features, hidden, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
            if score == "additive"
            else None
        )

    def __call__(
        self,
        x: Float[Array, "B T F"],
        *,
        mask: Mask | Bool[Array, "B T"] | None = None,
        lengths: Int[Array, "B"] | None = None,
        return_weights: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Pools a batch of sequences.

        NaN or infinity at a position that no head may see reaches neither outputs nor gradients.

        Args:
          x: the positions.
          mask: which positions count: bool `[B, T]`, True = counts, or a `Mask`, which sees the
            positions as keys of one query at position 0.
          lengths: number of positions of each sequence that count, from the first; a mask holds in
            addition.
          return_weights: also return the weights.

        Returns:
          The pooled features `[B, F]`; with `return_weights=True`, a pair of them and the weights
          `[B, N, T]` in float32, which sum to 1 over T. A sequence of which no position counts has
          features 0 and weights 0.

        Raises:
          ValueError: if a shape or a dtype does not fit.
        """
        if x.ndim != 3 or x.shape[-1] != self.features:
            raise ValueError(
                f"x: expected an array [B, T, F={self.features}], got shape {tuple(x.shape)}."
            )
        (B, T, F), N = x.shape, self.num_heads
        allowed = _allowed(mask, lengths, B, N, T)
        # A masked NaN would otherwise meet its zero gradient inside the hidden layer's kernel.
        x = jnp.where(jnp.any(allowed, axis=1)[..., None], x, jnp.zeros_like(x))

        query, x = nnx.nn.dtypes.promote_dtype((self.query[...], x), dtype=self.dtype)
        scale = 1.0
        if self.hidden is not None:
            keys = jnp.tanh(self.hidden(x)).reshape(B, T, N, -1)
        else:
            keys = x.reshape(B, T, N, F // N)
            scale = (F // N) ** -0.5
        q, v = jnp.broadcast_to(query, (B, 1, *query.shape)), x.reshape(B, T, N, F // N)
        arguments: dict[str, Any] = {
            "mask": allowed[:, :, None, :],
            "scale": scale,
            "partition": self.partition,
        }
        pooled, stats = attention(q, keys, v, stats=True, **arguments)
        self._show(lambda: seen_attention(q, keys, pooled, None, arguments))
        pooled = pooled.reshape(B, F)
        if not return_weights:
            return pooled

        scores = scale * jnp.einsum(
            "nh,btnh->bnt", query, keys, precision="highest", preferred_element_type=jnp.float32
        )
        # An empty row has logsumexp -inf, and inf - inf would spoil its gradient.
        logsumexp = jnp.where(jnp.any(allowed, axis=-1, keepdims=True), stats.logsumexp, 0)
        log_weights = jnp.where(allowed, scores - logsumexp, -jnp.inf)
        return pooled, jnp.exp(log_weights)


def _allowed(mask: Any, lengths: Any, B: int, N: int, T: int) -> Array:
    """Returns which positions count for each head, bool `[B, N, T]`."""
    if mask is not None and not isinstance(mask, Mask):
        if not hasattr(mask, "dtype") or mask.dtype != jnp.bool_ or tuple(mask.shape) != (B, T):
            got = (
                f"shape {tuple(mask.shape)}, dtype {mask.dtype}"
                if hasattr(mask, "dtype")
                else type(mask).__name__
            )
            raise ValueError(
                f"mask: expected a Mask, or a bool array [B={B}, T={T}] with True where a position "
                f"counts, got {got}. For a 0/1 mask pass `mask.astype(bool)`."
            )
        mask = mask[:, None, None, :]
    mask = as_mask(mask)
    if lengths is not None:
        if tuple(np.shape(lengths)) != (B,):
            raise ValueError(
                f"lengths: expected integers [B={B}], got shape {tuple(np.shape(lengths))}."
            )
        mask = mask & Prefix(jnp.asarray(lengths))
    for operand in mask.operands():
        operand.check({"B": B, "N": N, "T": 1, "S": T})
    b, n, t = jnp.arange(B)[:, None, None], jnp.arange(N)[:, None], jnp.arange(T)
    return jax.lax.stop_gradient(mask.at(b, n, jnp.zeros((), jnp.int32), t))
