"""Tiny models of every type, whose weights follow from the names of their tensors."""

import json
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

FROZEN = Path(__file__).with_name("frozen.npz")
VOCABULARY, B, T, SOURCE = 23, 2, 11, 13
LENGTHS, SOURCE_LENGTHS = np.array([11, 7]), np.array([13, 8])

_CAUSAL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 30,
    "intermediate_size": 41,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_HEADED = {**_CAUSAL, "head_dim": 14}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 150.0,
    "factor": 4.0,
    "beta_fast": 8.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 16,
}
_GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
_BERT = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": 33,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 37,
    "max_position_embeddings": 19,
    "type_vocab_size": 2,
}
_GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": VOCABULARY,
    "n_embd": 33,
    "n_head": 3,
    "n_layer": 2,
    "n_positions": 19,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_T5 = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": VOCABULARY,
    "d_model": 29,
    "d_kv": 7,
    "d_ff": 37,
    "num_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 9,
}


def _causal(model_type, architecture, base=_HEADED, **fields):
    return {"model_type": model_type, "architectures": [architecture], **base, **fields}


CONFIGS = {
    "llama": _causal(
        "llama",
        "LlamaForCausalLM",
        rope_parameters=_LLAMA3,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
    ),
    "llama-tied": _causal("llama", "LlamaForCausalLM", base=_CAUSAL, tie_word_embeddings=True)
    | {"hidden_size": 36},
    "mistral": _causal("mistral", "MistralForCausalLM", sliding_window=5),
    "qwen2": _causal(
        "qwen2",
        "Qwen2ForCausalLM",
        base=_CAUSAL | {"hidden_size": 36},
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=1,
    ),
    "qwen3": _causal("qwen3", "Qwen3ForCausalLM", tie_word_embeddings=True),
    "gemma": _causal("gemma", "GemmaForCausalLM"),
    "gemma2": _causal("gemma2", "Gemma2ForCausalLM", sliding_window=4, query_pre_attn_scalar=11),
    "gemma3": _causal(
        "gemma3_text",
        "Gemma3ForCausalLM",
        sliding_window=4,
        query_pre_attn_scalar=11,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters=_GEMMA3_ROPE,
    ),
    "gpt2": _GPT2,
    "gpt2-untied": _GPT2
    | {"tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True, "n_inner": 41},
    "gpt_oss": _causal(
        "gpt_oss",
        "GptOssForCausalLM",
        sliding_window=4,
        num_local_experts=5,
        num_experts_per_tok=2,
        rope_parameters=_YARN,
    ),
    "bert": _BERT | {"architectures": ["BertModel"]},
    "bert-masked": _BERT | {"architectures": ["BertForMaskedLM"]},
    "bert-span": _BERT | {"architectures": ["BertForQuestionAnswering"]},
    "t5": _T5,
    "t5-1.1": _T5
    | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 3},
}
CAUSAL = [name for name, c in CONFIGS.items() if c["model_type"] not in ("bert", "t5")]


def values(name, shape):
    """Returns numbers that look random and are the same to the bit everywhere, float32."""
    x = np.arange(np.prod(shape, dtype=int), dtype=np.uint32) * np.uint32(2654435761)
    x = x + np.uint32(zlib.crc32(name.encode()))
    for _ in range(2):
        x = (x ^ (x >> 16)) * np.uint32(0x45D9F3B)
    x = (x >> 8).astype(np.float32) / 2**24 - np.float32(0.5)
    if name.endswith("Attention.q.weight"):
        x = x / 8  # T5 has no score scale: loud queries would magnify every rounding
    norm = name.endswith("weight") and any(part in name.lower() for part in ("norm", "ln_"))
    return (x + np.float32(norm)).reshape(shape)


def write(folder, fields, shapes, dtype=np.float32):
    """Writes the folder of a model: `config.json`, and weights of these shapes."""
    weights = {name: values(name, shape).astype(dtype) for name, shape in shapes.items()}
    (folder / "config.json").write_text(json.dumps(fields))
    save(folder / "model.safetensors", weights)


def tokens(seed, length):
    """Returns token ids `[B, length]`."""
    return np.random.default_rng(seed).integers(3, VOCABULARY, (B, length), dtype=np.int32)


def segments():
    """Returns the segment of each token, `[B, T]`."""
    return np.broadcast_to(np.arange(T) > 3, (B, T)).astype(np.int32)


def compute(model, name):
    """Returns what a model of ours computes: the logits, or the hidden states of an encoder."""
    kind = CONFIGS[name]["model_type"]
    if kind == "t5":
        return model(tokens(1, SOURCE), tokens(0, T), source_lengths=SOURCE_LENGTHS)
    if name == "bert-span":
        return jnp.stack(model(tokens(0, T), jnp.asarray(LENGTHS), segments()), axis=-1)
    if kind == "bert":
        return model(tokens(0, T), lengths=LENGTHS, segments=segments())
    return model(tokens(0, T))


def seen(name, logits):
    """Returns the outputs of the positions that are compared."""
    kind = CONFIGS[name]["model_type"]
    return logits[:, [0, 3, 6] if kind == "bert" else [0, 5, 10]]


def save(path, weights):
    """Writes tensors to a file."""
    safetensors.numpy.save_file(weights, path, {"format": "pt"})


def read(path):
    """Returns the tensors of a file by name."""
    return safetensors.numpy.load_file(path)
