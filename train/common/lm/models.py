"""`LmModelConfig`: decoder-only language models, from a command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Self

from flax import nnx

from attnjax.models import LanguageModelConfig
from attnjax.nn import TransformerConfig
from train.common.attention_config import AttentionConfig


@dataclass(frozen=True)
class LmModelConfig:
    """Sizes and choices of the Transformer.

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
    activation: Literal["gelu", "relu", "swiglu"] = "gelu"
    """What the feed-forward layers apply."""
    norm: Literal["layer", "rms"] = "layer"
    """What normalises."""
    norm_position: Literal["pre", "post"] = "pre"
    """Whether the input of each sublayer is normalised, or each sum."""
    bias: bool = True
    """Biases of the feed-forward layers; those of attention are `attention.bias`."""
    tied: bool = True
    """Whether the output matrix is the embedding."""
    logit_cap: float | None = None
    """Bound of the logits."""
    dropout: float = 0.1
    """Dropout on the embeddings, inside the feed-forward layers and after each sublayer."""
    scan_layers: bool = False
    """Compile one layer for all, so that compiling does not take longer with more layers."""
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
        if self.logit_cap is not None and not self.logit_cap > 0:
            raise ValueError(f"logit_cap must be positive, got {self.logit_cap}")

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """The config that `dataclasses.asdict` and JSON made `fields` of."""
        return cls(**{**fields, "attention": AttentionConfig(**fields["attention"])})

    def build(self, *, vocabulary: int, length: int, rngs: nnx.Rngs) -> nnx.Module:
        """Builds the model.

        Args:
            vocabulary: number of token ids.
            length: the longest sequence; the size of the table of learned positions.
            rngs: streams `params` and `dropout`.
        """
        return self.config(vocabulary, length).build(rngs=rngs)

    def config(self, vocabulary: int, length: int) -> LanguageModelConfig:
        """The config of the library's model."""
        # Sines of size 1 would drown embeddings that start small.
        scale = self.features**0.5 if self.attention.positions == "sinusoidal" else None
        return LanguageModelConfig(
            vocabulary,
            TransformerConfig(
                features=self.features,
                num_heads=self.heads,
                num_layers=self.layers,
                num_kv_heads=self.attention.kv_heads,
                hidden=self.hidden,
                activation=self.activation,
                norm=self.norm,
                norm_position=self.norm_position,
                dropout_rate=self.dropout,
                attention=self.attention.options(longest=length, bidirectional=False),
                use_bias=self.bias,
                scan_layers=self.scan_layers,
            ),
            tied=self.tied,
            embedding_scale=scale,
            logit_cap=self.logit_cap,
        )
