"""Transformer encoder-decoders over tokens."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax.masks import Prefix
from attnjax.models.losses import BLOCK, token_losses
from attnjax.models.pointer import Pointer, SourceKeys
from attnjax.models.vocabulary import (
    build_embedding,
    build_output,
    check_tokens,
    check_vocabulary,
    embed,
    project,
)
from attnjax.nn import Decoder, DecoderCache, Encoder, TransformerConfig
from attnjax.nn.cache import check_examples, taken

Tied = Literal["all", "inputs", "target", "none"]


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
        for name in ("source_vocabulary", "target_vocabulary"):
            check_vocabulary(f"Seq2SeqConfig.{name}", getattr(self, name))
        check_shared(self)
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


def check_shared(config: Any) -> None:
    """Raises ValueError unless a config's two vocabularies allow its `tied` and its `copy`."""
    owner = type(config).__name__
    if config.tied not in get_args(Tied):
        raise ValueError(
            f"{owner}.tied: expected one of {', '.join(get_args(Tied))}; got {config.tied!r}."
        )
    if config.source_vocabulary == config.target_vocabulary:
        return
    sizes = f"{config.source_vocabulary} and {config.target_vocabulary} tokens"
    if config.tied in ("all", "inputs"):
        raise ValueError(
            f"{owner}.tied: {config.tied!r} needs one vocabulary for source and target, got "
            f"{sizes}. Choose 'target' or 'none'."
        )
    if config.copy:
        raise ValueError(
            f"{owner}.copy: copying needs one vocabulary for source and target, got {sizes}."
        )


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


class Seq2Seq(nnx.Module):
    """A Transformer that reads a source and writes a target.

    Source: Vaswani et al., "Attention Is All You Need" (2017).

    Args:
      config: sizes and choices.
      rngs: for the parameters, and the stream `dropout`.
    """

    def __init__(self, config: Seq2SeqConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embedding = build_embedding(config.target_vocabulary, config.decoder, rngs=rngs)
        self.source_embedding = (
            None
            if config.tied in ("all", "inputs")
            else build_embedding(config.source_vocabulary, config.encoder, rngs=rngs)
        )
        self.encoder = Encoder(config.encoder, rngs=rngs)
        self.decoder = Decoder(config.decoder, cross=True, rngs=rngs)
        self.output = (
            build_output(config.target_vocabulary, config.decoder, rngs=rngs)
            if config.tied in ("inputs", "none")
            else None
        )
        self.pointer = (
            Pointer(
                config.decoder.features,
                dtype=config.decoder.dtype,
                param_dtype=config.decoder.param_dtype,
                rngs=rngs,
            )
            if config.copy
            else None
        )

    def __call__(
        self,
        source: Int[Array, "B S"],
        target: Int[Array, "B T"],
        *,
        source_lengths: Int[Array, "B"],
    ) -> Float[Array, "B T V"]:
        """Computes the logits of what follows each target token.

        Args:
          source: source tokens, padded on the right.
          target: target tokens, the begin token first.
          source_lengths: number of tokens of each source.

        Returns:
          float32; if the model copies, the logarithm of the mixture's probabilities.

        Raises:
          ValueError: if an argument is wrong.
        """
        memory = self.encode(source, source_lengths)
        hidden = self._hidden(target, memory, source_lengths)
        if self.pointer is None:
            return self.logits(hidden)
        keys = self.pointer.read(memory, source, source_lengths)
        return self.pointer.logprobs(hidden, self.logits(hidden), keys)

    def target_logprobs(
        self,
        source: Int[Array, "B S"],
        inputs: Int[Array, "B T"],
        targets: Int[Array, "B T"],
        source_lengths: Int[Array, "B"],
        *,
        block: int = BLOCK,
    ) -> Float[Array, "B T"]:
        """Returns the log-probability of each target, without all logits or weights at once.

        Args:
          source: source tokens, padded on the right.
          inputs: target tokens, the begin token first.
          targets: what follows each of them.
          source_lengths: number of tokens of each source.
          block: positions whose logits are held at a time.

        Returns:
          float32.

        Raises:
          ValueError: if an argument is wrong.
        """
        memory = self.encode(source, source_lengths)
        hidden = self._hidden(inputs, memory, source_lengths)
        partition = self.decoder.stack.partition
        losses = token_losses(self.logits, hidden, targets, block=block, partition=partition)
        if self.pointer is None:
            return -losses
        keys = self.pointer.read(memory, source, source_lengths)
        return self.pointer.target_logprobs(hidden, -losses, targets, keys)

    def encode(
        self, source: Int[Array, "B S"], source_lengths: Int[Array, "B"]
    ) -> Float[Array, "B S F"]:
        """Reads the source.

        Args:
          source: source tokens, padded on the right.
          source_lengths: number of tokens of each source.

        Raises:
          ValueError: if an argument is wrong.
        """
        check_source(source, source_lengths)
        table = self.embedding if self.source_embedding is None else self.source_embedding
        x = embed(table, source, self.config.embedding_scale)
        memory: Any = self.encoder(x, mask=Prefix(source_lengths))
        return memory

    def logits(self, hidden: Float[Array, "*B F"]) -> Float[Array, "*B V"]:
        """Returns what the vocabulary says, float32, before any mixture with a pointer's."""
        output = self.embedding if self.output is None else self.output
        scale = self.config.logit_scale
        hidden = hidden if scale is None else hidden * jnp.asarray(scale, hidden.dtype)
        return project(hidden, output, self.config.decoder.attention.precision)

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
        cache = self.decoder.init_cache(source.shape[0], capacity, memory=memory, dtype=dtype)
        pointer = self.pointer
        keys = None if pointer is None else pointer.read(memory, source, source_lengths)
        looked = jnp.zeros(source.shape, jnp.float32) if attention else None
        return Seq2SeqCache(cache, jnp.asarray(source_lengths), keys, looked)

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
        logits = self.logits(hidden)
        if self.pointer is not None:
            assert cache.source is not None
            logits = self.pointer.logprobs(hidden, logits, cache.source)
        return logits, dataclasses.replace(cache, decoder=decoder, attention=attention)

    def _hidden(self, target: Array, memory: Array, source_lengths: Array) -> Array:
        hidden: Any = self.decoder(self._embed(target), memory, memory_mask=Prefix(source_lengths))
        return hidden

    def _embed(self, target: Array) -> Array:
        check_tokens("target", target)
        return embed(self.embedding, target, self.config.embedding_scale)


def check_source(source: Any, lengths: Any) -> None:
    """Raises ValueError unless there are integers `[B, S]` and a length for each row."""
    check_tokens("source", source)
    shape = jnp.shape(lengths)
    if shape != source.shape[:1] or not jnp.issubdtype(jnp.result_type(lengths), jnp.integer):
        raise ValueError(
            f"source_lengths: expected integers [B={source.shape[0]}], got shape {shape}, dtype "
            f"{jnp.result_type(lengths)}."
        )
