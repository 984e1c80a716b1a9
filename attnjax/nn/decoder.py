"""Transformer decoder: causal, with cross-attention if wanted, at once or step by step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax.masks import Causal, Mask, as_mask
from attnjax.nn.blocks import TransformerBlock
from attnjax.nn.cache import KeyValues, KVCache, check_examples, rewound, taken
from attnjax.nn.config import TransformerConfig
from attnjax.nn.encoder import Encoder
from attnjax.nn.inputs import InputPositions
from attnjax.nn.spreading import place_sequence
from attnjax.nn.stack import LayerStack, PerLayer, stacked
from attnjax.ops.softmax.stats import AttentionStats


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecoderCache:
    """What a decoder keeps of the positions so far.

    Attributes:
      layers: keys and values of each layer's self-attention: L arrays `[B, capacity, K, H]`, or of
        scanned layers one `[L, B, capacity, K, H]`.
      memory: keys and values of each layer's cross-attention, likewise `[B, S, K, H]`, or None.
      length: positions so far, int32: `[]` if all examples go in step, `[B]` if each has its own.
    """

    layers: KeyValues
    memory: KeyValues | None
    length: Array

    @property
    def capacity(self) -> int:
        """Number of slots."""
        return self._shape[1]

    @property
    def _shape(self) -> tuple[int, ...]:
        k: Any = self.layers.k  # arrays, where layers are a list
        return k[0].shape if isinstance(k, PerLayer) else k.shape[1:]

    def rewind(self, length: int | Int[Array, "*B"]) -> DecoderCache:
        """Returns the cache as of an earlier length; `KVCache.rewind` says how."""
        batch = self._shape[0]
        return dataclasses.replace(self, length=rewound(self.length, length, batch, self.capacity))

    def take(self, index: Int[Array, "A"]) -> DecoderCache:
        """Returns the cache of some examples, the memory included; `KVCache.take` says how."""
        check_examples(index, self._shape[0])
        k: Any = self.layers.k
        axis = 0 if isinstance(k, PerLayer) else 1
        layers, memory = jax.tree.map(
            lambda x: taken(x, index, axis=axis), (self.layers, self.memory)
        )
        length = taken(self.length, index) if self.length.ndim else self.length
        return DecoderCache(layers, memory, length)


class Decoder(nnx.Module):
    """A stack of causal Transformer layers over embeddings.

    Args:
      config: sizes and choices.
      cross: whether every layer attends to a memory after itself.
      rngs: for the parameters, and the stream `dropout`.
    """

    def __init__(self, config: TransformerConfig, *, cross: bool = False, rngs: nnx.Rngs) -> None:
        self.inputs = InputPositions(config, rngs=rngs)
        self.stack = LayerStack(config, cross=cross, rngs=rngs)
        self.norm = config.build_norm(rngs=rngs) if config.norm_position != "post" else None

    def __call__(
        self,
        x: Float[Array, "B T F"],
        memory: Float[Array, "B S F"] | None = None,
        *,
        mask: Mask | Array | None = None,
        memory_mask: Mask | Array | None = None,
        positions: Int[Array, "*B T"] | None = None,
        stats: bool = False,
    ) -> Array | tuple[Array, AttentionStats]:
        """Decodes a whole sequence.

        Args:
          x: embeddings.
          memory: what the cross-attention attends to.
          mask: mask of every self-attention; `Causal()` holds in addition.
          memory_mask: mask of every cross-attention, for T queries and S keys.
          positions: integers `[T]` or `[B, T]`; None counts from 0.
          stats: also return the `AttentionStats` of every self-attention, stacked on a new first
            axis.

        Returns:
          `[B, T, F]`; with `stats=True`, a pair of it and the statistics.

        Raises:
          ValueError: if a memory is missing or not wanted, or an argument is wrong.
        """
        x = place_sequence(x, self.stack.partition)
        x, positions = self.inputs(x, positions), self.inputs.for_layers(positions)
        mask, score_mods = Causal() & as_mask(mask), self.inputs.score_mods()

        def layer(block: TransformerBlock, x: Array, _: None) -> tuple[Array, Any]:
            result = block(
                x,
                memory,
                mask=mask,
                memory_mask=memory_mask,
                score_mod=score_mods,
                positions=positions,
                stats=stats,
            )
            return result if stats else (result, None)

        x, found = self.stack.run(layer, x, None)
        x = x if self.norm is None else self.norm(x)
        return (x, stacked(found)) if stats else x

    def init_cache(
        self,
        batch: int,
        capacity: int,
        *,
        memory: Float[Array, "B S F"] | None = None,
        dtype: Any = None,
    ) -> DecoderCache:
        """Returns a cache for `decode`, empty but for the memory, which is projected once.

        Args:
          batch: number of sequences B.
          capacity: the longest sequence that it can hold.
          memory: what the cross-attention attends to; needed if there is one.
          dtype: of the keys and values of self-attention; as in `MultiHeadAttention.init_cache`.

        Returns:
          The cache.

        Raises:
          ValueError: if a memory is missing or not wanted, or the capacity is below 1.
        """

        def empty(block: TransformerBlock) -> KeyValues:
            cache = block.attention.init_cache(batch, capacity, dtype=dtype)
            return KeyValues(cache.k, cache.v)

        def project(block: TransformerBlock) -> KeyValues | None:
            return block.keys_values(memory)

        layers, projected = self.stack.each(empty), self.stack.each(project)
        return DecoderCache(layers, projected, jnp.zeros((), jnp.int32))

    def decode(
        self,
        x: Float[Array, "B T F"],
        cache: DecoderCache,
        *,
        mask: Mask | Array | None = None,
        memory_mask: Mask | Array | None = None,
        positions: Int[Array, "*B T"] | None = None,
        memory_weights: bool = False,
    ) -> Any:
        """Decodes the next T positions; the result equals that of the full pass.

        Args:
          x: embeddings of the next positions: a prompt at once, or one position.
          cache: what is kept of the positions so far, the memory included.
          mask: the mask of the full pass: a Mask over positions of the whole sequence, or a bool
            array broadcastable to `[B, N, T, capacity]`; `Causal()` holds in addition.
          memory_mask: mask of every cross-attention, for the T queries at hand.
          positions: None counts on from the cache's length.
          memory_weights: also return where the last position looks in the memory.

        Returns:
          `[B, T, F]` and the next cache; with `memory_weights=True` also the weights `[L, B, S]`
          of the last position in each cross-attention, as `MultiHeadAttention.last_weights` has
          them. Where the positions do not fit into the cache, and its length is traced, the output
          is NaN.

        Raises:
          ValueError: if an argument is wrong, or if the cache is full and its length is known.
        """
        now = KVCache(cache.layers.k[0], cache.layers.v[0], cache.length)
        at = now.next_positions(x.shape[1]) if positions is None else positions
        x, positions = self.inputs(x, at), self.inputs.for_layers(positions)
        mask, score_mods = Causal() & as_mask(mask), self.inputs.score_mods()

        def layer(block: TransformerBlock, x: Array, part: Any) -> tuple[Array, Any]:
            own, memory = part
            x, new, *weights = block.decode(
                x,
                KVCache(own.k, own.v, cache.length),
                memory,
                mask=mask,
                memory_mask=memory_mask,
                score_mod=score_mods,
                positions=positions,
                memory_weights=memory_weights,
            )
            return x, (KeyValues(new.k, new.v), *weights)

        x, (layers, *weights) = self.stack.run(layer, x, (cache.layers, cache.memory))
        x = x if self.norm is None else self.norm(x)
        length = cache.length + at.shape[-1]
        return x, dataclasses.replace(cache, layers=layers, length=length), *stacked(weights)


class EncoderDecoder(nnx.Module):
    """An encoder, and a decoder that attends to what it made.

    Args:
      encoder: sizes and choices of the encoder.
      decoder: those of the decoder; of the same width.
      rngs: for the parameters, and the stream `dropout`.

    Raises:
      ValueError: if the widths differ.
    """

    def __init__(
        self, encoder: TransformerConfig, decoder: TransformerConfig, *, rngs: nnx.Rngs
    ) -> None:
        if encoder.features != decoder.features:
            raise ValueError(
                f"decoder.features: expected {encoder.features}, the encoder's, got "
                f"{decoder.features}."
            )
        self.encoder = Encoder(encoder, rngs=rngs)
        self.decoder = Decoder(decoder, cross=True, rngs=rngs)

    def __call__(
        self,
        source: Float[Array, "B S F"],
        target: Float[Array, "B T F"],
        *,
        source_mask: Mask | Array | None = None,
        target_mask: Mask | Array | None = None,
        memory_mask: Mask | Array | None = None,
    ) -> Float[Array, "B T F"]:
        """Encodes the source and decodes the whole target.

        For decoding step by step: `memory = model.encoder(source, ...)`, then
        `model.decoder.init_cache(B, capacity, memory=memory)` and `model.decoder.decode(...)`.

        Args:
          source: embeddings of the source.
          target: embeddings of the target.
          source_mask: mask of the encoder's self-attention, for S queries and S keys.
          target_mask: mask of the decoder's self-attention; `Causal()` holds in addition.
          memory_mask: mask of the cross-attention, for T queries and S keys. A mask of the source
            does not apply here by itself: to hide padding pass `attnjax.Prefix(lengths)` as both.

        Returns:
          `[B, T, F]`.

        Raises:
          ValueError: if an argument is wrong.
        """
        memory: Any = self.encoder(source, mask=source_mask)
        out: Any = self.decoder(target, memory, mask=target_mask, memory_mask=memory_mask)
        return out
