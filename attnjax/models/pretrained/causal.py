"""What models of the Llama kind have in common: names of tensors, and kinds of layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from attnjax.models.language import LanguageModelConfig
from attnjax.models.pretrained.fields import Fields
from attnjax.models.pretrained.layout import Layout
from attnjax.models.pretrained.rules import Rule, head_bias, heads, merged_heads, same, transposed
from attnjax.nn import AttentionOptions, TransformerConfig

LAYER_TYPES = ("full_attention", "sliding_attention")
_NORMS = {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}
_FOUR_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_after": "post_attention_layernorm",
    "feed_forward_norm": "pre_feedforward_layernorm",
    "feed_forward_after": "post_feedforward_layernorm",
}
# Kept in files of older versions: frequencies, which follow from the config.
_BUFFERS = (r".*\.rotary_emb\.inv_freq",)
OURS = "decoder.stack.layers.*"


def sizes(fields: Fields) -> dict[str, Any]:
    """Returns the sizes of a stack under the names that most configs use."""
    num_heads = fields.size("num_attention_heads")
    return {
        "features": fields.size("hidden_size"),
        "num_heads": num_heads,
        "num_kv_heads": fields.size("num_key_value_heads", num_heads),
        "head_dim": fields.size("head_dim", None),
        "num_layers": fields.size("num_hidden_layers"),
    }


def layer_types(fields: Fields, default: Sequence[str]) -> Sequence[str]:
    """Returns the kind of each layer, `full_attention` or `sliding_attention`.

    Args:
      fields: the config.
      default: kinds where the config does not say them.

    Raises:
      ValueError: for another number of them than there are layers.
      NotImplementedError: for a kind that cannot be computed here.
    """
    found = fields.get("layer_types")
    found = default if found is None else found
    if len(found) != len(default):
        raise ValueError(
            f"config.json: layer_types: expected {len(default)}, one for each layer, got "
            f"{len(found)}."
        )
    unknown = sorted(set(found) - set(LAYER_TYPES))
    if unknown:
        raise NotImplementedError(
            f"config.json: layer_types: only {', '.join(LAYER_TYPES)} can be loaded, got "
            f"{', '.join(unknown)}."
        )
    return found


def by_type(
    types: Sequence[str], full: AttentionOptions, sliding: AttentionOptions
) -> dict[str, Any]:
    """Returns the attention of a stack whose layers are of these types.

    Layers that are all alike are one option, so that they can be scanned.
    """
    options = tuple(full if kind == "full_attention" else sliding for kind in types)
    alike = all(o == options[0] for o in options)
    return {"attention": options[0], "attention_layers": None if alike else options}


def windowed(options: AttentionOptions, window: int | None) -> AttentionOptions:
    """Returns the options of a layer whose queries see `window` positions, their own included.

    Raises:
      ValueError: if a layer wants a window and there is none.
    """
    if window is None:
        raise ValueError(
            "config.json: sliding_window: expected a number for layers of type sliding_attention."
        )
    return dataclasses.replace(options, window=(window - 1, None))


def layout(model: LanguageModelConfig) -> Layout:
    """Returns the layout of a decoder-only model whose tensors are named as Llama's."""
    decoder = model.decoder
    rules = [
        same("model.embed_tokens.weight", "embedding.embedding"),
        same("model.norm.weight", "decoder.norm.scale"),
    ]
    if not model.tied:
        rules.append(transposed("lm_head.weight", "output.kernel"))
    for n in range(decoder.num_layers):
        rules += _layer(decoder, n)
    copies = {"lm_head.weight": "model.embed_tokens.weight"} if model.tied else {}
    return Layout(model, tuple(rules), copies, _BUFFERS)


def _layer(decoder: TransformerConfig, n: int) -> list[Rule]:
    theirs = f"model.layers.{n}"
    norms = _FOUR_NORMS if decoder.norm_position == "both" else _NORMS
    rules = [
        same(f"{theirs}.{name}.weight", f"{OURS}.{own}.scale", n) for own, name in norms.items()
    ]
    rules += attention_rules(decoder, f"{theirs}.self_attn", f"{OURS}.attention", n)
    if decoder.experts is None:
        rules += feed_forward_rules(decoder, f"{theirs}.mlp", n)
    return rules


def attention_rules(config: TransformerConfig, theirs: str, ours: str, n: int) -> list[Rule]:
    """Returns the rules of a layer's attention."""
    options = config.attention
    kv_heads = config.num_heads if config.num_kv_heads is None else config.num_kv_heads
    rules = []
    for name, own, count, bias in (
        ("q_proj", "query", config.num_heads, options.use_bias),
        ("k_proj", "key", kv_heads, options.key_bias),
        ("v_proj", "value", kv_heads, options.use_bias),
    ):
        rules.append(heads(f"{theirs}.{name}.weight", f"{ours}.{own}.kernel", n, count))
        if bias:
            rules.append(head_bias(f"{theirs}.{name}.bias", f"{ours}.{own}.bias", n, count))
    rules.append(merged_heads(f"{theirs}.o_proj.weight", f"{ours}.out.kernel", n, config.num_heads))
    if options.use_bias if options.out_bias is None else options.out_bias:
        rules.append(same(f"{theirs}.o_proj.bias", f"{ours}.out.bias", n))
    if options.qk_norm is not None:
        rules.append(same(f"{theirs}.q_norm.weight", f"{ours}.query_norm.scale", n))
        rules.append(same(f"{theirs}.k_norm.weight", f"{ours}.key_norm.scale", n))
    if options.sinks:
        rules.append(same(f"{theirs}.sinks", f"{ours}.sinks", n))
    return rules


def feed_forward_rules(config: TransformerConfig, theirs: str, n: int) -> list[Rule]:
    """Returns the rules of a layer's gated feed-forward layer."""
    rules = []
    for own in ("gate", "up", "down"):
        ours = f"{OURS}.feed_forward.{own}"
        rules.append(transposed(f"{theirs}.{own}_proj.weight", f"{ours}.kernel", n))
        if config.use_bias:
            rules.append(same(f"{theirs}.{own}_proj.bias", f"{ours}.bias", n))
    return rules
