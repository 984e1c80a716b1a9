"""gpt-oss: learned sinks, every other layer with a window, and a mixture of experts."""

from __future__ import annotations

import dataclasses

from attnjax.models.language import LanguageModelConfig
from attnjax.models.pretrained import causal
from attnjax.models.pretrained.fields import DROPOUTS, IRRELEVANT, Fields
from attnjax.models.pretrained.layout import Build, Layout, Tensors
from attnjax.models.pretrained.rope import read_rotary
from attnjax.models.pretrained.rules import Rule, interleaved, same, transposed
from attnjax.nn import AttentionOptions, ExpertOptions, TransformerConfig, yarn_rotary

# What is meant where the config does not say how positions are stretched.
_YARN = yarn_rotary(base=150_000.0, factor=32.0, original_length=4096, truncate=False)
# How training balanced the experts, and its length, which the positions name, too.
_OTHER = frozenset({"initial_context_length", "output_router_logits", "router_aux_loss_coef"})


def gpt_oss(fields: Fields, build: Build, tensors: Tensors | None) -> Layout:
    """Describes a gpt-oss model with bfloat16 or float32 weights."""
    bias = fields.flag("attention_bias", True)
    plain = fields.get("rope_parameters") is None and fields.get("rope_scaling") is None
    options = AttentionOptions(
        position=_YARN if plain else read_rotary(fields, 150_000.0),
        use_bias=bias,
        key_bias=bias,
        sinks=True,
    )
    sizes = causal.sizes(fields)
    types = causal.layer_types(
        fields, [causal.LAYER_TYPES[(n + 1) % 2] for n in range(sizes["num_layers"])]
    )
    sliding = causal.windowed(options, fields.size("sliding_window", 128))
    fields.only("hidden_act", "silu")
    decoder = TransformerConfig(
        **{
            **sizes,
            "head_dim": fields.size("head_dim", 64),
            "hidden": fields.size("intermediate_size"),
            "experts": _experts(fields),
            "norm": "rms",
            "norm_epsilon": fields.number("rms_norm_eps", 1e-5),
            **causal.by_type(types, options, sliding),
            **build.options(),
        }
    )
    model = LanguageModelConfig(
        fields.size("vocab_size"), decoder, tied=fields.flag("tie_word_embeddings", False)
    )
    fields.finish(IRRELEVANT, DROPOUTS, _OTHER)
    layout = causal.layout(model)
    experts = (rule for n in range(decoder.num_layers) for rule in _expert_rules(n))
    return dataclasses.replace(layout, rules=(*layout.rules, *experts))


def _experts(fields: Fields) -> ExpertOptions:
    count = fields.size("num_local_experts", 128)
    per_token = fields.size("num_experts_per_tok", 4)
    fields.only("num_experts", count)
    fields.only("experts_per_token", per_token)
    return ExpertOptions(
        count,
        per_token,
        alpha=fields.number("swiglu_alpha", 1.702),
        shift=1.0,
        limit=fields.number("swiglu_limit", 7.0),
    )


def _expert_rules(n: int) -> list[Rule]:
    theirs, ours = f"model.layers.{n}.mlp", f"{causal.OURS}.feed_forward"
    experts = f"{theirs}.experts"
    return [
        transposed(f"{theirs}.router.weight", f"{ours}.router.kernel", n),
        same(f"{theirs}.router.bias", f"{ours}.router.bias", n),
        interleaved(f"{experts}.gate_up_proj", f"{ours}.gate", f"{ours}.up", n),
        interleaved(f"{experts}.gate_up_proj_bias", f"{ours}.gate_bias", f"{ours}.up_bias", n),
        same(f"{experts}.down_proj", f"{ours}.down", n),
        same(f"{experts}.down_proj_bias", f"{ours}.down_bias", n),
    ]
