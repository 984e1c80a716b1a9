"""Transformer encoder-decoders over tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax.masks import Prefix
from attnjax.models.pointer import SourceKeys
from attnjax.models.source_to_target import SourceToTarget, Tied, check_vocabularies
from attnjax.nn import Decoder, DecoderCache, Encoder, TransformerConfig
from attnjax.nn.cache import check_examples, taken
from attnjax.sharding.partition import Partition


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig:
    """Sizes and choices of a `Seq2Seq`.

    Attributes:
      source_vocabulary: number of source tokens.
      target_vocabulary: number of target tokens V.
      encoder: layers of the encoder.
      decoder: layers of the decoder, of the same width.
      tied: `all`: one table embeds source and target, and is the output matrix, which needs one
        vocabulary for both; `inputs`: one table embeds both, and the output matrix is its own;
        `target`: the target's embedding is the output matrix; `none`.
      embedding_scale: factor on embeddings, for example `features ** 0.5` as in Vaswani et al.
        (2017); embeddings start with a standard deviation of `features ** -0.5`, which sinusoidal
        positions of size 1 drown without it. None for none.
      logit_scale: factor on what the last layer made, before the output matrix, for example
        `features ** -0.5` as in T5, whose embeddings have a standard deviation of 1. None for none.
      copy: whether a `Pointer` may copy tokens of the source, which needs one vocabulary for both.
    """

    source_vocabulary: int
    target_vocabulary: int
    encoder: TransformerConfig
    decoder: TransformerConfig
    tied: Tied = "all"
    embedding_scale: float | None = None
    logit_scale: float | None = None
    copy: bool = False

    def __post_init__(self) -> None:
        check_vocabularies(self)
        if self.encoder.features != self.decoder.features:
            raise ValueError(
                f"Seq2SeqConfig.decoder.features: expected {self.encoder.features}, the encoder's, "
                f"got {self.decoder.features}."
            )

    def build(self, *, rngs: nnx.Rngs) -> Seq2Seq:
        """Builds the model.

        Args:
          rngs: for the parameters, and the stream `dropout`.
        """
        return Seq2Seq(self, rngs=rngs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Seq2SeqCache:
    """What a decoder keeps of the source and of the target so far.

    Attributes:
      decoder: of the layers.
      source_lengths: number of tokens of each source, `[B]`.
      source: what the pointer keeps of the source, if the model copies; otherwise None.
      attention: if asked for, where the last decoded position looked in the source: float32 weights
        `[B, S]`, the mean over the heads of the last layer's cross-attention; zeros before the
        first. Otherwise None.
    """

    decoder: DecoderCache
    source_lengths: Array
    source: SourceKeys | None
    attention: Array | None

    @property
    def capacity(self) -> int:
        """The longest target that it can hold."""
        return self.decoder.capacity

    @property
    def length(self) -> Array:
        """Target tokens so far, as in `DecoderCache`."""
        return self.decoder.length

    def rewind(self, lengths: int | Int[Array, "*B"]) -> Seq2SeqCache:
        """Returns the cache as of an earlier length of the target; `KVCache.rewind` says how.

        `attention` stays that of the position that was decoded last.
        """
        return dataclasses.replace(self, decoder=self.decoder.rewind(lengths))

    def take(self, index: Int[Array, "A"]) -> Seq2SeqCache:
        """Returns the cache of some examples, source included; `KVCache.take` says how."""
        check_examples(index, self.source_lengths.shape[0])
        rest = (self.source_lengths, self.source, self.attention)
        return Seq2SeqCache(
            self.decoder.take(index), *jax.tree.map(lambda x: taken(x, index), rest)
        )


class Seq2Seq(SourceToTarget):
    """A Transformer that reads a source and writes a target.

    Source: Vaswani et al., "Attention Is All You Need" (2017).

    Args:
      config: sizes and choices.
      rngs: for the parameters, and the stream `dropout`.
    """

    def __init__(self, config: Seq2SeqConfig, *, rngs: nnx.Rngs) -> None:
        precision = config.decoder.attention.precision
        super().__init__(config, config.encoder, config.decoder, precision=precision, rngs=rngs)
        self.config = config
        self.encoder = Encoder(config.encoder, rngs=rngs)
        self.decoder = Decoder(config.decoder, cross=True, rngs=rngs)

    def logits(self, hidden: Float[Array, "*B F"]) -> Float[Array, "*B V"]:
        """Returns what the vocabulary says, float32, before any mixture with a pointer's."""
        scale = self.config.logit_scale
        return super().logits(
            hidden if scale is None else hidden * jnp.asarray(scale, hidden.dtype)
        )

    def init_cache(
        self,
        source: Int[Array, "B S"],
        source_lengths: Int[Array, "B"],
        capacity: int,
        *,
        attention: bool = False,
        dtype: Any = None,
    ) -> Seq2SeqCache:
        """Reads the source, and returns a cache for `decode`.

        Args:
          source: source tokens, padded on the right.
          source_lengths: number of tokens of each source.
          capacity: the longest target that it can hold, the begin token included.
          attention: whether the cache says where the last decoded position looked.
          dtype: of the keys and values of self-attention; None is the computation's, at least
            float32 if that follows the input's.

        Raises:
          ValueError: if an argument is wrong.
        """
        memory = self.encode(source, source_lengths)
        return Seq2SeqCache(
            self.decoder.init_cache(source.shape[0], capacity, memory=memory, dtype=dtype),
            jnp.asarray(source_lengths),
            self._source_keys(memory, source, source_lengths),
            jnp.zeros(source.shape, jnp.float32) if attention else None,
        )

    def decode(self, tokens: Int[Array, "B T"], cache: Seq2SeqCache) -> tuple[Array, Seq2SeqCache]:
        """Reads the next T target tokens; the result equals that of the full pass.

        Args:
          tokens: the begin token first, then one token of each sequence, or several at once.
          cache: what is kept of the source and of the target so far.

        Returns:
          float32 `[B, T, V]` as in the call, and the next cache. Where the tokens do not fit into
          the cache, and its length is traced, they are NaN.

        Raises:
          ValueError: if an argument is wrong, or if the cache is full and its length is known.
        """
        hidden, decoder, *weights = self.decoder.decode(
            self._embed(tokens),
            cache.decoder,
            memory_mask=Prefix(cache.source_lengths),
            memory_weights=cache.attention is not None,
        )
        attention = weights[0][-1] if weights else None
        predicted = self._predicted(hidden, cache.source)
        return predicted, dataclasses.replace(cache, decoder=decoder, attention=attention)

    @property
    def _target_partition(self) -> Partition | None:
        return self.decoder.stack.partition

    def _read(self, x: Array, lengths: Array) -> Float[Array, "B S F"]:
        memory: Any = self.encoder(x, mask=Prefix(lengths))
        return memory

    def _write(self, x: Array, memory: Array, lengths: Array) -> Float[Array, "B T F"]:
        hidden: Any = self.decoder(x, memory, memory_mask=Prefix(lengths))
        return hidden
