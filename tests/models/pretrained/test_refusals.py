"""What cannot be loaded is refused by name, and what is understood is not."""

import json

import numpy as np
import pytest

from attnjax.models.pretrained import describe, load, save
from attnjax.models.pretrained.loading import TensorFolder
from tests.models.pretrained import tiny

_TEXTS = json.loads(np.load(tiny.FROZEN)["texts"].tobytes())
LLAMA, GPT2, T5 = (tiny.CONFIGS[name] for name in ("llama", "gpt2", "t5"))


def _without(fields, *names):
    return {name: value for name, value in fields.items() if name not in names}


def _rope(**fields):
    return LLAMA | {"rope_parameters": fields}


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_configs_of_the_library_are_understood(name):
    assert describe(_TEXTS[name]["config"]).layout.rules


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_unknown_fields_are_refused(name):
    with pytest.raises(NotImplementedError, match=r"cannot tell what a_new_trick would change"):
        describe(tiny.CONFIGS[name] | {"a_new_trick": True})


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({}, NotImplementedError, "model_type: only bert, gemma, .* got None"),
        ({"model_type": "mamba"}, NotImplementedError, "model_type: only .* got 'mamba'"),
        ({"model_type": "gemma3"}, NotImplementedError, "'gemma3' reads images, too"),
        (
            tiny.CONFIGS["gpt_oss"] | {"quantization_config": {"quant_method": "mxfp4"}},
            NotImplementedError,
            "quantized by 'mxfp4' can't be loaded, for every parameter here is a float",
        ),
        (
            LLAMA | {"architectures": ["LlamaForSequenceClassification"]},
            NotImplementedError,
            "architectures: only LlamaForCausalLM can be loaded, got LlamaForSequenceCl",
        ),
        (_without(LLAMA, "hidden_size"), ValueError, "hidden_size: expected a positive integer"),
        (LLAMA | {"hidden_size": "30"}, ValueError, "hidden_size: expected .* got '30'"),
        (LLAMA | {"num_hidden_layers": 0}, ValueError, "num_hidden_layers: .* got 0"),
        (LLAMA | {"num_attention_heads": True}, ValueError, "num_attention_heads: .* got True"),
        (LLAMA | {"rms_norm_eps": "1e-6"}, ValueError, "rms_norm_eps: expected a positive number"),
        (LLAMA | {"attention_bias": "no"}, ValueError, "attention_bias: expected true or false"),
        (LLAMA | {"hidden_act": "relu"}, NotImplementedError, "hidden_act: only silu .* 'relu'"),
        (LLAMA | {"pretraining_tp": 2}, NotImplementedError, "pretraining_tp: only 1 .* got 2"),
        (LLAMA | {"dtype": "int8"}, ValueError, "dtype: expected one of float32, .* 'int8'"),
        (
            LLAMA | {"partial_rotary_factor": 0.5},
            NotImplementedError,
            "partial_rotary_factor: only 1.0 can be loaded, got 0.5",
        ),
        (
            LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            ValueError,
            "expected rope_parameters or rope_scaling, got both",
        ),
        (_rope(rope_type="dynamic"), NotImplementedError, "'dynamic' cannot be loaded: its freq"),
        (_rope(rope_type="longrope"), NotImplementedError, "'longrope' cannot be loaded"),
        (_rope(rope_type="spiral"), NotImplementedError, "rope_type: only default, .* 'spiral'"),
        (_rope(rope_type="linear"), ValueError, "rope_parameters: factor: expected a positive"),
        (
            _rope(rope_type="default", beta_fast=3.0),
            NotImplementedError,
            "rope_parameters: cannot tell what beta_fast would change",
        ),
        (LLAMA | {"rope_parameters": 4}, ValueError, "rope_parameters: expected fields in braces"),
        (
            tiny.CONFIGS["gemma2"] | {"layer_types": ["chunked_attention", "full_attention"]},
            NotImplementedError,
            "layer_types: only full_attention, sliding_attention can be loaded, got chunked",
        ),
        (
            tiny.CONFIGS["gemma2"] | {"layer_types": ["full_attention"]},
            ValueError,
            "layer_types: expected 2, one for each layer, got 1",
        ),
        (
            tiny.CONFIGS["gemma3"] | {"use_bidirectional_attention": True},
            NotImplementedError,
            "use_bidirectional_attention: only False can be loaded, got True",
        ),
        (
            tiny.CONFIGS["qwen2"]
            | {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 2},
            ValueError,
            "sliding_window: expected a number for layers of type sliding_attention",
        ),
        (
            GPT2 | {"add_cross_attention": True},
            NotImplementedError,
            "add_cross_attention: only False can be loaded, got True",
        ),
        (
            GPT2 | {"activation_function": "tanh"},
            NotImplementedError,
            "activation_function: only gelu_new, .* got 'tanh'",
        ),
        (GPT2 | {"pruned_heads": {"0": [1]}}, NotImplementedError, "pruned_heads: only {} can"),
        (T5 | {"feed_forward_proj": "gated-tanh"}, NotImplementedError, "feed_forward_proj: only"),
        (T5 | {"dense_act_fn": "silu"}, NotImplementedError, "dense_act_fn: only 'relu' can be"),
        (
            tiny.CONFIGS["bert"] | {"position_embedding_type": "relative_key"},
            NotImplementedError,
            "position_embedding_type: only 'absolute' can be loaded",
        ),
        (
            tiny.CONFIGS["bert"] | {"is_decoder": True},
            NotImplementedError,
            "is_decoder: only False can be loaded",
        ),
    ],
)
def test_refuses_by_name(fields, error, message):
    with pytest.raises(error, match=message):
        describe(fields)


