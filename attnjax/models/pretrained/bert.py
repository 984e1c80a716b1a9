"""BERT: the encoder alone, or with the head that fills in masked tokens or finds spans."""

from __future__ import annotations

import re

from attnjax.models.pretrained.fields import DROPOUTS, IRRELEVANT, Fields
from attnjax.models.pretrained.layout import Build, Layout, Tensors
from attnjax.models.pretrained.rules import Rule, head_bias, heads, merged_heads, same, transposed
from attnjax.models.span import SpanModelConfig
from attnjax.models.text_encoder import MaskedLanguageModelConfig, TextEncoderConfig
from attnjax.nn import AttentionOptions, LearnedPositions, TransformerConfig

_ACTIVATIONS = {
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
}
# Of models in many languages: how their pooler was to be made, which no class of theirs reads.
_POOLER = frozenset(
    {"pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"}
    | {"pooler_size_per_head", "pooler_type"}
)
# Positions counted from 0, and heads that the class named by the config does not have.
_UNUSED = (r"(bert\.)?embeddings\.position_ids", r"cls\.seq_relationship\..*")


def bert(fields: Fields, build: Build, tensors: Tensors | None) -> Layout:
    """Describes a BERT model: its encoder, alone or under the head for masked tokens or spans."""
    head = _HEADS.get((fields.get("architectures") or [""])[0])
    fields.only("position_embedding_type", "absolute")
    fields.only("tie_word_embeddings", True)
    options = AttentionOptions(
        position=LearnedPositions(fields.size("max_position_embeddings", 512)), key_bias=True
    )
    encoder = TransformerConfig(
        fields.size("hidden_size"),
        fields.size("num_attention_heads"),
        fields.size("num_hidden_layers"),
        hidden=fields.size("intermediate_size"),
        activation=fields.choice("hidden_act", _ACTIVATIONS, "gelu"),
        norm_epsilon=fields.number("layer_norm_eps", 1e-12),
        norm_position="post",
        input_norm=True,
        attention=options,
        **build.options(),
    )
    vocabulary, segments = fields.size("vocab_size"), fields.size("type_vocab_size", 2)
    fields.finish(IRRELEVANT, DROPOUTS, _POOLER)
    if head is not None:
        return head(TextEncoderConfig(vocabulary, encoder, segments))
    pooler = tensors is None or any("pooler.dense" in name for name in tensors)
    text = TextEncoderConfig(vocabulary, encoder, segments, pooler=pooler)
    other_heads = (r"cls\..*", r"qa_outputs\..*")
    return Layout(text, _text_rules(text, "", ""), ignored=(*_UNUSED, *other_heads), rename=_bare)


def _masked(text: TextEncoderConfig) -> Layout:
    head = "cls.predictions"
    rules = (
        *_text_rules(text, "bert.", "text."),
        transposed(f"{head}.transform.dense.weight", "transform.kernel"),
        same(f"{head}.transform.dense.bias", "transform.bias"),
        same(f"{head}.transform.LayerNorm.weight", "norm.scale"),
        same(f"{head}.transform.LayerNorm.bias", "norm.bias"),
        same(f"{head}.bias", "bias"),
    )
    copies = {
        f"{head}.decoder.weight": "bert.embeddings.word_embeddings.weight",
        f"{head}.decoder.bias": f"{head}.bias",
    }
    ignored = (*_UNUSED, r"bert\.pooler\..*")
    return Layout(MaskedLanguageModelConfig(text), rules, copies, ignored, _modern)


def _span(text: TextEncoderConfig) -> Layout:
    rules = (
        *_text_rules(text, "bert.", "text."),
        transposed("qa_outputs.weight", "span.kernel"),
        same("qa_outputs.bias", "span.bias"),
    )
    model = SpanModelConfig(text.vocabulary, text.encoder, segments=text.segments)
    ignored = (*_UNUSED, r"bert\.pooler\..*", r"cls\..*")
    return Layout(model, rules, ignored=ignored, rename=_modern)


_HEADS = {"BertForMaskedLM": _masked, "BertForQuestionAnswering": _span}


def _modern(name: str) -> str:
    """The first files named the parameters of norms after the letters in the paper."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


def _bare(name: str) -> str:
    """Files of the model with a head hold the encoder under a prefix."""
    return _modern(name).removeprefix("bert.")


def _text_rules(text: TextEncoderConfig, theirs: str, ours: str) -> tuple[Rule, ...]:
    embeddings, inputs = f"{theirs}embeddings", f"{ours}encoder.inputs"
    rules = [
        same(f"{embeddings}.word_embeddings.weight", f"{ours}embedding.embedding"),
        same(f"{embeddings}.token_type_embeddings.weight", f"{ours}segment_embedding.embedding"),
        same(f"{embeddings}.position_embeddings.weight", f"{inputs}.table"),
        same(f"{embeddings}.LayerNorm.weight", f"{inputs}.norm.scale"),
        same(f"{embeddings}.LayerNorm.bias", f"{inputs}.norm.bias"),
    ]
    if text.pooler:
        rules.append(transposed(f"{theirs}pooler.dense.weight", f"{ours}pooler.kernel"))
        rules.append(same(f"{theirs}pooler.dense.bias", f"{ours}pooler.bias"))
    for n in range(text.encoder.num_layers):
        layer = f"{theirs}encoder.layer.{n}"
        rules += _layer(layer, f"{ours}encoder.stack.layers.*", n, text.encoder.num_heads)
    return tuple(rules)


def _layer(theirs: str, ours: str, n: int, num_heads: int) -> list[Rule]:
    attention, out = f"{theirs}.attention.self", f"{theirs}.attention.output.dense"
    rules = [
        merged_heads(f"{out}.weight", f"{ours}.attention.out.kernel", n, num_heads),
        same(f"{out}.bias", f"{ours}.attention.out.bias", n),
    ]
    for name in ("query", "key", "value"):
        own = f"{ours}.attention.{name}"
        rules.append(heads(f"{attention}.{name}.weight", f"{own}.kernel", n, num_heads))
        rules.append(head_bias(f"{attention}.{name}.bias", f"{own}.bias", n, num_heads))
    for name, own in (("intermediate", "up"), ("output", "down")):
        dense, mine = f"{theirs}.{name}.dense", f"{ours}.feed_forward.{own}"
        rules.append(transposed(f"{dense}.weight", f"{mine}.kernel", n))
        rules.append(same(f"{dense}.bias", f"{mine}.bias", n))
    for name, own in (("attention.output", "attention_norm"), ("output", "feed_forward_norm")):
        rules.append(same(f"{theirs}.{name}.LayerNorm.weight", f"{ours}.{own}.scale", n))
        rules.append(same(f"{theirs}.{name}.LayerNorm.bias", f"{ours}.{own}.bias", n))
    return rules
