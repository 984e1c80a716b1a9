"""Gemma 1, 2 and 3 (text)."""

from __future__ import annotations

import dataclasses
from typing import Any

from attnjax.models.language import LanguageModelConfig
from attnjax.models.pretrained import causal
from attnjax.models.pretrained.fields import DROPOUTS, IRRELEVANT, Fields
from attnjax.models.pretrained.layout import Build, Layout, Tensors
from attnjax.models.pretrained.rope import read_rotary, rotary
from attnjax.nn import AttentionOptions, TransformerConfig

# All of them are the tanh approximation: "gelu" is what the first release wrote by mistake.
_GEGLU = {"gelu_pytorch_tanh": "geglu", "gelu": "geglu"}
_TANH = "gelu_pytorch_tanh"


def gemma(fields: Fields, build: Build, tensors: Tensors | None) -> Layout:
    """Describes a Gemma 1 model."""
    options = dataclasses.replace(_options(fields), position=read_rotary(fields, 10_000.0))
    return _finish(fields, build, {"attention": options, "activation": _activation(fields)})


def gemma2(fields: Fields, build: Build, tensors: Tensors | None) -> Layout:
    """Describes a Gemma 2 model: every other layer has a window, scores and logits are capped."""
    options = dataclasses.replace(
        _options(fields),
        position=read_rotary(fields, 10_000.0),
        scale=fields.number("query_pre_attn_scalar", 256) ** -0.5,
        soft_cap=fields.number("attn_logit_softcapping", None),
    )
    sliding = causal.windowed(options, fields.size("sliding_window", 4096))
    fields.only("sliding_window_size", fields.size("sliding_window", 4096))
    types = causal.layer_types(fields, _every(fields, 2))
    return _finish(
        fields,
        build,
        {
            **causal.by_type(types, options, sliding),
            "norm_position": "both",
            "activation": _activation(fields),
        },
        logit_cap=fields.number("final_logit_softcapping", None),
    )


def gemma3(fields: Fields, build: Build, tensors: Tensors | None) -> Layout:
    """Describes a Gemma 3 text model: layers with a window have rotary positions of their own."""
    options = dataclasses.replace(
        _options(fields),
        scale=fields.number("query_pre_attn_scalar", 256) ** -0.5,
        soft_cap=fields.number("attn_logit_softcapping", None),
        qk_norm="rms_offset",
        qk_norm_epsilon=fields.number("rms_norm_eps", 1e-6),
    )
    sliding = causal.windowed(options, fields.size("sliding_window", 4096))
    period = fields.size("sliding_window_pattern", fields.size("_sliding_window_pattern", 6))
    types = causal.layer_types(fields, _every(fields, period))
    full_position, sliding_position = _positions(fields)
    attention = causal.by_type(
        types,
        dataclasses.replace(options, position=full_position),
        dataclasses.replace(sliding, position=sliding_position),
    )
    return _finish(
        fields,
        build,
        {
            **attention,
            "norm_position": "both",
            "activation": _activation(fields),
        },
        logit_cap=fields.number("final_logit_softcapping", None),
    )


def _activation(fields: Fields) -> str:
    """Returns what either of two fields names; published configs have one of them or both."""
    fields.choice("hidden_act", _GEGLU, _TANH)
    found: str = fields.choice("hidden_activation", _GEGLU, _TANH)
    return found


def _options(fields: Fields) -> AttentionOptions:
    fields.only("use_bidirectional_attention", False)
    bias = fields.flag("attention_bias", False)
    return AttentionOptions(use_bias=bias, key_bias=bias)


def _every(fields: Fields, period: int) -> list[str]:
    """The layer types of which one in `period` has no window."""
    layers = fields.size("num_hidden_layers")
    return ["sliding_attention" if (n + 1) % period else "full_attention" for n in range(layers)]


def _positions(fields: Fields) -> tuple[Any, Any]:
    """Returns the positions of full layers and of those with a window."""
    theta = fields.number("rope_theta", 1_000_000.0)
    local = fields.number("rope_local_base_freq", 10_000.0)
    length = fields.size("max_position_embeddings", None)
    parts, scaling = fields.part("rope_parameters"), fields.part("rope_scaling")
    if parts is None:
        return rotary(scaling, theta, length), rotary(None, local, length)
    if scaling is not None:
        raise ValueError("config.json: expected rope_parameters or rope_scaling, got both.")
    full, sliding = parts.part("full_attention"), parts.part("sliding_attention")
    parts.finish()
    return rotary(full, theta, length), rotary(sliding, local, length)


def _finish(
    fields: Fields, build: Build, choices: dict[str, Any], *, logit_cap: float | None = None
) -> Layout:
    sizes = causal.sizes(fields)
    decoder = TransformerConfig(
        **{
            **sizes,
            "head_dim": fields.size("head_dim", 256),
            "hidden": fields.size("intermediate_size"),
            "norm": "rms_offset",
            "norm_epsilon": fields.number("rms_norm_eps", 1e-6),
            "use_bias": False,
            **choices,
            **build.options(),
        }
    )
    model = LanguageModelConfig(
        fields.size("vocab_size"),
        decoder,
        tied=fields.flag("tie_word_embeddings", True),
        embedding_scale=sizes["features"] ** 0.5,
        logit_cap=logit_cap,
    )
    fields.finish(IRRELEVANT, DROPOUTS)
    return causal.layout(model)
