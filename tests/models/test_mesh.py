"""Models on a mesh: every parameter has a place, and the results are those of one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from attnjax.models import (
    LanguageModelConfig,
    MaskedLanguageModelConfig,
    RecurrentSeq2SeqConfig,
    Seq2SeqConfig,
    SpanModelConfig,
    TextEncoderConfig,
    next_token_loss,
)
from attnjax.nn import (
    AttentionOptions,
    LearnedPositions,
    RelativeBias,
    Rotary,
    TransformerConfig,
    spread,
)
from attnjax.sharding.laying import AXES, partition_on
from attnjax.sharding.rules import TRANSFORMER, shardings

V, F = 16, 16


def _stack(position=None, **changes):
    options = AttentionOptions(position=position, sinks=True, qk_norm="rms", key_bias=True)
    return TransformerConfig(F, 4, 2, hidden=24, attention=options, **changes)


MODELS = {
    "language": LanguageModelConfig(V, _stack(Rotary(), activation="swiglu"), tied=False),
    "scanned": LanguageModelConfig(V, _stack(LearnedPositions(8), scan_layers=True)),
    "seq2seq": Seq2SeqConfig(V, V, _stack(), _stack(RelativeBias(reach=2)), tied="none", copy=True),
    "bahdanau": RecurrentSeq2SeqConfig(V, V, F, 2, 2, tied="none", copy=True),
    "luong": RecurrentSeq2SeqConfig(V, V, F, attention="luong", cell="gru"),
    "span": SpanModelConfig(V, _stack(), segments=3),
    "masked": MaskedLanguageModelConfig(TextEncoderConfig(V, _stack(), segments=2, pooler=True)),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_place(name):
    model = nnx.eval_shape(lambda: MODELS[name].build(rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        dotted = jax.tree_util.keystr(path, simple=True, separator=".")
        assert TRANSFORMER.logical(dotted, x.shape) is not None, dotted
    mesh = AbstractMesh((2, 2, 4, 1), AXES)
    places = shardings(params, mesh, dataclasses.replace(TRANSFORMER, min_size=2 * F))
    assert places["embedding" if name not in ("span", "masked") else "text"]
    if name == "seq2seq":
        assert places["output"]["kernel"].spec == P("fsdp", "model")
        assert places["pointer"]["query"]["kernel"].spec == P("fsdp", None)


def _loss(name, model, tokens):
    if name in ("language", "scanned"):
        return next_token_loss(model, tokens[:, :-1], tokens[:, 1:], block=2)
    lengths = jnp.arange(1, len(tokens) + 1) % 4 + 1
    found = model.target_logprobs(tokens[:, :4], tokens[:, :-1], tokens[:, 1:], lengths, block=2)
    return -jnp.mean(found)


@pytest.mark.mesh
@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("language", {"fsdp": 2, "model": 2, "seq": 2}),
        ("seq2seq", {"fsdp": 4, "model": 2}),
        ("bahdanau", {"data": 2, "fsdp": 4}),
    ],
)
def test_a_loss_and_its_gradients_are_those_of_one_device(name, sizes):
    model = MODELS[name].build(rngs=nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(0), (8, 9), 0, V)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    params = nnx.to_pure_dict(params)

    def gradients(graph):
        def loss(params, tokens):
            return _loss(name, nnx.merge(graph, params, rest), tokens)

        return jax.jit(jax.value_and_grad(loss))

    wanted = gradients(graph)(params, tokens)
    full = {axis: sizes.get(axis, 1) for axis in AXES}
    mesh = jax.make_mesh(tuple(full.values()), AXES, axis_types=(AxisType.Auto,) * 4)
    assert spread(model, partition_on(full, "ring")) > 0
    rules = dataclasses.replace(TRANSFORMER, min_size=2 * F)
    placed = jax.device_put(params, shardings(params, mesh, rules))
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(placed))
    with jax.set_mesh(mesh):
        found = gradients(nnx.split(model, nnx.Param, ...)[0])(placed, tokens)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, wanted)
