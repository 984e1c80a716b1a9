"""T5, version 1.0 and 1.1."""

from __future__ import annotations

from typing import Any

import numpy as np

from attnjax.models.pretrained.causal import OURS as DECODER
from attnjax.models.pretrained.fields import DROPOUTS, IRRELEVANT, Fields
from attnjax.models.pretrained.layout import Build, Layout, Tensors
from attnjax.models.pretrained.rules import Rule, heads, merged_heads, same, transposed
from attnjax.models.seq2seq import Seq2SeqConfig
from attnjax.nn import AttentionOptions, RelativeBias, TransformerConfig

_ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "gated-gelu": "geglu",
    "gated-gelu_new": "geglu",
    "gated-silu": "swiglu",
}
_EMBEDDING, _HEAD = "shared.weight", "lm_head.weight"
_ENCODER = "encoder.stack.layers.*"
# In files of the first release; cross-attention never had relative positions.
_UNUSED = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)


def t5(fields: Fields, build: Build, tensors: Tensors | None) -> Layout:
    """Describes a T5 model."""
    tied_by_config = fields.flag("tie_word_embeddings", True)
    # The field has two meanings: newer configs always set it, and say apart whether to scale.
    scaled = fields.flag("scale_decoder_outputs", tied_by_config)
    tied = tied_by_config if tensors is None else _is_tied(tensors)
    features, layers = fields.size("d_model"), fields.size("num_layers")
    encoder = _stack(fields, build, layers, bidirectional=True)
    decoder = _stack(fields, build, fields.size("num_decoder_layers", layers), bidirectional=False)
    vocabulary = fields.size("vocab_size")
    model = Seq2SeqConfig(
        vocabulary,
        vocabulary,
        encoder,
        decoder,
        tied="all" if tied else "inputs",
        logit_scale=features**-0.5 if scaled else None,
    )
    fields.finish(IRRELEVANT, DROPOUTS, {"n_positions"})  # its positions have no end
    copies = {f"{side}.embed_tokens.weight": _EMBEDDING for side in ("encoder", "decoder")}
    if tied:
        copies[_HEAD] = _EMBEDDING
    return Layout(model, _rules(model), copies, _UNUSED)


def _is_tied(tensors: Tensors) -> bool:
    return _HEAD not in tensors or np.array_equal(tensors[_HEAD], tensors[_EMBEDDING])


def _stack(fields: Fields, build: Build, layers: int, *, bidirectional: bool) -> TransformerConfig:
    position = RelativeBias(
        kind="t5",
        buckets=fields.size("relative_attention_num_buckets", 32),
        bidirectional=bidirectional,
        max_distance=fields.size("relative_attention_max_distance", 128),
    )
    num_heads = fields.size("num_heads")
    return TransformerConfig(
        fields.size("d_model"),
        num_heads,
        layers,
        head_dim=fields.size("d_kv", 64),
        hidden=fields.size("d_ff"),
        activation=_activation(fields),
        norm="rms",
        norm_epsilon=fields.number("layer_norm_epsilon", 1e-6),
        attention=AttentionOptions(position=position, use_bias=False, scale=1.0),
        shared_position=True,
        use_bias=False,
        **build.options(),
    )


def _activation(fields: Fields) -> Any:
    name = fields.get("feed_forward_proj", "relu")
    found = fields.choice("feed_forward_proj", _ACTIVATIONS, "relu")
    # Newer configs repeat in these what the name says.
    plain = str(name).removeprefix("gated-")
    fields.only("is_gated_act", str(name).startswith("gated-"))
    fields.only("dense_act_fn", "gelu_new" if name == "gated-gelu" else plain)
    return found


def _rules(model: Seq2SeqConfig) -> tuple[Rule, ...]:
    rules = [same(_EMBEDDING, "embedding.embedding")]
    if model.tied != "all":
        rules.append(transposed(_HEAD, "output.kernel"))
    for side, config in (("encoder", model.encoder), ("decoder", model.decoder)):
        table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        rules.append(transposed(table, f"{side}.inputs.table"))
        rules.append(same(f"{side}.final_layer_norm.weight", f"{side}.norm.scale"))
        for n in range(config.num_layers):
            rules += _layer(config, side, n)
    return tuple(rules)


def _layer(config: TransformerConfig, side: str, n: int) -> list[Rule]:
    ours = _ENCODER if side == "encoder" else DECODER
    parts = [("SelfAttention", "attention")]
    if side == "decoder":
        parts.append(("EncDecAttention", "cross"))
    rules = []
    for place, (name, own) in enumerate(parts):
        theirs = f"{side}.block.{n}.layer.{place}"
        rules.append(same(f"{theirs}.layer_norm.weight", f"{ours}.{own}_norm.scale", n))
        for short, long in (("q", "query"), ("k", "key"), ("v", "value")):
            kernel = f"{ours}.{own}.{long}.kernel"
            rules.append(heads(f"{theirs}.{name}.{short}.weight", kernel, n, config.num_heads))
        kernel = f"{ours}.{own}.out.kernel"
        rules.append(merged_heads(f"{theirs}.{name}.o.weight", kernel, n, config.num_heads))
    theirs = f"{side}.block.{n}.layer.{len(parts)}"
    rules.append(same(f"{theirs}.layer_norm.weight", f"{ours}.feed_forward_norm.scale", n))
    gated = config.activation in ("geglu", "swiglu")
    names = {"wi_0": "gate", "wi_1": "up", "wo": "down"} if gated else {"wi": "up", "wo": "down"}
    for name, own in names.items():
        kernel = f"{ours}.feed_forward.{own}.kernel"
        rules.append(transposed(f"{theirs}.DenseReluDense.{name}.weight", kernel, n))
    return rules
