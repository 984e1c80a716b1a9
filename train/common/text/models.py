"""Text classifiers that show which words they looked at: BiLSTM or Transformer, then attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from attnjax import Prefix
from attnjax.models.recurrent import Bidirectional
from attnjax.nn import (
    AttentionOptions,
    AttentionPooling,
    Encoder,
    Positions,
    RelativeBias,
    Rotary,
    SinusoidalPositions,
    TransformerConfig,
)
from attnjax.sharding.rules import TRANSFORMER
from train.common.text.word_embedding import WordEmbedding
from train.common.tokenise import UNKNOWN_ID

RULES = TRANSFORMER.extended(
    paths=(
        (r"^embedding\.(tokens|ngrams)$", ("words", "embed")),
        (r"^(pooling\.hidden|output)\.bias$", (None,)),
        (r"^output\.kernel$", ("embed", "classes")),
    ),
    axes=(("words", None), ("classes", None)),
)
"""Where the parameters of a `TextClassifier` belong on a mesh. Vocabularies and classes come from
the data, in any number, so nothing but fsdp splits what belongs to them."""

_POSITIONS: dict[str, Positions | None] = {
    "relative": RelativeBias(reach=16),
    "sinusoidal": SinusoidalPositions(),
    "rotary": Rotary(),
    "none": None,
}


@dataclass(frozen=True)
class TextModelConfig:
    """Which classifier, its sizes and what keeps it from learning the training set by heart.

    Raises:
        ValueError: a size or a rate is out of range.
    """

    name: Annotated[
        Literal["bilstm_attention", "transformer"],
        tyro.conf.arg(name="model", prefix_name=False),
    ] = "bilstm_attention"
    """What reads the embedded words before attention pools them."""
    features: int = 64
    """Width of the embeddings and of the Transformer; each direction of the LSTM has it too."""
    layers: int = 2
    """Transformer layers."""
    heads: int = 4
    """Transformer heads."""
    positions: Literal["relative", "sinusoidal", "rotary", "none"] = "relative"
    """How the Transformer knows where a word stands."""
    max_pooling: bool = True
    """Also give the classifier each feature's largest value over the words."""
    word_dropout: float = 0.2
    """Share of the words that are hidden (unknown, no spelling) in each training step."""
    embedding_dropout: float = 0.5
    """Dropout on the embeddings."""
    dropout: float = 0.3
    """Dropout inside the reader: Transformer sublayers, or the LSTM's state and output."""
    output_dropout: float = 0.5
    """Dropout before the last layer."""

    def __post_init__(self) -> None:
        """Rejects what no model can be built from."""
        for name in ("features", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.name == "transformer" and self.features % self.heads:
            raise ValueError(f"features {self.features} must be a multiple of heads {self.heads}")
        for name in ("word_dropout", "embedding_dropout", "dropout", "output_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")

    def build(
        self, *, vocabulary: int, buckets: int, classes: int, rngs: nnx.Rngs
    ) -> TextClassifier:
        """Builds the model.

        Args:
            vocabulary: number of token ids.
            buckets: number of sub-word buckets, 0 for none.
            classes: number of classes.
            rngs: streams `params` and `dropout`.
        """
        return TextClassifier(self, vocabulary, buckets, classes, rngs=rngs)


class TextClassifier(nnx.Module):
    """Embeds words, reads them in both directions, pools them by attention and classifies.

    Args:
        config: sizes and rates.
        vocabulary: number of token ids.
        buckets: number of sub-word buckets, 0 for none.
        classes: number of classes C.
        rngs: streams `params` and `dropout`.
    """

    def __init__(
        self, config: TextModelConfig, vocabulary: int, buckets: int, classes: int, rngs: nnx.Rngs
    ):
        self.embedding = WordEmbedding(vocabulary, buckets, config.features, rngs=rngs)
        self.word_dropout = nnx.Dropout(config.word_dropout, rngs=rngs)
        self.embedding_dropout = nnx.Dropout(config.embedding_dropout, rngs=rngs)
        if config.name == "bilstm_attention":
            self.reader: nnx.Module = Bidirectional(
                config.features, config.features, dropout=config.dropout, rngs=rngs
            )
            width = 2 * config.features
        else:
            self.reader = Encoder(_transformer(config), rngs=rngs)
            width = config.features
        # Sines of size 1 would drown embeddings that start small (Vaswani et al., 2017, 3.4).
        self.scale = config.features**0.5 if config.positions == "sinusoidal" else 1.0
        self.pooling = AttentionPooling(width, hidden_features=width // 2, rngs=rngs)
        self.max_pooling = config.max_pooling
        self.output_dropout = nnx.Dropout(config.output_dropout, rngs=rngs)
        self.output = nnx.Linear(width * (1 + config.max_pooling), classes, rngs=rngs)

    def __call__(
        self,
        ids: Int[Array, "B T"],
        length: Int[Array, "B"],
        subwords: Int[Array, "B T G"] | None = None,
    ) -> tuple[Float[Array, "B C"], Float[Array, "B T"]]:
        """Classifies texts.

        Args:
            ids: token ids, padded at the end.
            length: how many tokens each text has, at least 1.
            subwords: buckets of each token's n-grams, 0 where there is none; goes with `buckets`.

        Returns:
            The logits, and each token's weight in the attention pooling (rows sum to 1).
        """
        return self.from_embedded(self.embed(ids, length, subwords), length)

    def from_embedded(
        self, x: Float[Array, "B T F"], length: Int[Array, "B"]
    ) -> tuple[Float[Array, "B C"], Float[Array, "B T"]]:
        """Classifies embedded texts, as the call does; takes what `embed` gives."""
        states = self.read(x, length)
        pooled, weights = self.pooling(states, lengths=length, return_weights=True)
        return self.classify(pooled, states, length), weights[:, 0]

    def read(self, x: Float[Array, "B T F"], length: Int[Array, "B"]) -> Float[Array, "B T G"]:
        """Returns what the reader makes of embedded words: what attention pools."""
        if isinstance(self.reader, Bidirectional):
            return self.reader(x, length)
        reader: Any = self.reader
        return reader(x * self.scale, mask=Prefix(length))

    def classify(
        self, pooled: Float[Array, "B G"], states: Float[Array, "B T G"], length: Int[Array, "B"]
    ) -> Float[Array, "B C"]:
        """Returns the logits of pooled states; `states` are for the largest values."""
        if self.max_pooling:
            inside = _inside(states.shape[1], length)[..., None]
            largest = jnp.max(jnp.where(inside, states, -jnp.inf), axis=1)
            pooled = jnp.concatenate([pooled, largest], axis=-1)
        return self.output(self.output_dropout(pooled))

    def embed(
        self, ids: Int[Array, "B T"], length: Int[Array, "B"], subwords: Array | None
    ) -> Float[Array, "B T F"]:
        """Embeds the words, in training some of them hidden as if they were unknown."""
        shown = self.word_dropout(jnp.ones(ids.shape)) > 0
        hidden = ~shown & _inside(ids.shape[1], length)
        ids = jnp.where(hidden, UNKNOWN_ID, ids)
        if subwords is not None:
            subwords = jnp.where(shown[..., None], subwords, 0)
        return self.embedding_dropout(self.embedding(ids, subwords))


def _inside(width: int, length: Int[Array, "B"]) -> Bool[Array, "B T"]:
    return jax.lax.broadcasted_iota(jnp.int32, (length.shape[0], width), 1) < length[:, None]


def _transformer(config: TextModelConfig) -> TransformerConfig:
    return TransformerConfig(
        features=config.features,
        num_heads=config.heads,
        num_layers=config.layers,
        hidden=2 * config.features,
        dropout_rate=config.dropout,
        attention=AttentionOptions(position=_POSITIONS[config.positions]),
    )
