"""GPT-2."""

from __future__ import annotations

import dataclasses

import numpy as np

from attnjax.models.language import LanguageModelConfig
from attnjax.models.pretrained.causal import OURS
from attnjax.models.pretrained.fields import DROPOUTS, IRRELEVANT, Fields
from attnjax.models.pretrained.layout import Build, Layout, Tensors
from attnjax.models.pretrained.rules import Arrays, Rule, same, transposed
from attnjax.nn import AttentionOptions, LearnedPositions, TransformerConfig

_ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu": "gelu_exact",
    "relu": "relu",
}
# Of a head for classes; and how float16 is computed.
_OTHER = frozenset(
    {"n_ctx", "reorder_and_upcast_attn", "summary_activation", "summary_type"}
    | {"summary_proj_to_labels", "summary_use_proj"}
)
# The causal mask, which files of older versions hold as a tensor.
_BUFFERS = (r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",)


def gpt2(fields: Fields, build: Build, tensors: Tensors | None) -> Layout:
    """Describes a GPT-2 model."""
    features, num_heads = fields.size("n_embd"), fields.size("n_head")
    layers, head_dim = fields.size("n_layer"), features // num_heads
    options = AttentionOptions(
        position=LearnedPositions(fields.size("n_positions", 1024)),
        use_bias=True,
        key_bias=True,
        scale=None if fields.flag("scale_attn_weights", True) else 1.0,
    )
    per_layer = None
    if fields.flag("scale_attn_by_inverse_layer_idx", False):
        scale = head_dim**-0.5 if options.scale is None else options.scale
        per_layer = tuple(
            dataclasses.replace(options, position=None, scale=scale / (n + 1))
            for n in range(layers)
        )
    decoder = TransformerConfig(
        features,
        num_heads,
        layers,
        hidden=fields.size("n_inner", 4 * features),
        activation=fields.choice("activation_function", _ACTIVATIONS, "gelu_new"),
        norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
        attention=options,
        attention_layers=per_layer,
        **build.options(),
    )
    model = LanguageModelConfig(
        fields.size("vocab_size"), decoder, tied=fields.flag("tie_word_embeddings", True)
    )
    fields.finish(IRRELEVANT, DROPOUTS, _OTHER)
    bare = tensors is not None and "wte.weight" in tensors
    return Layout(
        model,
        _rules(model),
        copies={"lm_head.weight": "transformer.wte.weight"} if model.tied else {},
        ignored=_BUFFERS,
        rename=_prefixed if bare else str,
    )


def _prefixed(name: str) -> str:
    """Names of files that hold the model without its head lack the prefix."""
    return name if name == "lm_head.weight" else f"transformer.{name}"


def _rules(model: LanguageModelConfig) -> tuple[Rule, ...]:
    rules = [
        same("transformer.wte.weight", "embedding.embedding"),
        same("transformer.wpe.weight", "decoder.inputs.table"),
        same("transformer.ln_f.weight", "decoder.norm.scale"),
        same("transformer.ln_f.bias", "decoder.norm.bias"),
    ]
    if not model.tied:
        rules.append(transposed("lm_head.weight", "output.kernel"))
    for n in range(model.decoder.num_layers):
        rules += _layer(model.decoder.num_heads, n)
    return tuple(rules)


def _layer(num_heads: int, n: int) -> list[Rule]:
    theirs, attention = f"transformer.h.{n}", f"{OURS}.attention"
    rules = [
        _fused(f"{theirs}.attn.c_attn.weight", "kernel", n, num_heads),
        _fused(f"{theirs}.attn.c_attn.bias", "bias", n, num_heads),
        _merged(f"{theirs}.attn.c_proj.weight", f"{attention}.out.kernel", n, num_heads),
        same(f"{theirs}.attn.c_proj.bias", f"{attention}.out.bias", n),
    ]
    for name, own in (("ln_1", "attention_norm"), ("ln_2", "feed_forward_norm")):
        rules.append(same(f"{theirs}.{name}.weight", f"{OURS}.{own}.scale", n))
        rules.append(same(f"{theirs}.{name}.bias", f"{OURS}.{own}.bias", n))
    for name, own in (("c_fc", "up"), ("c_proj", "down")):
        ours = f"{OURS}.feed_forward.{own}"
        rules.append(same(f"{theirs}.mlp.{name}.weight", f"{ours}.kernel", n))
        rules.append(same(f"{theirs}.mlp.{name}.bias", f"{ours}.bias", n))
    return rules


def _fused(theirs: str, leaf: str, n: int, num_heads: int) -> Rule:
    """Queries, keys and values side by side, `[..., 3 * N * H]`; `[..., N, H]` each of ours."""
    ours = tuple(f"{OURS}.attention.{own}.{leaf}" for own in ("query", "key", "value"))

    def read(x: np.ndarray) -> Arrays:
        x = x.reshape(*x.shape[:-1], 3, num_heads, -1)
        return tuple(x[..., part, :, :] for part in range(3))

    def write(xs: Arrays) -> np.ndarray:
        return np.stack(xs, axis=-3).reshape(*xs[0].shape[:-2], -1)

    return Rule(theirs, ours, n, read, write)


def _merged(theirs: str, ours: str, n: int, num_heads: int) -> Rule:
    """A matrix `[N * H, F]` of theirs, `[N, H, F]` of ours."""

    def read(x: np.ndarray) -> Arrays:
        return (x.reshape(num_heads, -1, x.shape[-1]),)

    return Rule(theirs, (ours,), n, read, lambda xs: xs[0].reshape(-1, xs[0].shape[-1]))