def test_older_configs_mean_the_same():
    new = LLAMA | {"rope_parameters": {"rope_type": "linear", "rope_theta": 50.0, "factor": 2.0}}
    old = _without(LLAMA, "rope_parameters") | {
        "rope_theta": 50.0,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "torch_dtype": "float32",
    }
    assert describe(new).model == describe(old).model
    gemma3 = tiny.CONFIGS["gemma3"]
    old = _without(gemma3, "rope_parameters", "layer_types") | {
        "rope_theta": 1000.0,
        "rope_local_base_freq": 100.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 2,
    }
    assert describe(gemma3).model == describe(old).model
    assert describe(T5 | {"num_decoder_layers": 2}).model == describe(T5).model


@pytest.fixture
def folder(tmp_path):
    """A folder with the smallest of the tiny models, GPT-2."""
    tiny.write(tmp_path, _TEXTS["gpt2"]["config"], _TEXTS["gpt2"]["shapes"])
    return tmp_path


def _rewrite(folder, change):
    weights = tiny.read(folder / "model.safetensors")
    change(weights)
    tiny.save(folder / "model.safetensors", weights)


def _drop(name):
    return lambda weights: weights.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("transformer.h.1.ln_2.bias"), "1 of them are missing: transformer.h.1.ln_2.bias"),
        (
            lambda w: w.update(extra=np.ones(1)),
            "1 tensors have no place in what config.json describes: extra",
        ),
        (
            lambda w: w.update({"transformer.wpe.weight": np.ones((18, 33), np.float32)}),
            r"transformer.wpe.weight: expected floats that make arrays of shape \(19, 33\), .* got "
            r"shape \(18, 33\), dtype float32",
        ),
        (
            lambda w: w.update({"transformer.h.0.attn.c_attn.bias": np.ones(98, np.float32)}),
            r"c_attn.bias: expected floats that make arrays of shape \(3, 11\) and",
        ),
        (
            lambda w: w.update({"transformer.ln_f.bias": np.ones(33, np.int32)}),
            "transformer.ln_f.bias: expected floats .* dtype int32",
        ),
        (
            lambda w: w.update({"lm_head.weight": np.ones((23, 33), np.float32)}),
            "expected lm_head.weight to equal transformer.wte.weight",
        ),
    ],
)
def test_weights_that_do_not_fit(folder, change, message):
    _rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        load(folder)


def _break(name, text):
    return lambda folder: (folder / name).write_text(text)


def _cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _index(**where):
    def change(folder):
        text = json.dumps({"weight_map": where})
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        (folder / "model.safetensors.index.json").write_text(text)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "expected a folder with config.json, found none"),
        (_break("config.json", "{"), "config.json: expected JSON, got"),
        (_break("config.json", "[]"), "config.json: expected fields in braces, got list"),
        (lambda f: (f / "model.safetensors").unlink(), "pytorch_model.bin, can't be read"),
        (_cut, "model.safetensors: expected a safetensors file, got"),
        (_index(a="gone.safetensors"), "gone.safetensors: .* names this file, but it is missing"),
        (_index(a="part.safetensors"), "part.safetensors: expected a, as .*index.json says"),
        (_index(a="../part.safetensors"), r"expected files of this folder, got \.\./part"),
        (_index(a=3), "expected a weight_map of names to files"),
    ],
)
def test_broken_folders(folder, change, message):
    change(folder)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_says_how_to_install_safetensors(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install 'attnjax\[pretrained\]'"):
        load(folder)


def test_names_in_older_files(folder, tmp_path):
    """GPT-2 as it was published: no prefix, and the mask among the weights."""
    first, _ = load(folder)

    def change(weights):
        for name in list(weights):
            weights[name.removeprefix("transformer.")] = weights.pop(name)
        weights["h.0.attn.bias"] = np.tri(19, dtype=np.float32)
        weights["h.0.attn.masked_bias"] = np.array(-1e4, np.float32)

    _rewrite(folder, change)
    second, config = load(folder)
    np.testing.assert_array_equal(first(tiny.tokens(0, 3)), second(tiny.tokens(0, 3)))
    save(second, config, tmp_path / "ours", shard_bytes=10_000)
    assert set(TensorFolder(tmp_path / "ours")) == _TEXTS["gpt2"]["shapes"].keys()


def test_nothing_is_written_over_another(folder):
    model, config = load(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"expected no config.json; nothing is written over"):
        save(model, config, folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_model_of_another_config_is_not_written(folder, tmp_path):
    model, _ = load(folder)
    other = describe(GPT2 | {"n_layer": 3})
    with pytest.raises(ValueError, match=r"model: expected the parameters that the config descri"):
        save(model, other, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
