"""Encoders that find a span of their input."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax.models.text_encoder import TextEncoderConfig
from attnjax.nn import TransformerConfig


@dataclasses.dataclass(frozen=True)
class SpanModelConfig:
    """Sizes and choices of a `SpanModel`.

    Attributes:
      vocabulary: number of tokens.
      encoder: the layers.
      segments: number of kinds of tokens, such as question and text; 0 for none.
      embedding_scale: as in `TextEncoderConfig`.
    """

    vocabulary: int
    encoder: TransformerConfig
    segments: int = 2
    embedding_scale: float | None = None

    def __post_init__(self) -> None:
        self.text()

    def text(self) -> TextEncoderConfig:
        """Returns the config of the model's encoder."""
        return TextEncoderConfig(
            self.vocabulary,
            self.encoder,
            segments=self.segments,
            embedding_scale=self.embedding_scale,
        )

    def build(self, *, rngs: nnx.Rngs) -> SpanModel:
        """Builds the model.

        Args:
          rngs: for the parameters, and the stream `dropout`.
        """
        return SpanModel(self, rngs=rngs)


class SpanModel(nnx.Module):
    """Says at which token a span begins, and at which it ends.

    Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers" (2019), sections
    4.2 and 4.3: where there may be no such span, both ends at position 0 stand for that.

    Args:
      config: sizes and choices.
      rngs: for the parameters, and the stream `dropout`.
    """

    def __init__(self, config: SpanModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.text = config.text().build(rngs=rngs)
        encoder = config.encoder
        self.span = nnx.Linear(
            encoder.features, 2, dtype=encoder.dtype, param_dtype=encoder.param_dtype, rngs=rngs
        )

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        lengths: Int[Array, "B"],
        segments: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
        """Computes the logits of the first and of the last token of the span.

        Args:
          tokens: what is read, padded on the right; at position 0 a token that belongs to no span,
            if there may be none.
          lengths: number of tokens of each example, at least 1.
          segments: kind of each token, from 0; None: all are 0.

        Returns:
          Logits, float32, of begin and end; minus infinity on padding.

        Raises:
          ValueError: if an argument is wrong.
        """
        hidden: Any = self.text(tokens, lengths=lengths, segments=segments)
        logits = self.span(hidden).astype(jnp.float32)
        inside = jnp.arange(tokens.shape[1]) < lengths[:, None]
        start, end = (jnp.where(inside, logits[..., n], -jnp.inf) for n in range(2))
        return start, end
