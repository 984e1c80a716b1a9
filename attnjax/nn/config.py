"""What a stack of Transformer layers is made of."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx

from attnjax.nn.attention import MultiHeadAttention
from attnjax.nn.feedforward import Activation, FeedForward
from attnjax.nn.options import AttentionOptions


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and choices of a Transformer stack; builds the parts of its layers.

    Attributes:
      features: width F of the sequence.
      num_heads: number of query heads.
      num_layers: number of layers.
      num_kv_heads: number of key and value heads; None is `num_heads`.
      head_dim: head width; None is `features / num_heads`.
      hidden: width inside the feed-forward layer; None is `4 * features`.
      activation: `gelu`, `relu` or `swiglu`.
      norm: `layer` or `rms`.
      norm_position: `pre` normalises the input of each sublayer, and the stack's output; `post`
        normalises each sum, as in the first Transformer.
      dropout_rate: dropout on the stack's input, on each sublayer's output and inside the
        feed-forward layer.
      attention: options of every self-attention. Position schemes that are added to inputs are
        added once, to the stack's input. Cross-attention takes these options without position
        scheme and window.
      use_bias: biases of the feed-forward layers; attention has options of its own.
      scan_layers: keep the layers' parameters stacked and scan over them, so that compile time does
        not grow with the depth; False keeps a list of layers.
      remat: what backward passes keep of each layer: `none` recomputes nothing, `dots` keeps the
        results of matrix products without batch axes, `full` recomputes the whole layer.
      dtype: dtype of the computation; None promotes the input's with the parameters'.
      param_dtype: dtype of the parameters.
    """

    features: int
    num_heads: int
    num_layers: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    hidden: int | None = None
    activation: Activation = "gelu"
    norm: Literal["layer", "rms"] = "layer"
    norm_position: Literal["pre", "post"] = "pre"
    dropout_rate: float = 0.0
    attention: AttentionOptions = dataclasses.field(default_factory=AttentionOptions)
    use_bias: bool = True
    scan_layers: bool = False
    remat: Literal["none", "full", "dots"] = "none"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise ValueError(
                f"TransformerConfig.num_layers: expected at least 1, got {self.num_layers}."
            )
        for name, known in (
            ("norm", ("layer", "rms")),
            ("norm_position", ("pre", "post")),
            ("remat", ("none", "full", "dots")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"TransformerConfig.{name}: expected one of {', '.join(known)}; "
                    f"got {getattr(self, name)!r}."
                )

    def build_attention(self, *, cross: bool, rngs: nnx.Rngs) -> MultiHeadAttention:
        """Returns the self-attention of a layer, or its cross-attention."""
        options, position = self.attention, self.attention.position
        if cross:
            options = dataclasses.replace(options, position=None, window=None)
        elif position is not None and position.absolute:
            options = dataclasses.replace(options, position=None)
        return MultiHeadAttention(
            self.features,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            options=options,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )

    def build_feed_forward(self, *, rngs: nnx.Rngs) -> FeedForward:
        """Returns the feed-forward layer of a layer."""
        return FeedForward(
            self.features,
            4 * self.features if self.hidden is None else self.hidden,
            activation=self.activation,
            dropout_rate=self.dropout_rate,
            use_bias=self.use_bias,
            kernel_init=self.attention.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )

    def build_norm(self, *, rngs: nnx.Rngs) -> nnx.LayerNorm | nnx.RMSNorm:
        """Returns a normalisation over the features."""
        norm = nnx.LayerNorm if self.norm == "layer" else nnx.RMSNorm
        return norm(self.features, dtype=self.dtype, param_dtype=self.param_dtype, rngs=rngs)
