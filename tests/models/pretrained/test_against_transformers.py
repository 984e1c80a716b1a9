"""Tiny models beside those of the transformers library: padding, steps, and the way back.

Needs transformers and torch, which no extra holds: `pip install torch transformers`.
"""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from attnjax.models.pretrained import load, save
from tests.models.pretrained import tiny

torch = pytest.importorskip("torch", reason="needs torch and transformers")
pytest.importorskip("transformers", reason="needs torch and transformers")

from tests.models.pretrained import theirs  # noqa: E402, it imports both

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
CLOSE = {"rtol": 0, "atol": 1e-4}
PROMPT = 5


@pytest.fixture
def saved(tmp_path, request):
    """The name of a tiny model, and the folder that theirs was saved to, with weights of 1."""
    name = request.param
    model = theirs.make(name)
    with torch.no_grad():
        for key, x in model.named_parameters():
            x.copy_(torch.tensor(tiny.values(key, tuple(x.shape))))
    model.save_pretrained(tmp_path / "theirs")
    return name, tmp_path / "theirs"


every = pytest.mark.parametrize("saved", tiny.CONFIGS, indirect=True)
causal = pytest.mark.parametrize("saved", tiny.CAUSAL, indirect=True)


@every
def test_way_back(saved, tmp_path):
    name, folder = saved
    model, config = load(folder)
    want = theirs.compute(theirs.load(name, folder), name)
    got = np.asarray(tiny.compute(model, name))
    rows = [(0, slice(None)), (1, slice(7 if "bert" in name else None))]
    for row in rows:
        np.testing.assert_allclose(got[row], want[row], **CLOSE)

    save(model, config, tmp_path / "ours", shard_bytes=20_000)
    assert (tmp_path / "ours" / "model.safetensors.index.json").exists()
    np.testing.assert_array_equal(theirs.compute(theirs.load(name, tmp_path / "ours"), name), want)
    again, _ = load(tmp_path / "ours")
    states = (jax.tree.leaves(nnx.state(m, nnx.Param)) for m in (model, again))
    for first, second in zip(*states, strict=True):
        np.testing.assert_array_equal(first, second)
    one, two = (json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "ours"))
    assert one == two


@causal
def test_steps_with_a_cache(saved):
    name, folder = saved
    model, _ = load(folder)
    want = theirs.compute(theirs.load(name, folder), name)
    ids = tiny.tokens(0, tiny.T)
    logits, cache = model.decode(ids[:, :PROMPT], model.init_cache(tiny.B, tiny.T))
    parts, step = [logits], nnx.jit(lambda model, ids, cache: model.decode(ids, cache))
    for t in range(PROMPT, tiny.T):
        logits, cache = step(model, ids[:, t : t + 1], cache)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), want, **CLOSE)


@causal
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(saved, side):
    name, folder = saved
    model, _ = load(folder)
    ids, t = tiny.tokens(0, tiny.T), np.arange(tiny.T)
    there = (
        (t < tiny.LENGTHS[:, None]) if side == "right" else (t >= tiny.T - tiny.LENGTHS[:, None])
    )
    with torch.no_grad():
        out = theirs.load(name, folder)(
            input_ids=torch.tensor(ids),
            attention_mask=torch.tensor(there),
            position_ids=torch.arange(tiny.T)[None],
        )
    got = np.asarray(model(ids, mask=jnp.asarray(there)[:, None, None]))
    np.testing.assert_allclose(got[there], out.logits.numpy()[there], **CLOSE)


@pytest.mark.parametrize("saved", ["t5", "t5-1.1"], indirect=True)
def test_steps_of_a_target(saved):
    name, folder = saved
    model, _ = load(folder)
    want = theirs.compute(theirs.load(name, folder), name)
    source, target = tiny.tokens(1, tiny.SOURCE), tiny.tokens(0, tiny.T)
    cache = model.init_cache(source, jnp.asarray(tiny.SOURCE_LENGTHS), tiny.T)
    logits, cache = model.decode(target[:, :PROMPT], cache)
    parts, step = [logits], nnx.jit(lambda model, ids, cache: model.decode(ids, cache))
    for t in range(PROMPT, tiny.T):
        logits, cache = step(model, target[:, t : t + 1], cache)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), want, **CLOSE)


@pytest.mark.parametrize("saved", ["llama", "gpt2", "t5", "bert"], indirect=True)
def test_scanned_layers(saved, tmp_path):
    name, folder = saved
    model, config = load(folder, scan_layers=True)
    want = theirs.compute(theirs.load(name, folder), name)
    np.testing.assert_allclose(np.asarray(tiny.compute(model, name))[0], want[0], **CLOSE)
    save(model, config, tmp_path / "ours")
    first, second = (tiny.read(f / "model.safetensors") for f in (folder, tmp_path / "ours"))
    assert first.keys() == second.keys()
    for key, x in first.items():
        np.testing.assert_array_equal(second[key], x)


@pytest.mark.parametrize("saved", ["bert"], indirect=True)
def test_pooled(saved):
    name, folder = saved
    model, _ = load(folder)
    with torch.no_grad():
        want = theirs.load(name, folder)(input_ids=torch.tensor(tiny.tokens(0, tiny.T)))
    got = model.pool(model(tiny.tokens(0, tiny.T)))
    np.testing.assert_allclose(got, want.pooler_output.numpy(), **CLOSE)


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_bfloat16(name, tmp_path):
    theirs.make(name).to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    model, config = load(tmp_path / "theirs")
    assert {x.dtype for x in jax.tree.leaves(nnx.state(model, nnx.Param))} == {
        jnp.dtype(jnp.bfloat16)
    }
    wide, _ = load(tmp_path / "theirs", param_dtype=jnp.float32)
    want = theirs.compute(theirs.load(name, tmp_path / "theirs", dtype=torch.float32), name)
    np.testing.assert_allclose(np.asarray(tiny.compute(wide, name)), want, **CLOSE)
    save(model, config, tmp_path / "ours")
    first, second = (tiny.read(tmp_path / f / "model.safetensors") for f in ("theirs", "ours"))
    for key, x in first.items():
        assert x.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(second[key], x)


def test_head_of_its_own(tmp_path):
    """T5 1.1 as it was published: a head that is no copy of the embedding."""
    name = "t5-1.1"
    theirs.make(name).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields["tie_word_embeddings"] = False
    del fields["scale_decoder_outputs"]
    weights = {key: x.shape for key, x in tiny.read(tmp_path / "model.safetensors").items()}
    tiny.write(tmp_path, fields, {**weights, "lm_head.weight": weights["shared.weight"]})
    model, config = load(tmp_path)
    assert config.model.tied == "inputs"
    want = theirs.compute(theirs.load(name, tmp_path), name)
    np.testing.assert_allclose(np.asarray(tiny.compute(model, name)), want, **CLOSE)
