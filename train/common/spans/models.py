"""`SpanReaderConfig`: readers that find an answer in a text, from a command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from attnjax.models import SpanModelConfig
from attnjax.nn import TransformerConfig
from attnjax.sharding.rules import TRANSFORMER
from train.common.attention_config import AttentionConfig
from train.common.spans.batches import SEGMENTS

# Vocabularies come from the data, in any number, so nothing but fsdp splits what belongs to them.
RULES = TRANSFORMER.extended(
    paths=(
        (r"\bspan\.kernel$", ("embed", None)),
        (r"\bspan\.bias$", (None,)),
    ),
    axes=(("vocab", None),),
)
"""Where the parameters of these models belong on a mesh."""


@dataclass(frozen=True)
class SpanReaderConfig:
    """Sizes of the reader and what keeps it from learning the training set by heart.

    Raises:
        ValueError: a size or a rate is out of range.
    """

    features: int = 128
    """Width of the model."""
    layers: int = 4
    """Transformer layers."""
    heads: int = 4
    """Attention heads."""
    hidden: int | None = None
    """Width inside the feed-forward layers; None is four times `features`."""
    dropout: float = 0.1
    """Dropout on the embeddings and after each sublayer."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    """How the layers attend."""

    def __post_init__(self) -> None:
        """Rejects what no model can be built from."""
        for name in ("features", "layers", "heads", "hidden"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.features % self.heads:
            raise ValueError(f"features {self.features} must be a multiple of heads {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> SpanReaderConfig:
        """The config that `dataclasses.asdict` and JSON made `fields` of."""
        return cls(**{**fields, "attention": AttentionConfig(**fields["attention"])})

    def build(self, *, vocabulary: int, max_tokens: int, rngs: nnx.Rngs) -> nnx.Module:
        """Builds the model.

        Args:
            vocabulary: number of token ids.
            max_tokens: most tokens of a window.
            rngs: streams `params` and `dropout`.
        """
        encoder = TransformerConfig(
            features=self.features,
            num_heads=self.heads,
            num_layers=self.layers,
            num_kv_heads=self.attention.kv_heads,
            hidden=self.hidden,
            dropout_rate=self.dropout,
            attention=self.attention.options(longest=max_tokens, bidirectional=True),
        )
        scale = self.features**0.5
        config = SpanModelConfig(vocabulary, encoder, segments=SEGMENTS, embedding_scale=scale)
        return config.build(rngs=rngs)


def best_spans(
    start: Float[Array, "B T"],
    end: Float[Array, "B T"],
    allowed: Bool[Array, "B T"],
    longest: int,
) -> dict[str, Array]:
    """The likeliest span of each window, and how likely it is that there is none.

    Args:
        start: logits of the first token; place 0 stands for no answer.
        end: logits of the last token, likewise.
        allowed: which tokens an answer may hold; not place 0.
        longest: most tokens of an answer.

    Returns:
        `start` and `end` int32 `[B]`, `score` and `none` float32 `[B]`, the log-probabilities of
        that span and of no answer, and `weight` float32 `[B, T]`, the mean of the chances that an
        answer begins and ends at a token.
    """
    start, end = jax.nn.log_softmax(start), jax.nn.log_softmax(end)
    width = start.shape[-1]
    begins = jnp.where(allowed, start, -jnp.inf)
    # Row k holds, for every first token, the last one k places on; beyond the window is nothing.
    padded = jnp.pad(
        jnp.where(allowed, end, -jnp.inf), ((0, 0), (0, longest)), constant_values=-jnp.inf
    )
    ends = jnp.stack([padded[:, k : k + width] for k in range(longest)], axis=1)
    scores = (begins[:, None] + ends).reshape(len(start), -1)
    best = jnp.argmax(scores, axis=-1)
    first = best % width
    return {
        "start": first,
        "end": first + best // width,
        "score": jnp.max(scores, axis=-1),
        "none": start[:, 0] + end[:, 0],
        "weight": (jnp.exp(start) + jnp.exp(end)) / 2,
    }


def span_loss(
    start: Float[Array, "B T"], end: Float[Array, "B T"], batch: dict[str, Int[Array, "B"]]
) -> Float[Array, ""]:
    """The mean over both ends of the negative log-probability of the right token."""
    rows = jnp.arange(len(start))
    first = jax.nn.log_softmax(start)[rows, batch["start"]]
    last = jax.nn.log_softmax(end)[rows, batch["end"]]
    return -jnp.mean(first + last) / 2
