"""Loading and saving apart from the model types: dtypes, placement, files, training on."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from attnjax.models.pretrained import describe, load, save
from attnjax.models.pretrained.loading import TensorFolder
from tests.models.pretrained import published, tiny

_TEXTS = json.loads(np.load(tiny.FROZEN)["texts"].tobytes())


@pytest.fixture
def folder(tmp_path):
    """A folder with the smallest of the tiny models, GPT-2."""
    tiny.write(tmp_path, _TEXTS["gpt2"]["config"], _TEXTS["gpt2"]["shapes"])
    return tmp_path


def _dtypes(model):
    return {x.dtype for x in jax.tree.leaves(nnx.state(model, nnx.Param))}


@pytest.mark.parametrize("name", published.CONFIGS)
def test_configs_as_published_are_understood(name):
    config = describe(published.CONFIGS[name])
    described = nnx.eval_shape(lambda: config.build(rngs=nnx.Rngs(0)))
    dtype = published.CONFIGS[name].get("torch_dtype", "float32")
    assert _dtypes(described) == {jnp.dtype(dtype)}


def test_parameters_keep_their_dtype_or_get_another(tmp_path):
    tiny.write(tmp_path, *_TEXTS["gpt2"].values(), dtype=ml_dtypes.bfloat16)
    model, config = load(tmp_path)
    assert _dtypes(model) == {jnp.dtype(jnp.bfloat16)}
    wide, _ = load(tmp_path, param_dtype=jnp.float32, dtype=jnp.bfloat16)
    assert _dtypes(wide) == {jnp.dtype(jnp.float32)}
    assert wide.config.decoder.dtype == jnp.bfloat16
    save(wide, config, tmp_path / "wide")
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"
    for name, x in TensorFolder(tmp_path / "wide").items():
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, TensorFolder(tmp_path)[name].astype(np.float32))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_place_sees_every_parameter_once(folder, scan_layers):
    seen = {}

    def place(path, value):
        assert path not in seen
        seen[path] = value.shape
        return jnp.asarray(value) + 1

    model, _ = load(folder, scan_layers=scan_layers, place=place)
    plain, _ = load(folder, scan_layers=scan_layers)
    state = nnx.to_flat_state(nnx.state(plain, nnx.Param))
    assert seen == {".".join(map(str, path)): x.shape for path, x in state}
    for a, b in zip(
        *(jax.tree.leaves(nnx.state(m, nnx.Param)) for m in (model, plain)), strict=True
    ):
        np.testing.assert_array_equal(a, b + 1)


def test_layers_of_several_dtypes_are_not_stacked(folder):
    weights = tiny.read(folder / "model.safetensors")
    name = "transformer.h.1.ln_1.bias"
    weights[name] = weights[name].astype(np.float16)
    tiny.save(folder / "model.safetensors", weights)
    with pytest.raises(ValueError, match=r"h.1.ln_1.bias: expected float32, .* got float16. Pass"):
        load(folder, scan_layers=True)


def test_several_files_and_one_hold_the_same(folder, tmp_path):
    model, config = load(folder)
    save(model, config, tmp_path / "many", shard_bytes=10_000)
    save(model, config, tmp_path / "one")
    names = sorted(path.name for path in (tmp_path / "many").iterdir())
    assert names[0] == "config.json" and names[-1] == "model.safetensors.index.json"
    assert names[1] == f"model-00001-of-{len(names) - 2:05d}.safetensors" and len(names) > 4
    many, one = TensorFolder(tmp_path / "many"), TensorFolder(tmp_path / "one")
    assert sorted(many) == sorted(one)
    for name, x in one.items():
        np.testing.assert_array_equal(many[name], x)
    sizes = [(tmp_path / "many" / name).stat().st_size for name in names[1:-1]]
    largest = max(x.nbytes for x in one.values())
    assert max(sizes) < max(10_000, largest) + 2_000  # and the header
    index = json.loads((tmp_path / "many" / names[-1]).read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in one.values())


def test_a_loaded_model_learns(folder):
    model, _ = load(folder)
    ids = tiny.tokens(0, 5)

    @nnx.jit
    def step(model):
        def loss(model):
            logp = jax.nn.log_softmax(model(ids[:, :-1]))
            return -jnp.mean(jnp.take_along_axis(logp, ids[:, 1:, None], -1))

        value, grads = nnx.value_and_grad(loss)(model)
        params = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads))
        return value

    losses = [float(step(model)) for _ in range(5)]
    assert losses[-1] < losses[0]
