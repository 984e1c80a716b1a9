"""Tiny models against what the transformers library computed with them (see freeze.py)."""

import json

import numpy as np
import pytest
from flax import nnx

from attnjax.models.pretrained import load, save
from tests.models.pretrained import tiny

_FILE = np.load(tiny.FROZEN)
_TEXTS = json.loads(_FILE["texts"].tobytes())
# Together they use every option; the others take as long again.
_QUICK = ("bert-masked", "gemma3", "gpt2", "gpt_oss", "llama", "qwen2", "t5-1.1")
_NAMES = [n if n in _QUICK else pytest.param(n, marks=pytest.mark.slow) for n in tiny.CONFIGS]


@pytest.fixture
def folder(tmp_path, request):
    text = _TEXTS[request.param]
    tiny.write(tmp_path, text["config"], text["shapes"])
    return request.param, tmp_path


def _compute(model, name):
    return np.asarray(nnx.jit(lambda model: tiny.compute(model, name))(model))


@pytest.mark.parametrize("folder", _NAMES, indirect=True)
def test_computes_what_theirs_computes(folder):
    name, path = folder
    model, config = load(path)
    out = tiny.seen(name, _compute(model, name))
    np.testing.assert_allclose(out, _FILE[name], rtol=0, atol=1e-4)
    assert np.std(_FILE[name]) > 0.1  # they are no zeros
    save(model, config, path / "again")
    first, again = (p / "model.safetensors" for p in (path, path / "again"))
    assert _bits(again) == _bits(first)


def _bits(path):
    loaded = tiny.read(path)
    return {name: (x.dtype, x.shape, x.tobytes()) for name, x in loaded.items()}
