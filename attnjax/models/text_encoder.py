"""Encoders of tokens, and the head that fills in masked ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax.masks import Mask, Prefix, as_mask
from attnjax.models.vocabulary import (
    build_embedding,
    check_tokens,
    check_vocabulary,
    embed,
    project,
)
from attnjax.nn import Encoder, TransformerConfig
from attnjax.nn.feedforward import PLAIN_ACTIVATIONS
from attnjax.ops.softmax.stats import AttentionStats


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes and choices of a `TextEncoder`.

    Attributes:
      vocabulary: number of tokens V.
      encoder: the layers.
      segments: number of kinds of tokens with a vector of their own, such as question and text;
        0 for none.
      pooler: whether there is a layer that `pool` needs.
      embedding_scale: factor on embeddings, as in `LanguageModelConfig`; None for none.
    """

    vocabulary: int
    encoder: TransformerConfig
    segments: int = 0
    pooler: bool = False
    embedding_scale: float | None = None

    def __post_init__(self) -> None:
        check_vocabulary("TextEncoderConfig.vocabulary", self.vocabulary)
        if self.segments < 0:
            raise ValueError(
                f"TextEncoderConfig.segments: expected at least 0, got {self.segments}."
            )

    def build(self, *, rngs: nnx.Rngs) -> TextEncoder:
        """Builds the model.

        Args:
          rngs: for the parameters, and the stream `dropout`.
        """
        return TextEncoder(self, rngs=rngs)


class TextEncoder(nnx.Module):
    """Embeddings of tokens and segments, and a Transformer encoder over them.

    Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers" (2019).

    Args:
      config: sizes and choices.
      rngs: for the parameters, and the stream `dropout`.
    """

    def __init__(self, config: TextEncoderConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embedding = build_embedding(config.vocabulary, config.encoder, rngs=rngs)
        self.segment_embedding = (
            build_embedding(config.segments, config.encoder, rngs=rngs) if config.segments else None
        )
        self.encoder = Encoder(config.encoder, rngs=rngs)
        self.pooler = build_square(config.encoder, rngs=rngs) if config.pooler else None

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        lengths: Int[Array, "B"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        mask: Mask | Array | None = None,
        stats: bool = False,
    ) -> Array | tuple[Array, AttentionStats]:
        """Encodes tokens.

        Args:
          tokens: what is read, padded on the right.
          lengths: number of tokens of each example; None: all.
          segments: kind of each token, from 0; None: all are 0.
          mask: mask of every layer; lengths hold in addition.
          stats: also return the `AttentionStats` of every layer, stacked on a new first axis.

        Returns:
          `[B, T, F]`; with `stats=True`, a pair of it and the statistics.

        Raises:
          ValueError: if an argument is wrong.
        """
        check_tokens("tokens", tokens)
        x = embed(self.embedding, tokens, self.config.embedding_scale)
        if self.segment_embedding is not None:
            segments = jnp.zeros_like(tokens) if segments is None else segments
            check_tokens("segments", segments)
            x = x + embed(self.segment_embedding, segments, self.config.embedding_scale)
        elif segments is not None:
            raise ValueError("segments: expected None, for the model has no embedding of segments.")
        mask = as_mask(mask) if lengths is None else as_mask(mask) & Prefix(lengths)
        return self.encoder(x, mask=mask, stats=stats)

    def pool(self, hidden: Float[Array, "B T F"]) -> Float[Array, "B F"]:
        """Makes one vector of an example, from that of its first token.

        Args:
          hidden: what the call returned.

        Raises:
          ValueError: if the model has no pooler.
        """
        if self.pooler is None:
            raise ValueError("pool: expected a model with a pooler; see TextEncoderConfig.pooler.")
        return jnp.tanh(self.pooler(hidden[:, 0]))


@dataclasses.dataclass(frozen=True)
class MaskedLanguageModelConfig:
    """Sizes and choices of a `MaskedLanguageModel`.

    Attributes:
      text: of the encoder.
    """

    text: TextEncoderConfig

    def build(self, *, rngs: nnx.Rngs) -> MaskedLanguageModel:
        """Builds the model.

        Args:
          rngs: for the parameters, and the stream `dropout`.
        """
        return MaskedLanguageModel(self, rngs=rngs)


class MaskedLanguageModel(nnx.Module):
    """An encoder that says at every position which token stands there.

    The output matrix is the embedding. Source: Devlin et al. (2019), section 3.1.

    Args:
      config: sizes and choices.
      rngs: for the parameters, and the stream `dropout`.
    """

    def __init__(self, config: MaskedLanguageModelConfig, *, rngs: nnx.Rngs) -> None:
        encoder = config.text.encoder
        self.config, self.text = config, config.text.build(rngs=rngs)
        self.transform = build_square(encoder, rngs=rngs)
        self.norm = encoder.build_norm(rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(config.text.vocabulary, encoder.param_dtype))

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        lengths: Int[Array, "B"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        mask: Mask | Array | None = None,
    ) -> Float[Array, "B T V"]:
        """Computes the logits of the token at each position, float32.

        Args:
          tokens: as in `TextEncoder`, and so are all others.
          lengths: likewise.
          segments: likewise.
          mask: likewise.

        Raises:
          ValueError: if an argument is wrong.
        """
        hidden: Any = self.text(tokens, lengths=lengths, segments=segments, mask=mask)
        activate = PLAIN_ACTIVATIONS[self.config.text.encoder.activation]
        hidden = self.norm(activate(self.transform(hidden)))
        precision = self.config.text.encoder.attention.precision
        return project(hidden, self.text.embedding, precision) + self.bias[...].astype(jnp.float32)


def build_square(config: TransformerConfig, *, rngs: nnx.Rngs) -> nnx.Linear:
    """Returns a projection from the width of a stack to the same width."""
    return nnx.Linear(
        config.features,
        config.features,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        rngs=rngs,
    )
