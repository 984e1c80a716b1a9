"""The text models: against plain references, deaf to padding, with weights that are weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from train.common.text.models import TextModelConfig
from train.common.text.word_embedding import WordEmbedding, bag

B, T, G, F, V = 3, 7, 5, 8, 23
MODELS = ("bilstm_attention", "transformer")


def batch(rng: np.random.Generator, width: int = T) -> dict[str, jax.Array]:
    length = np.array([7, 1, 4])
    inside = np.arange(width) < length[:, None]
    ids = np.where(inside, rng.integers(2, V, (B, width)), 0)
    subwords = np.where(inside[..., None], rng.integers(0, 11, (B, width, G)), 0)
    return {
        "ids": jnp.asarray(ids),
        "length": jnp.asarray(length),
        "subwords": jnp.asarray(subwords),
    }


def build(name: str, **options) -> nnx.Module:
    config = TextModelConfig(name=name, features=F, heads=2, layers=2, **options)
    return config.build(vocabulary=V, buckets=10, classes=5, rngs=nnx.Rngs(0))


@pytest.mark.first(1)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("max_pooling", [True, False])
def test_weights_are_a_distribution_over_the_words(name: str, max_pooling: bool) -> None:
    model = build(name, max_pooling=max_pooling)
    model.eval()
    inputs = batch(np.random.default_rng(0))
    logits, weights = model(**inputs)
    assert logits.shape == (B, 5) and weights.shape == (B, T)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    outside = np.arange(T) >= np.asarray(inputs["length"])[:, None]
    np.testing.assert_array_equal(np.asarray(weights)[outside], 0)
    assert np.isfinite(logits).all()


@pytest.mark.first(1)
@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_nothing(name: str) -> None:
    model = build(name)
    model.eval()
    inputs = batch(np.random.default_rng(1))
    rng = np.random.default_rng(2)
    wider = {
        "ids": jnp.concatenate([inputs["ids"], rng.integers(2, V, (B, 4))], axis=1),
        "subwords": jnp.concatenate([inputs["subwords"], rng.integers(1, 11, (B, 4, G))], axis=1),
        "length": inputs["length"],
    }
    logits, weights = model(**inputs)
    wide_logits, wide_weights = model(**wider)
    np.testing.assert_allclose(wide_logits, logits, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(wide_weights[:, :T], weights, rtol=2e-5, atol=1e-6)


@pytest.mark.first(1)
@pytest.mark.parametrize("positions", ["relative", "sinusoidal", "rotary", "none"])
def test_positions_tell_the_order_of_words(positions: str) -> None:
    model = build("transformer", positions=positions, max_pooling=False)
    model.eval()
    ids = jnp.array([[3, 4, 5, 6]])
    subwords = jnp.zeros((1, 4, G), int)
    one, other = (model(i, jnp.array([4]), subwords)[0] for i in (ids, ids[:, ::-1]))
    assert np.allclose(one, other, rtol=1e-4) == (positions == "none")


@pytest.mark.first(1)
@pytest.mark.parametrize("name", MODELS)
def test_every_word_counts_and_so_does_every_parameter(name: str) -> None:
    model = build(name)
    model.eval()
    inputs = batch(np.random.default_rng(3))
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def total(params, scale):
        merged = nnx.merge(graph, params, rest)
        merged.embedding_dropout = lambda x: x * scale[..., None]
        return jnp.sum(merged(**inputs)[0] ** 2)

    by_param, by_word = jax.grad(total, argnums=(0, 1))(params, jnp.ones((B, T)))
    for path, gradient in jax.tree.leaves_with_path(by_param):
        assert np.abs(np.asarray(gradient)).sum() > 0, jax.tree_util.keystr(path)
    inside = np.arange(T) < np.asarray(inputs["length"])[:, None]
    assert (np.asarray(by_word)[inside] != 0).all()
    np.testing.assert_array_equal(np.asarray(by_word)[~inside], 0)


@pytest.mark.parametrize("name", MODELS)
def test_training_mode_drops_and_evaluation_mode_repeats(name: str) -> None:
    model = build(name)
    inputs = batch(np.random.default_rng(4))
    model.train()
    assert not np.allclose(model(**inputs)[0], model(**inputs)[0])
    model.eval()
    np.testing.assert_array_equal(model(**inputs)[0], model(**inputs)[0])


def test_word_dropout_hides_spelling_and_identity() -> None:
    model = build(
        "bilstm_attention",
        word_dropout=0.999999,
        embedding_dropout=0.0,
        dropout=0.0,
        output_dropout=0.0,
    )
    model.train()
    one, other = (batch(np.random.default_rng(seed)) for seed in (5, 6))
    # With every word hidden only the lengths are left, and these are the same.
    np.testing.assert_allclose(model(**one)[0], model(**other)[0], rtol=1e-5, atol=1e-6)


def test_a_bag_sums_rows_and_ignores_index_0() -> None:
    rng = np.random.default_rng(10)
    table = jnp.asarray(rng.normal(size=(11, F)), jnp.float32)
    index = jnp.asarray(rng.integers(0, 11, (B, T, G)))
    probe = jnp.asarray(rng.normal(size=(B, T, F)), jnp.float32)

    def plain(table):
        return jnp.sum(jnp.where(index[..., None] > 0, table[index], 0), axis=2)

    np.testing.assert_allclose(bag(table, index), plain(table), rtol=1e-6, atol=1e-6)
    ours = jax.grad(lambda t: jnp.sum(bag(t, index) * probe))(table)
    wanted = jax.grad(lambda t: jnp.sum(plain(t) * probe))(table)
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ours[0], 0)


def test_an_embedding_adds_the_mean_of_the_ngrams() -> None:
    embedding = WordEmbedding(V, 10, F, rngs=nnx.Rngs(0))
    ids, subwords = jnp.array([[3, 4]]), jnp.array([[[2, 5, 0], [0, 0, 0]]])
    tokens, ngrams = embedding.tokens[...], embedding.ngrams[...]
    wanted = jnp.stack([tokens[3] + (ngrams[2] + ngrams[5]) / 2, tokens[4]])
    np.testing.assert_allclose(embedding(ids, subwords)[0], wanted, rtol=1e-6)


def test_subwords_and_buckets_go_together() -> None:
    ids = jnp.array([[3, 4]])
    with pytest.raises(ValueError, match="no buckets"):
        WordEmbedding(V, 0, F, rngs=nnx.Rngs(0))(ids, jnp.zeros((1, 2, 3), int))
    with pytest.raises(ValueError, match="subwords=None"):
        WordEmbedding(V, 10, F, rngs=nnx.Rngs(0))(ids, None)


@pytest.mark.parametrize(
    "options",
    [
        {"features": 0},
        {"layers": 0},
        {"name": "transformer", "features": 10, "heads": 4},
        {"word_dropout": 1.0},
        {"dropout": -0.1},
    ],
)
def test_models_that_cannot_be_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"must"):
        TextModelConfig(**options)
