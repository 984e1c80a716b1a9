"""One Transformer layer: self-attention, cross-attention if wanted, feed-forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax.masks import Mask
from attnjax.nn.cache import KeyValues, KVCache
from attnjax.nn.config import TransformerConfig
from attnjax.nn.spreading import place_sequence
from attnjax.sharding.partition import Partition


class TransformerBlock(nnx.Module):
    """One pre-norm or post-norm Transformer layer.

    Each sublayer `f` is `x + f(norm(x))` (pre) or `norm(x + f(x))` (post).

    Sources: Vaswani et al., "Attention Is All You Need" (2017) for post-norm; Xiong et al., "On
    Layer Normalization in the Transformer Architecture" (2020) for pre-norm.

    Args:
      config: sizes and choices.
      cross: whether the layer attends to a memory after itself.
      rngs: for the parameters, and the stream `dropout`.
    """

    def __init__(self, config: TransformerConfig, *, cross: bool = False, rngs: nnx.Rngs) -> None:
        self.pre = config.norm_position == "pre"
        self.attention = config.build_attention(cross=False, rngs=rngs)
        self.attention_norm = config.build_norm(rngs=rngs)
        self.cross = config.build_attention(cross=True, rngs=rngs) if cross else None
        self.cross_norm = config.build_norm(rngs=rngs) if cross else None
        self.feed_forward = config.build_feed_forward(rngs=rngs)
        self.feed_forward_norm = config.build_norm(rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout_rate, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T F"],
        memory: Float[Array, "B S F"] | KeyValues | None = None,
        *,
        mask: Mask | Array | None = None,
        memory_mask: Mask | Array | None = None,
        positions: Int[Array, "*B T"] | None = None,
        stats: bool = False,
    ) -> Any:
        """Applies the layer.

        Args:
          x: the sequence.
          memory: what the cross-attention attends to, or what its `keys_values` made of it.
          mask: mask of the self-attention.
          memory_mask: mask of the cross-attention, for T queries and S keys of the memory.
          positions: positions of `x`, for rotary positions.
          stats: also return the `AttentionStats` of the self-attention.

        Returns:
          `[B, T, F]`; with `stats=True`, a pair of it and the statistics.

        Raises:
          ValueError: if a memory is missing or not wanted, or an argument is wrong.
        """

        def attend(x: Array) -> tuple[Array, Any]:
            result: Any = self.attention(x, mask=mask, positions=positions, stats=stats)
            return result if stats else (result, None)

        partition = self.attention.options.partition
        x, found = self._sublayers(x, attend, memory, memory_mask, partition)
        return (x, found) if stats else x

    def decode(
        self,
        x: Float[Array, "B T F"],
        cache: KVCache,
        memory: KeyValues | None = None,
        *,
        mask: Mask | Array | None = None,
        memory_mask: Mask | Array | None = None,
        positions: Int[Array, "*B T"] | None = None,
    ) -> tuple[Array, KVCache]:
        """Applies the layer to the next positions; `MultiHeadAttention.decode` says how.

        Returns:
          `[B, T, F]` and the next cache.
        """

        def attend(x: Array) -> tuple[Array, Any]:
            return self.attention.decode(x, cache, mask=mask, positions=positions)

        return self._sublayers(x, attend, memory, memory_mask)

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
    ) -> tuple[Array, Any]:
        self._check_memory(memory)
        if self.cross is None and memory_mask is not None:
            raise ValueError("memory_mask: expected None, for there is no cross-attention.")
        x, found = self._residual(x, self.attention_norm, attend)
        x = place_sequence(x, partition)
        if self.cross is not None:
            cross = self.cross

            def look(x: Array) -> tuple[Array, Any]:
                out: Any = cross(x, memory, mask=memory_mask)
                return out, None

            x = place_sequence(self._residual(x, self.cross_norm, look)[0], partition)
        x, _ = self._residual(x, self.feed_forward_norm, lambda x: (self.feed_forward(x), None))
        return place_sequence(x, partition), found

    def _residual(
        self, x: Array, norm: Any, sublayer: Callable[[Array], tuple[Array, Any]]
    ) -> tuple[Array, Any]:
        change, found = sublayer(norm(x) if self.pre else x)
        x = x + self.dropout(change)
        return (x if self.pre else norm(x)), found

    def _check_memory(self, memory: Any) -> None:
        if self.cross is None and memory is not None:
            raise ValueError("memory: expected None, for there is no cross-attention.")
        if self.cross is not None and memory is None:
            raise ValueError("memory: expected what the cross-attention attends to, got None.")
