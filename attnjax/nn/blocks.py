"""One Transformer layer: self-attention, cross-attention if wanted, feed-forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax.masks import Mask
from attnjax.nn.attention import ScoreMods
from attnjax.nn.cache import KeyValues, KVCache
from attnjax.nn.config import TransformerConfig
from attnjax.nn.spreading import place_sequence
from attnjax.sharding.partition import Partition


class TransformerBlock(nnx.Module):
    """One pre-norm or post-norm Transformer layer.

    Each sublayer `f` is `x + f(norm(x))` (pre), `norm(x + f(x))` (post), or `x + norm(f(norm(x)))`
    with two norms (both).

    Sources: Vaswani et al., "Attention Is All You Need" (2017) for post-norm; Xiong et al., "On
    Layer Normalization in the Transformer Architecture" (2020) for pre-norm.

    Args:
      config: sizes and choices.
      cross: whether the layer attends to a memory after itself.
      layer: index of the layer in its stack, for configs whose layers differ.
      rngs: for the parameters, and the stream `dropout`.
    """

    def __init__(
        self, config: TransformerConfig, *, cross: bool = False, layer: int = 0, rngs: nnx.Rngs
    ) -> None:
        self.norm_position = config.norm_position

        def after() -> Any:
            return config.build_norm(rngs=rngs) if config.norm_position == "both" else None

        self.attention = config.build_attention(cross=False, layer=layer, rngs=rngs)
        self.attention_norm, self.attention_after = config.build_norm(rngs=rngs), after()
        self.cross = config.build_attention(cross=True, layer=layer, rngs=rngs) if cross else None
        self.cross_norm = config.build_norm(rngs=rngs) if cross else None
        self.cross_after = after() if cross else None
        self.feed_forward = config.build_feed_forward(rngs=rngs)
        self.feed_forward_norm, self.feed_forward_after = config.build_norm(rngs=rngs), after()
        self.dropout = nnx.Dropout(config.dropout_rate, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T F"],
        memory: Float[Array, "B S F"] | KeyValues | None = None,
        *,
        mask: Mask | Array | None = None,
        memory_mask: Mask | Array | None = None,
        score_mod: ScoreMods | None = None,
        positions: Int[Array, "*B T"] | None = None,
        stats: bool = False,
    ) -> Any:
        """Applies the layer.

        Args:
          x: the sequence.
          memory: what the cross-attention attends to, or what its `keys_values` made of it.
          mask: mask of the self-attention.
          memory_mask: mask of the cross-attention, for T queries and S keys of the memory.
          score_mod: what else happens to the scores of the self-attention.
          positions: positions of `x`, for rotary positions.
          stats: also return the `AttentionStats` of the self-attention.

        Returns:
          `[B, T, F]`; with `stats=True`, a pair of it and the statistics.

        Raises:
          ValueError: if a memory is missing or not wanted, or an argument is wrong.
        """

        def attend(x: Array) -> tuple[Array, Any]:
            result: Any = self.attention(
                x, mask=mask, score_mod=score_mod, positions=positions, stats=stats
            )
            return result if stats else (result, None)

        partition = self.attention.options.partition
        x, found, _ = self._sublayers(x, attend, memory, memory_mask, partition)
        return (x, found) if stats else x

    def decode(
        self,
        x: Float[Array, "B T F"],
        cache: KVCache,
        memory: KeyValues | None = None,
        *,
        mask: Mask | Array | None = None,
        memory_mask: Mask | Array | None = None,
        score_mod: ScoreMods | None = None,
        positions: Int[Array, "*B T"] | None = None,
        memory_weights: bool = False,
    ) -> Any:
        """Applies the layer to the next positions; `MultiHeadAttention.decode` says how.

        Returns:
          `[B, T, F]` and the next cache; with `memory_weights=True` also the weights `[B, S]` of
          the last position in the cross-attention.

        Raises:
          ValueError: if the weights of a cross-attention are wanted and there is none, or another
            argument is wrong.
        """
        if memory_weights and self.cross is None:
            raise ValueError("memory_weights: expected False, for there is no cross-attention.")

        def attend(x: Array) -> tuple[Array, Any]:
            return self.attention.decode(
                x, cache, mask=mask, score_mod=score_mod, positions=positions
            )

        x, cache, weights = self._sublayers(x, attend, memory, memory_mask, weights=memory_weights)
        return (x, cache, weights) if memory_weights else (x, cache)

    def keys_values(self, memory: Float[Array, "B S F"] | None) -> KeyValues | None:
        """Projects a memory for the cross-attention; None if there is none.

        Raises:
          ValueError: if a memory is missing or not wanted.
        """
        self._check_memory(memory)
        if self.cross is None or memory is None:
            return None
        return self.cross.keys_values(memory)

    def _sublayers(
        self,
        x: Array,
        attend: Callable[[Array], tuple[Array, Any]],
        memory: Any,
        memory_mask: Any,
        partition: Partition | None = None,
        weights: bool = False,
    ) -> tuple[Array, Any, Array | None]:
        self._check_memory(memory)
        if self.cross is None and memory_mask is not None:
            raise ValueError("memory_mask: expected None, for there is no cross-attention.")
        x, found = self._residual(x, self.attention_norm, attend, self.attention_after)
        x, looked = place_sequence(x, partition), None
        if self.cross is not None:
            cross = self.cross

            def look(x: Array) -> tuple[Array, Any]:
                out: Any = cross(x, memory, mask=memory_mask)
                return out, cross.last_weights(x, memory, mask=memory_mask) if weights else None

            x, looked = self._residual(x, self.cross_norm, look, self.cross_after)
            x = place_sequence(x, partition)

        def feed_forward(x: Array) -> tuple[Array, None]:
            return self.feed_forward(x), None

        x, _ = self._residual(x, self.feed_forward_norm, feed_forward, self.feed_forward_after)
        return place_sequence(x, partition), found, looked

    def _residual(
        self, x: Array, norm: Any, sublayer: Callable[[Array], tuple[Array, Any]], after: Any
    ) -> tuple[Array, Any]:
        post = self.norm_position == "post"
        change, found = sublayer(x if post else norm(x))
        x = x + self.dropout(change if after is None else after(change))
        return (norm(x) if post else x), found

    def _check_memory(self, memory: Any) -> None:
        if self.cross is None and memory is not None:
            raise ValueError("memory: expected None, for there is no cross-attention.")
        if self.cross is not None and memory is None:
            raise ValueError("memory: expected what the cross-attention attends to, got None.")
