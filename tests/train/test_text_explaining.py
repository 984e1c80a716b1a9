"""Scores and attributions of untrained text models, against the models themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from train.common.text.explaining import GRADIENTS, RAW, TextExplainer, log_odds
from train.common.text.models import TextModelConfig
from train.common.tokenise import UNKNOWN_ID

B, T, G, V = 3, 6, 4, 23


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer", "bilstm_attention"])
def test_scores_and_attributions_are_those_of_the_model(name: str) -> None:
    config = TextModelConfig(name=name, features=8, heads=2, layers=1)
    model = config.build(vocabulary=V, buckets=10, classes=3, rngs=nnx.Rngs(0))
    model.eval()
    rng, length = np.random.default_rng(0), np.array([6, 1, 4])
    inside = np.arange(T) < length[:, None]
    batch = {
        "ids": np.where(inside, rng.integers(2, V, (B, T)), 0),
        "length": length,
        "subwords": np.where(inside[..., None], rng.integers(0, 11, (B, T, G)), 0),
    }
    explainer = TextExplainer(model)
    inputs = explainer.inputs(batch)
    logits, weights = model(**batch)
    np.testing.assert_array_equal(inputs["label"], logits.argmax(axis=-1))
    whole = explainer.probability(inputs, jnp.asarray(inside))
    np.testing.assert_allclose(whole, jax.nn.softmax(logits).max(axis=-1), rtol=1e-5)

    keep = inside & (np.arange(T) != 2)
    unknown = {
        "ids": np.where(keep, batch["ids"], UNKNOWN_ID),
        "length": length,
        "subwords": np.where(keep[..., None], batch["subwords"], 0),
    }
    without = log_odds(model(**unknown)[0], inputs["label"])
    np.testing.assert_allclose(explainer.log_odds(inputs, keep), without, rtol=1e-5, atol=1e-6)

    found, rough = explainer.attributions(inputs)
    np.testing.assert_allclose(found[RAW], weights, rtol=1e-5)
    left_out = np.where(inside[:, 2], log_odds(logits, inputs["label"]) - without, 0)
    np.testing.assert_allclose(found["leave one out"][:, 2], left_out, atol=1e-5)
    for values in found.values():
        np.testing.assert_array_equal(values[~inside], 0)
        assert np.all(np.abs(values[0]).max() > 0)
    np.testing.assert_allclose(rough.gap + rough.change, found[GRADIENTS].sum(axis=1), atol=1e-5)
    fine = explainer.integrated(inputs, steps=256)
    np.testing.assert_allclose(fine.attributions.sum(axis=1), fine.change, atol=0.05)


def test_log_odds_stay_exact_where_probability_is_one() -> None:
    logits = jnp.array([[50.0, 0.0, 0.0], [0.0, 3.0, -jnp.inf]])
    found = log_odds(logits, jnp.array([0, 1]))
    np.testing.assert_allclose(found, [50 - np.log(2), 3], rtol=1e-6)
