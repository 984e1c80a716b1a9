"""Readers of stories: padding, order, ages and the weights they show."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax import Prefix
from train.common.optim import dotted
from train.common.spans.models import RULES as SPAN_RULES
from train.common.spans.models import SpanReaderConfig
from train.common.stories.models import RULES, StoryModelConfig, sentence_ages

B, S, W, V, C = 3, 5, 4, 17, 7


def build(name: str, **options):
    config = StoryModelConfig(name=name, features=8, heads=2, steps=3, hidden=11, **options)
    model = config.build(vocabulary=V, words=W, answers=C, max_sentences=S, rngs=nnx.Rngs(0))
    model.eval()
    return model


def inputs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    story, question = rng.integers(1, V, (B, S, W)), rng.integers(1, V, (B, W))
    for b, length in enumerate((5, 3, 1)):
        story[b, length:] = 0
    story[:, :, 3] = 0
    question[:, 2:] = 0
    return story.astype(np.int32), question.astype(np.int32)


def compiled(model):
    graph, state = nnx.split(model)
    return jax.jit(lambda s, q: nnx.merge(graph, state)(s, q, return_weights=True))


@pytest.mark.first(1)
@pytest.mark.parametrize("name", ["recurrent", "memory"])
def test_padding_changes_nothing_and_order_does(name):
    answer = compiled(build(name))
    story, question = inputs()
    logits, weights = answer(story, question)
    assert logits.shape == (B, C)
    assert weights.shape == (B, 3, S)
    again, more = answer(np.pad(story, ((0, 0), (0, 4), (0, 0))), question)
    np.testing.assert_allclose(again, logits, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(more[..., :S], weights, rtol=2e-4, atol=1e-5)
    np.testing.assert_array_equal(more[..., S:], 0)
    for b, length in enumerate((5, 3, 1)):
        np.testing.assert_array_equal(weights[b, :, length:], 0)
        total = weights[b].sum(-1)
        if name == "memory":
            np.testing.assert_allclose(total, 1, rtol=1e-5)
        else:
            assert np.all((total > 0) & (total < 1)), "the rest is on the question itself"
    turned = np.concatenate([story[:1, ::-1], story[1:]])
    assert not np.allclose(answer(turned, question)[0][0], logits[0], atol=1e-4), "of sentences"
    swapped = story[..., [1, 0, 2, 3]]
    assert not np.allclose(answer(swapped, question)[0], logits, atol=1e-4), "of words"


def test_the_weights_shown_are_those_of_the_attention():
    model = build("transformer")
    story, question = inputs()
    weights = compiled(model)(story, question)[1][:, 0]

    # The first layer's attention, its values made to tell which place they are from.
    layer, H = model.layers[0], 4
    told = jnp.zeros((8, 2, H)).at[0, :, 0].set(1.0)
    layer.attention.value.kernel[...] = told
    layer.attention.value.bias[...] = jnp.zeros((2, H))
    layer.attention.out.kernel[...] = jnp.zeros((2, H, 8)).at[:, 0, 0].set(0.5)
    layer.attention.out.bias[...] = jnp.zeros(8)

    @jax.jit
    def read(x):
        """The weighted mean that the question reads, and what it is a mean of."""
        x = layer.attention_norm(x)
        mask = Prefix(jnp.array([6, 4, 2]))
        return layer.attention(x, mask=mask)[:, 0, 0], x[..., 0]

    x = jax.jit(model.embed)(story, question) + model.steps[...][0]
    mean, feature = read(x)
    own = 1 - weights.sum(-1)
    expected = own * feature[:, 0] + jnp.sum(weights * feature[:, 1:], axis=-1)
    np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-6)


def test_a_recurrent_reader_has_one_layer():
    count = {name: len(build(name).layers) for name in ("recurrent", "transformer")}
    assert count == {"recurrent": 1, "transformer": 3}


def test_ages_count_back_from_the_question_and_noise_adds_to_them():
    there = jnp.array([[True, True, True, False], [True, False, False, False]])
    quiet = nnx.Dropout(0.5, deterministic=True)
    ages = sentence_ages(there, quiet)
    assert ages[:, :3].tolist() == [[2, 1, 0], [0, 0, 0]]
    many = jnp.ones((200, 30), bool)
    noisy = sentence_ages(many, nnx.Dropout(0.25, rngs=nnx.Rngs(0)))
    steps = np.asarray(noisy[:, :-1] - noisy[:, 1:])
    assert set(np.unique(steps)) == {1, 2}
    np.testing.assert_allclose(np.mean(steps == 2), 0.25, atol=0.03)


@pytest.mark.parametrize("name", ["recurrent", pytest.param("memory", marks=pytest.mark.slow)])
def test_gradients_reach_every_parameter(name):
    story, question = inputs()
    graph, params, rest = nnx.split(build(name), nnx.Param, ...)

    def loss(params):
        return jnp.sum(nnx.merge(graph, params, rest)(story, question)[0][:, 0] ** 2)

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert np.isfinite(gradient).all()
        assert np.any(gradient != 0), path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"features": 10, "heads": 4}, "features 10 must be a multiple of heads 4"),
        ({"age_noise": 1.0}, r"age_noise must lie in \[0, 1\), got 1.0"),
    ],
)
def test_sizes_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StoryModelConfig(**options)


@pytest.mark.parametrize("name", ["recurrent", "memory", "spans"])
def test_every_parameter_has_a_place_on_a_mesh(name):
    def make():
        if name != "spans":
            return build(name)
        config = SpanReaderConfig(features=8, heads=2, layers=1)
        return config.build(vocabulary=V, max_tokens=16, rngs=nnx.Rngs(0))

    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(make), nnx.Param))
    rules = SPAN_RULES if name == "spans" else RULES
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        assert rules.logical(dotted(path), x.shape) is not None, dotted(path)
