"""What a stack of Transformer layers is made of."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx

from attnjax.nn.attention import MultiHeadAttention
from attnjax.nn.experts import ExpertOptions, MixtureOfExperts
from attnjax.nn.feedforward import Activation, FeedForward
from attnjax.nn.norms import NORMS, NormKind, build_norm
from attnjax.nn.options import AttentionOptions
from attnjax.nn.positions import RelativeBias


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
      activation: `gelu`, `gelu_exact`, `relu`, `swiglu` or `geglu`; `FeedForward` says what it is.
      experts: make each feed-forward layer a `MixtureOfExperts`, in which `activation` and the
        dropout inside the layer have no say; None: one for all.
      norm: `layer`, `rms`, or `rms_offset`, which multiplies by `1 + scale`.
      norm_epsilon: what the norms add to the variance.
      norm_position: `pre` normalises the input of each sublayer, and the stack's output; `both`
        also the output of each sublayer before it is added; `post` normalises each sum, as in the
        first Transformer.
      input_norm: normalise the stack's input, after positions are added.
      dropout_rate: dropout on the stack's input, on each sublayer's output and inside the
        feed-forward layer.
      attention: options of every self-attention. Position schemes that are added to inputs are
        added once, to the stack's input. Cross-attention takes these options without position
        scheme and window.
      attention_layers: options of each layer's self-attention, in the place of `attention`, which
        the rest of the stack still takes; for example windows in every other layer. Needs
        `scan_layers=False`.
      shared_position: one table of relative biases for all layers, as in T5.
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
    experts: ExpertOptions | None = None
    norm: NormKind = "layer"
    norm_epsilon: float = 1e-6
    norm_position: Literal["pre", "post", "both"] = "pre"
    input_norm: bool = False
    dropout_rate: float = 0.0
    attention: AttentionOptions = dataclasses.field(default_factory=AttentionOptions)
    attention_layers: tuple[AttentionOptions, ...] | None = None
    shared_position: bool = False
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
            ("norm", NORMS),
            ("norm_position", ("pre", "post", "both")),
            ("remat", ("none", "full", "dots")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"TransformerConfig.{name}: expected one of {', '.join(known)}; "
                    f"got {getattr(self, name)!r}."
                )
        if not self.norm_epsilon > 0:
            raise ValueError(
                "TransformerConfig.norm_epsilon: expected a positive number, got "
                f"{self.norm_epsilon!r}."
            )
        if self.attention_layers is not None:
            self._check_layers(self.attention_layers)
        if self.shared_position and not isinstance(self.attention.position, RelativeBias):
            raise ValueError(
                "TransformerConfig.shared_position: expected attention.position to be a "
                f"RelativeBias, got {self.attention.position!r}."
            )

    def _check_layers(self, layers: tuple[AttentionOptions, ...]) -> None:
        if len(layers) != self.num_layers:
            raise ValueError(
                f"TransformerConfig.attention_layers: expected {self.num_layers}, one for each "
                f"layer, got {len(layers)}."
            )
        if self.scan_layers:
            raise ValueError(
                "TransformerConfig.scan_layers: expected False with attention_layers, for a scan "
                "needs equal layers."
            )
        if self.shared_position or any(o.position and o.position.absolute for o in layers):
            raise ValueError(
                "TransformerConfig.attention_layers: expected positions that each layer applies "
                "itself; give those added to inputs, or a shared table, to attention alone."
            )

    def build_attention(self, *, cross: bool, layer: int, rngs: nnx.Rngs) -> MultiHeadAttention:
        """Returns the self-attention of a layer, or its cross-attention."""
        options, position = self.attention, self.attention.position
        if cross:
            options = dataclasses.replace(options, position=None, window=None)
        elif self.attention_layers is not None:
            options = self.attention_layers[layer]
        elif position is not None and (position.absolute or self.shared_position):
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

    def build_feed_forward(self, *, rngs: nnx.Rngs) -> FeedForward | MixtureOfExperts:
        """Returns the feed-forward layer of a layer."""
        hidden = 4 * self.features if self.hidden is None else self.hidden
        shared: dict[str, Any] = {
            "use_bias": self.use_bias,
            "kernel_init": self.attention.kernel_init,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
            "rngs": rngs,
        }
        if self.experts is not None:
            return MixtureOfExperts(self.features, hidden, options=self.experts, **shared)
        return FeedForward(
            self.features,
            hidden,
            activation=self.activation,
            dropout_rate=self.dropout_rate,
            **shared,
        )

    def build_norm(self, *, rngs: nnx.Rngs) -> Any:
        """Returns a normalisation over the features."""
        return build_norm(
            self.norm,
            self.features,
            epsilon=self.norm_epsilon,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )
