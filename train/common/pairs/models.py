"""`SeqModelConfig`: models that write a text for a text, from a command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro
from flax import nnx

from attnjax.models import RecurrentSeq2SeqConfig, Seq2SeqConfig
from attnjax.nn import TransformerConfig
from attnjax.sharding.rules import TRANSFORMER
from train.common.attention_config import AttentionConfig
from train.common.pairs.tokens import PairTokens

# Vocabularies come from the data, in any number, so nothing but fsdp splits what belongs to them.
RULES = TRANSFORMER.extended(axes=(("vocab", None),))
"""Where the parameters of these models belong on a mesh."""


@dataclass(frozen=True)
class SeqModelConfig:
    """Which encoder-decoder, its sizes and what keeps it from learning the training set by heart.

    Raises:
        ValueError: a size or a rate is out of range.
    """

    name: Annotated[
        Literal["transformer", "rnn-bahdanau", "rnn-luong"],
        tyro.conf.arg(name="model", prefix_name=False),
    ] = "transformer"
    """What reads and writes: a Transformer, or recurrent layers, both directions of which read,
    with the attention of Bahdanau et al. (2015) or of Luong et al. (2015)."""
    features: int = 256
    """Width of the model."""
    encoder_layers: int = 3
    """Layers that read the source."""
    decoder_layers: int = 3
    """Layers that write the target."""
    heads: int = 4
    """Transformer: attention heads."""
    hidden: int | None = None
    """Transformer: width inside the feed-forward layers; None is four times `features`."""
    activation: Literal["gelu", "relu", "swiglu"] = "gelu"
    """Transformer: what the feed-forward layers apply."""
    norm: Literal["layer", "rms"] = "layer"
    """Transformer: what normalises."""
    norm_position: Literal["pre", "post"] = "pre"
    """Transformer: whether the input of each sublayer is normalised, or each sum."""
    cell: Literal["lstm", "gru"] = "lstm"
    """Recurrent: the cells of the layers."""
    score: Literal["general", "dot"] = "general"
    """rnn-luong: how states are compared, through a matrix or as they are."""
    input_feeding: bool = True
    """rnn-luong: whether the decoder reads what it predicted from last."""
    copy: bool = False
    """Also copy tokens of the source by a pointer, which needs one vocabulary for both sides."""
    tied: Literal["auto", "all", "inputs", "target", "none"] = "auto"
    """Which embeddings are one: source, target and output (all), source and target (inputs), target
    and output (target); auto: all where the vocabulary is shared, else target."""
    dropout: float = 0.1
    """Dropout on the embeddings, inside the feed-forward layers and after each sublayer."""
    scan_layers: bool = False
    """Transformer: compile one layer for all of them."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    """How the Transformer attends."""

    def __post_init__(self) -> None:
        """Rejects what no model can be built from."""
        for name in ("features", "encoder_layers", "decoder_layers", "heads", "hidden"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.name == "transformer" and self.features % self.heads:
            raise ValueError(f"features {self.features} must be a multiple of heads {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> SeqModelConfig:
        """The config that `dataclasses.asdict` and JSON made `fields` of."""
        return cls(**{**fields, "attention": AttentionConfig(**fields["attention"])})

    def build(self, tokens: PairTokens, *, rngs: nnx.Rngs) -> nnx.Module:
        """Builds the model.

        Args:
            tokens: vocabularies and limits.
            rngs: streams `params` and `dropout`.

        Raises:
            ValueError: options contradict each other.
        """
        return self.config(tokens).build(rngs=rngs)

    def config(self, tokens: PairTokens) -> Seq2SeqConfig | RecurrentSeq2SeqConfig:
        """The config of the library's model."""
        tied = self.tied
        if tied == "auto":
            tied = "all" if tokens.joint else "target"
        common: dict[str, Any] = {
            "source_vocabulary": tokens.source.size,
            "target_vocabulary": tokens.target.size,
            "tied": tied,
            "embedding_scale": self.features**0.5,
            "copy": self.copy,
        }
        if self.name == "transformer":
            return Seq2SeqConfig(
                encoder=self._stack(self.encoder_layers, tokens.config.max_source, reads=True),
                decoder=self._stack(self.decoder_layers, tokens.config.max_target, reads=False),
                **common,
            )
        return RecurrentSeq2SeqConfig(
            features=self.features,
            encoder_layers=self.encoder_layers,
            decoder_layers=self.decoder_layers,
            attention="bahdanau" if self.name == "rnn-bahdanau" else "luong",
            score=self.score,
            input_feeding=self.input_feeding,
            cell=self.cell,
            dropout_rate=self.dropout,
            **common,
        )

    def _stack(self, layers: int, longest: int, *, reads: bool) -> TransformerConfig:
        return TransformerConfig(
            features=self.features,
            num_heads=self.heads,
            num_layers=layers,
            num_kv_heads=self.attention.kv_heads,
            hidden=self.hidden,
            activation=self.activation,
            norm=self.norm,
            norm_position=self.norm_position,
            dropout_rate=self.dropout,
            scan_layers=self.scan_layers,
            attention=self.attention.options(longest=longest, bidirectional=reads),
        )
