"""Decoder-only language models."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax.masks import Mask
from attnjax.models.vocabulary import (
    build_embedding,
    build_output,
    check_tokens,
    check_vocabulary,
    embed,
    project,
)
from attnjax.nn import Decoder, DecoderCache, TransformerConfig
from attnjax.ops.softmax.stats import AttentionStats


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig:
    """Sizes and choices of a `LanguageModel`.

    Attributes:
      vocabulary: number of tokens V.
      decoder: the layers; position schemes, masks' windows and all else of attention are its
        `attention` options.
      tied: whether the output matrix is the embedding.
      embedding_scale: factor on embeddings, for example `features ** 0.5` as in Vaswani et al.
        (2017) and Gemma; embeddings start with a standard deviation of `features ** -0.5`, which
        sinusoidal positions of size 1 drown without it. None for none.
      logit_cap: bound of the logits, `cap * tanh(logit / cap)`, as in Gemma 2; None for none.
    """

    vocabulary: int
    decoder: TransformerConfig
    tied: bool = True
    embedding_scale: float | None = None
    logit_cap: float | None = None

    def __post_init__(self) -> None:
        check_vocabulary("LanguageModelConfig.vocabulary", self.vocabulary)
        if self.logit_cap is not None and not self.logit_cap > 0:
            raise ValueError(
                f"LanguageModelConfig.logit_cap: expected a positive number or None, got "
                f"{self.logit_cap!r}."
            )

    def build(self, *, rngs: nnx.Rngs) -> LanguageModel:
        """Builds the model.

        Args:
          rngs: for the parameters, and the stream `dropout`.
        """
        return LanguageModel(self, rngs=rngs)


class LanguageModel(nnx.Module):
    """A causal Transformer between an embedding and an output matrix.

    Args:
      config: sizes and choices.
      rngs: for the parameters, and the stream `dropout`.
    """

    def __init__(self, config: LanguageModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embedding = build_embedding(config.vocabulary, config.decoder, rngs=rngs)
        self.decoder = Decoder(config.decoder, rngs=rngs)
        self.output = (
            None if config.tied else build_output(config.vocabulary, config.decoder, rngs=rngs)
        )

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        mask: Mask | Array | None = None,
        positions: Int[Array, "*B T"] | None = None,
        stats: bool = False,
    ) -> Array | tuple[Array, AttentionStats]:
        """Computes the logits of what follows each token.

        Args:
          tokens: what is read.
          mask: mask of every layer, for example `attnjax.Segments(ids)` for packed documents;
            `attnjax.Causal()` holds in addition.
          positions: integers `[T]` or `[B, T]`; None counts from 0.
          stats: also return the `AttentionStats` of every layer, stacked on a new first axis.

        Returns:
          float32 `[B, T, V]`; with `stats=True`, a pair of it and the statistics.

        Raises:
          ValueError: if an argument is wrong.
        """
        result: Any = self.hidden(tokens, mask=mask, positions=positions, stats=stats)
        return (self.logits(result[0]), result[1]) if stats else self.logits(result)

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        *,
        mask: Mask | Array | None = None,
        positions: Int[Array, "*B T"] | None = None,
        stats: bool = False,
    ) -> Array | tuple[Array, AttentionStats]:
        """Returns what `logits` takes, `[B, T, F]`, so that a loss can take it by parts.

        Args:
          tokens: as in the call, and so are all others.
          mask: likewise.
          positions: likewise.
          stats: likewise.

        Raises:
          ValueError: if an argument is wrong.
        """
        return self.decoder(self._embed(tokens), mask=mask, positions=positions, stats=stats)

    def logits(self, hidden: Float[Array, "*B F"]) -> Float[Array, "*B V"]:
        """Returns the logits, float32, of any number of positions."""
        output = self.embedding if self.output is None else self.output
        logits = project(hidden, output, self.config.decoder.attention.precision)
        cap = self.config.logit_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def init_cache(self, batch: int, capacity: int, *, dtype: Any = None) -> DecoderCache:
        """Returns an empty cache for `decode`.

        Args:
          batch: number of sequences B.
          capacity: the longest sequence that it can hold.
          dtype: of keys and values; None is the computation's, at least float32 if that follows
            the input's.

        Raises:
          ValueError: if the capacity is below 1.
        """
        return self.decoder.init_cache(batch, capacity, dtype=dtype)

    def decode(
        self,
        tokens: Int[Array, "B T"],
        cache: DecoderCache,
        *,
        mask: Mask | Array | None = None,
        positions: Int[Array, "*B T"] | None = None,
    ) -> tuple[Array, DecoderCache]:
        """Reads the next T tokens; the logits equal those of the full pass.

        Args:
          tokens: a prompt at once, or one token of each sequence. Prompts of several lengths are
            padded on the right, and their cache is then `cache.rewind(lengths)`.
          cache: what is kept of the tokens so far.
          mask: as in `Decoder.decode`.
          positions: None counts on from the cache's length.

        Returns:
          float32 logits `[B, T, V]` of what follows, and the next cache. Where the tokens do not
          fit into the cache, and its length is traced, the logits are NaN.

        Raises:
          ValueError: if an argument is wrong, or if the cache is full and its length is known.
        """
        x = self._embed(tokens)
        x, cache = self.decoder.decode(x, cache, mask=mask, positions=positions)
        return self.logits(x), cache

    def _embed(self, tokens: Array) -> Array:
        check_tokens("tokens", tokens)
        return embed(self.embedding, tokens, self.config.embedding_scale)
