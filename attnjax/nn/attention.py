"""Multi-head attention as a module: projections, positions, one call of `attnjax.attention`."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax.api import attention
from attnjax.dropout import Dropout
from attnjax.masks import Causal, Mask, Window, as_mask
from attnjax.nn.cache import KeyValues, KVCache
from attnjax.nn.checks import check_heads, check_positions, check_sequence
from attnjax.nn.norms import build_norm
from attnjax.nn.options import AttentionOptions
from attnjax.nn.positions import Positions
from attnjax.nn.sigma import SigmaLinearGeneral, kernel_of
from attnjax.nn.steps import attend_to_cache
from attnjax.nn.watching import Watchable, seen_attention
from attnjax.nn.weights import last_weights
from attnjax.numerics import poison
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.scores import ScoreFn, ScoreMod, as_score_mods, soft_cap

ScoreMods = ScoreMod | ScoreFn | tuple[ScoreMod | ScoreFn, ...]


class MultiHeadAttention(Watchable):
    """Multi-head, grouped-query or multi-query attention, of a sequence to itself or to another.

    The projections are named as in `flax.nnx.MultiHeadAttention`, with kernels of the same shapes:
    `query [F, N, H]`, `key` and `value [G, K, H]`, `out [N, H, O]`. `train()` and `eval()` switch
    dropout on and off; it is on at first.

    Args:
      features: width F of the queries' sequence.
      num_heads: number of query heads N.
      num_kv_heads: number of key and value heads K, a divisor of N; None is N.
      head_dim: head width H; None is `features / num_heads`.
      kv_features: width G of the sequence that keys and values come from; None is F.
      out_features: width O of the output; None is F.
      options: what else the layer does.
      dtype: dtype of the computation; None promotes the input's with the parameters'.
      param_dtype: dtype of the parameters.
      rngs: for the parameters, and the stream `dropout`.

    Raises:
      ValueError: if sizes do not divide or an option does not fit.
    """

    def __init__(
        self,
        features: int,
        *,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        kv_features: int | None = None,
        out_features: int | None = None,
        options: AttentionOptions | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        options = AttentionOptions() if options is None else options
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        check_heads(features, num_heads, num_kv_heads, head_dim)
        head_dim = features // num_heads if head_dim is None else head_dim
        kv_features = features if kv_features is None else kv_features
        position = Positions() if options.position is None else options.position
        position.check(features=features, num_heads=num_heads, head_dim=head_dim)
        if position.absolute and kv_features != features:
            raise ValueError(
                f"kv_features: expected {features}, the width of the positions that are added to "
                f"both sequences, got {kv_features}."
            )
        self.features, self.kv_features = features, kv_features
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.options, self.position = options, position
        self.dtype, self.param_dtype = dtype, param_dtype
        self.deterministic = False

        kind = SigmaLinearGeneral if options.sigma_reparam else nnx.LinearGeneral

        def project(inputs: Any, outputs: Any, use_bias: bool, **kwargs: Any) -> nnx.LinearGeneral:
            return kind(
                inputs,
                outputs,
                use_bias=use_bias,
                kernel_init=options.kernel_init,
                precision=options.precision,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
                **kwargs,
            )

        self.query = project(features, (num_heads, head_dim), options.use_bias)
        self.key = project(kv_features, (num_kv_heads, head_dim), options.key_bias)
        self.value = project(kv_features, (num_kv_heads, head_dim), options.use_bias)
        out_features = features if out_features is None else out_features
        out_bias = options.use_bias if options.out_bias is None else options.out_bias
        self.out = project((num_heads, head_dim), out_features, out_bias, axis=(-2, -1))
        self.query_norm, self.key_norm = (self._build_norm(rngs) for _ in range(2))
        table = position.init(
            rngs.params(), features=features, num_heads=num_heads, dtype=param_dtype
        )
        self.position_table = None if table is None else nnx.Param(table)
        self.sinks, self.log_temperature = (
            nnx.Param(jnp.zeros(num_heads, param_dtype)) if wanted else None
            for wanted in (options.sinks, options.temperature)
        )
        self.rngs = rngs.dropout.fork() if options.dropout_rate > 0 else None

    def __call__(
        self,
        x: Float[Array, "B T F"],
        kv: Float[Array, "B S G"] | KeyValues | None = None,
        *,
        mask: Mask | Array | None = None,
        score_mod: ScoreMods | None = None,
        positions: Int[Array, "*B T"] | None = None,
        kv_positions: Int[Array, "*B S"] | None = None,
        stats: bool = False,
    ) -> Array | tuple[Array, AttentionStats]:
        """Attends.

        Args:
          x: the sequence that asks.
          kv: the sequence that is attended to, or what `keys_values` made of it; None is `x`.
          mask: a Mask, or a bool array broadcastable to `[B, N, T, S]`, True = attend.
          score_mod: what else happens to scores, after the soft cap and the position scheme.
          positions: positions of `x`, integers `[T]` or `[B, T]`, for the schemes that take them;
            None counts from 0.
          kv_positions: positions of `kv`; None counts from 0, or takes `positions` if `kv` is None.
          stats: also return `AttentionStats`.

        Returns:
          `[B, T, O]`; with `stats=True`, a pair of it and the statistics.

        Raises:
          ValueError: if an argument is wrong.
        """
        check_sequence("x", x, self.features)
        if kv is None:
            kv, kv_positions = x, positions if kv_positions is None else kv_positions
        if not isinstance(kv, KeyValues):
            kv = self.keys_values(kv, positions=kv_positions)
        elif kv_positions is not None:
            raise ValueError(
                "kv_positions: expected None with projected KeyValues, which have theirs."
            )
        q = self._queries(x, self._positions("positions", positions, x))
        arguments: dict[str, Any] = {
            "mask": self._mask(mask),
            "score_mod": self._score_mods(score_mod),
            "scale": self.options.scale,
            "sinks": None if self.sinks is None else self.sinks[...],
            "precision": self.options.precision,
            "partition": self.options.partition,
        }
        implementation, dropout = self.options.implementation, self._dropout()
        result = attention(
            q, *kv, **arguments, dropout=dropout, stats=stats, implementation=implementation
        )
        out, found = result if stats else (result, None)
        projected = self.out(out)  # before it is shown, for the call may change what the kernel is
        self._show(lambda: seen_attention(q, kv.k, out, kernel_of(self.out), arguments))
        return (projected, found) if found is not None else projected

    def keys_values(
        self, kv: Float[Array, "B S G"], *, positions: Int[Array, "*B S"] | None = None
    ) -> KeyValues:
        """Projects a sequence to keys and values, so that many calls can attend to it.

        Args:
          kv: the sequence.
          positions: as `kv_positions` of the call.

        Returns:
          Keys and values `[B, S, K, H]`.
        """
        check_sequence("kv", kv, self.kv_features)
        positions = self._positions("kv_positions", positions, kv)
        kv = self._embed(kv, positions)
        k = self.key(kv)
        if self.key_norm is not None:
            k = self.key_norm(k)
        return KeyValues(self.position.rotate(k, positions), self.value(kv))

    def last_weights(
        self, x: Float[Array, "B T F"], kv: KeyValues, *, mask: Mask | Array | None = None
    ) -> Float[Array, "B S"]:
        """Returns where the last query looks: its weights before dropout, averaged over the heads.

        Args:
          x: the sequence that asks.
          kv: what `keys_values` made of the sequence that is attended to.
          mask: as in the call.

        Returns:
          float32; rows sum to 1 less what learned sinks take, and are 0 where there is nothing to
          attend to.
        """
        q, k = self._queries(x, self._positions("positions", None, x)), kv.k

        def attend(v: Array) -> Array:
            out: Any = attention(
                q.astype(jnp.float32),
                k.astype(jnp.float32),
                v,
                mask=self._mask(mask),
                score_mod=self._score_mods(None),
                scale=self.options.scale,
                sinks=None if self.sinks is None else self.sinks[...],
                precision=self.options.precision,
            )
            return out

        return last_weights(attend, k.shape[:3])

    def init_cache(self, batch: int, capacity: int, *, dtype: Any = None) -> KVCache:
        """Returns an empty cache for `decode`.

        Args:
          batch: number of sequences B.
          capacity: the longest sequence that it can hold.
          dtype: of keys and values; None is the computation's, at least float32 if that follows
            the input's.

        Returns:
          The cache.
        """
        if dtype is None:
            dtype = self.dtype or jnp.promote_types(self.param_dtype, jnp.float32)
        return KVCache.zeros(batch, capacity, self.num_kv_heads, self.head_dim, dtype)

    def decode(
        self,
        x: Float[Array, "B T F"],
        cache: KVCache,
        *,
        mask: Mask | Array | None = None,
        score_mod: ScoreMods | None = None,
        positions: Int[Array, "*B T"] | None = None,
    ) -> tuple[Array, KVCache]:
        """Attends from the next T positions of a sequence to all so far, their own included.

        Prompts are given at once (T > 1), then one position per call. The result equals the full
        pass over the whole sequence with the same mask. Prompts of several lengths are either
        padded on the left, with a mask that hides the padding, or on the right, then
        `cache.rewind(lengths)`. Up to 16 positions at a time go through `attnjax.decode`, which
        reads the cache once; longer prompts, dropout, and an `implementation` that the options name
        go through `attnjax.attention`.

        Args:
          x: the next positions.
          cache: keys and values so far.
          mask: the mask of the full pass: a Mask over positions of the whole sequence, or a bool
            array broadcastable to `[B, N, T, capacity]`. Arrays that it declares along queries
            belong to the T positions at hand. None is `Causal()`.
          score_mod: as in the call, over positions of the whole sequence.
          positions: None counts on from the cache's length.

        Returns:
          `[B, T, O]` and the next cache. Where the positions do not fit into the cache, and its
          length is traced, the output is NaN.

        Raises:
          ValueError: if an argument is wrong, or if the cache is full and its length is known.
        """
        check_sequence("x", x, self.features)
        T, full = x.shape[1], cache.overfull(x.shape[1])
        if self.position.explicit and positions is None:
            positions = cache.next_positions(T)
        cache = cache.append(self.keys_values(x, positions=positions))
        q = self._queries(x, self._positions("positions", positions, x))
        out = self.out(
            attend_to_cache(
                q,
                cache,
                self._mask(Causal() if mask is None else mask),
                self._score_mods(score_mod),
                sinks=None if self.sinks is None else self.sinks[...],
                dropout=self._dropout(),
                options=self.options,
            )
        )
        return out + poison(full, out.dtype).reshape(-1, 1, 1), cache

    def _build_norm(self, rngs: nnx.Rngs) -> Any:
        if self.options.qk_norm is None:
            return None
        return build_norm(
            self.options.qk_norm,
            self.head_dim,
            epsilon=self.options.qk_norm_epsilon,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )

    def _positions(self, name: str, positions: Array | None, x: Array) -> Any:
        B, T, _ = x.shape
        if positions is None:
            return np.arange(T, dtype=np.int32)  # known inside a trace, too
        check_positions(name, positions, B, T, self.position)
        return positions

    def _embed(self, x: Array, positions: Array) -> Array:
        table = self.position_table
        return self.position.embed(x, positions, None if table is None else table[...])

    def _queries(self, x: Array, positions: Array) -> Array:
        q = self.query(self._embed(x, positions))
        if self.query_norm is not None:
            q = self.query_norm(q)
        if self.log_temperature is not None:
            # On the queries, which costs less than on the scores and is the same.
            q = q * jnp.exp(-self.log_temperature[...]).astype(q.dtype)[:, None]
        return self.position.rotate(q, positions)

    def _mask(self, mask: Mask | Array | None) -> Mask:
        window = self.options.window
        return as_mask(mask) if window is None else as_mask(mask) & Window(*window)

    def _score_mods(self, score_mod: ScoreMods | None) -> tuple[ScoreMod | ScoreFn, ...]:
        cap, table = self.options.soft_cap, self.position_table
        own: tuple[ScoreMod, ...] = () if cap is None else (soft_cap(cap),)
        own += self.position.score_mods(self.num_heads, None if table is None else table[...])
        return own + as_score_mods(score_mod)

    def _dropout(self) -> Dropout | None:
        if self.rngs is None or self.deterministic:
            return None
        return Dropout(self.options.dropout_rate, self.rngs())
