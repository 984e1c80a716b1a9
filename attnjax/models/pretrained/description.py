"""From a `config.json` to a model of ours."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx

from attnjax.models.pretrained.bert import bert
from attnjax.models.pretrained.fields import Fields
from attnjax.models.pretrained.gemma import gemma, gemma2, gemma3
from attnjax.models.pretrained.gpt2 import gpt2
from attnjax.models.pretrained.gpt_oss import gpt_oss
from attnjax.models.pretrained.layout import Build, Layout, Tensors
from attnjax.models.pretrained.llama import llama, mistral, qwen2, qwen3
from attnjax.models.pretrained.t5 import t5

Describe = Callable[[Fields, Build, Tensors | None], Layout]


@dataclasses.dataclass(frozen=True)
class _Type:
    """A model type: its classes of the transformers library, the usual one first."""

    architectures: tuple[str, ...]
    describe: Describe


_TYPES = {
    "bert": _Type(("BertModel", "BertForMaskedLM", "BertForQuestionAnswering"), bert),
    "gemma": _Type(("GemmaForCausalLM",), gemma),
    "gemma2": _Type(("Gemma2ForCausalLM",), gemma2),
    "gemma3_text": _Type(("Gemma3ForCausalLM",), gemma3),
    "gpt2": _Type(("GPT2LMHeadModel",), gpt2),
    "gpt_oss": _Type(("GptOssForCausalLM",), gpt_oss),
    "llama": _Type(("LlamaForCausalLM",), llama),
    "mistral": _Type(("MistralForCausalLM",), mistral),
    "qwen2": _Type(("Qwen2ForCausalLM",), qwen2),
    "qwen3": _Type(("Qwen3ForCausalLM",), qwen3),
    "t5": _Type(("T5ForConditionalGeneration",), t5),
}
_DTYPES = {
    "float32": jnp.float32,
    "float16": jnp.float16,
    "bfloat16": jnp.bfloat16,
    "float64": jnp.float64,
}


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model of the transformers library, as a model of ours.

    Attributes:
      fields: its `config.json`.
      layout: the config of ours, and which tensor of theirs is which parameter.
    """

    fields: Mapping[str, Any]
    layout: Layout

    @property
    def model(self) -> Any:
        """The config of ours: a `LanguageModelConfig`, a `Seq2SeqConfig` and so on."""
        return self.layout.model

    def build(self, *, rngs: nnx.Rngs) -> Any:
        """Builds the model with new parameters, for training from scratch."""
        return self.layout.model.build(rngs=rngs)


def describe(
    fields: Mapping[str, Any],
    *,
    scan_layers: bool = False,
    remat: Literal["none", "full", "dots"] = "none",
    dtype: Any = None,
    param_dtype: Any = None,
    tensors: Tensors | None = None,
) -> Pretrained:
    """Says which model of ours computes what a `config.json` describes.

    Every field must be understood or be known to have no effect. Dropout is left out: it is not
    part of what a model computes, and fine-tuning chooses its own.

    Args:
      fields: the content of `config.json`.
      scan_layers: as in `TransformerConfig`; for models whose layers are all alike.
      remat: as in `TransformerConfig`.
      dtype: of the computation; None is the parameters'.
      param_dtype: of new parameters; None is the one that the fields name, or float32.
      tensors: the tensors by name, where they decide what the fields leave open.

    Raises:
      ValueError: if a field is missing or makes no sense.
      NotImplementedError: for a model type, a field or a value that cannot be computed here.
    """
    kind = fields.get("model_type")
    if kind == "gemma3":
        raise NotImplementedError(
            "config.json: model_type 'gemma3' reads images, too; only its text model, "
            "'gemma3_text', can be loaded."
        )
    if kind not in _TYPES:
        raise NotImplementedError(
            f"config.json: model_type: only {', '.join(_TYPES)} can be loaded, got {kind!r}."
        )
    _check_quantization(fields.get("quantization_config"))
    known, got = _TYPES[kind], fields.get("architectures")
    if got and (len(got) > 1 or got[0] not in known.architectures):
        raise NotImplementedError(
            f"config.json: architectures: only {' or '.join(known.architectures)} can be loaded, "
            f"got {', '.join(got)}."
        )
    build = Build(scan_layers, remat, dtype, param_dtype or _stored_dtype(fields))
    layout = known.describe(Fields(_without_quantization(fields)), build, tensors)
    return Pretrained(copy.deepcopy(dict(fields)), layout)


def architecture(fields: Mapping[str, Any]) -> str:
    """Returns the class of the transformers library that described fields belong to."""
    named: str = (fields.get("architectures") or _TYPES[fields["model_type"]].architectures)[0]
    return named


def _check_quantization(found: Any) -> None:
    if found is None:
        return
    method = found.get("quant_method") if isinstance(found, Mapping) else found
    raise NotImplementedError(
        f"config.json: quantization_config: weights quantized by {method!r} can't be loaded, for "
        "every parameter here is a float of 16 bits or more. Load them with the transformers "
        "library, dequantize them to bfloat16 and save them again."
    )


def _without_quantization(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "quantization_config"}


def _stored_dtype(fields: Mapping[str, Any]) -> Any:
    name = fields.get("dtype") or fields.get("torch_dtype") or "float32"
    if name not in _DTYPES:
        raise ValueError(f"config.json: dtype: expected one of {', '.join(_DTYPES)}; got {name!r}.")
    return _DTYPES[name]
