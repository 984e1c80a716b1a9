"""Llama, Mistral, Qwen2 and Qwen3."""

from __future__ import annotations

from typing import Any

from attnjax.models.language import LanguageModelConfig
from attnjax.models.pretrained import causal
from attnjax.models.pretrained.fields import DROPOUTS, IRRELEVANT, Fields
from attnjax.models.pretrained.layout import Build, Layout, Tensors
from attnjax.models.pretrained.rope import read_rotary
from attnjax.nn import AttentionOptions, TransformerConfig


def llama(fields: Fields, build: Build, tensors: Tensors | None) -> Layout:
    """Describes a Llama model."""
    bias = fields.flag("attention_bias", False)
    fields.only("pretraining_tp", 1)
    options = _options(fields, use_bias=bias, key_bias=bias)
    return _finish(fields, build, {"attention": options}, use_bias=fields.flag("mlp_bias", False))


def mistral(fields: Fields, build: Build, tensors: Tensors | None) -> Layout:
    """Describes a Mistral model, all of whose layers may have a window."""
    options, window = _options(fields), fields.size("sliding_window", None)
    if window is not None:
        options = causal.windowed(options, window)
    return _finish(fields, build, {"attention": options})


def qwen2(fields: Fields, build: Build, tensors: Tensors | None) -> Layout:
    """Describes a Qwen2 model, the last of whose layers may have a window."""
    fields.only("use_mrope", False)
    options = _options(fields, use_bias=True, key_bias=True, out_bias=False)
    return _finish(fields, build, _qwen_attention(fields, options))


def qwen3(fields: Fields, build: Build, tensors: Tensors | None) -> Layout:
    """Describes a Qwen3 model: queries and keys are normalised."""
    bias = fields.flag("attention_bias", False)
    options = _options(
        fields,
        use_bias=bias,
        key_bias=bias,
        qk_norm="rms",
        qk_norm_epsilon=fields.number("rms_norm_eps", 1e-6),
    )
    head_dim = fields.size("head_dim", 128)
    return _finish(fields, build, {**_qwen_attention(fields, options), "head_dim": head_dim})


def _options(fields: Fields, **options: Any) -> AttentionOptions:
    return AttentionOptions(
        **{"position": read_rotary(fields, 10_000.0), "use_bias": False, **options}
    )


def _qwen_attention(fields: Fields, options: AttentionOptions) -> dict[str, Any]:
    layers = fields.size("num_hidden_layers")
    window, first = fields.size("sliding_window", 4096), fields.get("max_window_layers", 28)
    use = fields.flag("use_sliding_window", False)
    default = [
        "sliding_attention" if use and n >= first else "full_attention" for n in range(layers)
    ]
    types = causal.layer_types(fields, default)
    if "sliding_attention" not in types:
        return {"attention": options}
    return causal.by_type(types, options, causal.windowed(options, window if use else None))


def _finish(
    fields: Fields, build: Build, attention: dict[str, Any], *, use_bias: bool = False
) -> Layout:
    decoder = TransformerConfig(
        **{
            **causal.sizes(fields),
            "hidden": fields.size("intermediate_size"),
            "activation": fields.choice("hidden_act", {"silu": "swiglu"}, "silu"),
            "norm": "rms",
            "norm_epsilon": fields.number("rms_norm_eps", 1e-6),
            "use_bias": use_bias,
            **attention,
            **build.options(),
        }
    )
    model = LanguageModelConfig(
        fields.size("vocab_size"), decoder, tied=fields.flag("tie_word_embeddings", False)
    )
    fields.finish(IRRELEVANT, DROPOUTS)
    return causal.layout(model)
