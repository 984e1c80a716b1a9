"""Random weights change an explanation that depends on them, and no other; the summary."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.focus.faithful import Faithfulness, random_weights, reinitialised

B, T, F = 20, 15, 8
PARAMS, FRESH = (
    {
        "embedding": {"table": rng.normal(size=(T, F))},
        "layers": [{"kernel": rng.normal(size=(F, F))} for _ in range(2)],
        "output": rng.normal(size=F),
    }
    for rng in (np.random.default_rng(0), np.random.default_rng(1))
)
TOKENS = np.random.default_rng(2).integers(0, T, (B, T))


def attribute(params):
    x = params["embedding"]["table"][TOKENS]
    for layer in params["layers"]:
        x = np.tanh(x @ layer["kernel"])
    return {"dependent": x @ params["output"], "independent": TOKENS.astype(float)}


def test_only_a_dependent_explanation_changes() -> None:
    (found,) = random_weights(attribute, PARAMS, FRESH).values()
    assert abs(np.mean(found["dependent"])) < 0.2
    np.testing.assert_allclose(found["independent"], 1)
    (same,) = random_weights(attribute, PARAMS, PARAMS).values()
    np.testing.assert_allclose(same["dependent"], 1)


def test_layers_are_reinitialised_one_after_the_other() -> None:
    names = ("output", "layers.1", "layers", "embedding.table")
    found = dict(reinitialised(PARAMS, FRESH, names))
    assert tuple(found) == names
    assert found["output"]["layers"] == PARAMS["layers"]
    assert found["layers.1"]["layers"] == [PARAMS["layers"][0], FRESH["layers"][1]]
    assert found["layers"]["output"] is FRESH["output"]
    assert found["layers"]["embedding"] == PARAMS["embedding"]
    assert found["embedding.table"] == FRESH
    by_layer = random_weights(attribute, PARAMS, FRESH, names=names)
    assert by_layer.keys() == found.keys()
    assert np.mean(by_layer["layers.1"]["dependent"]) < 0.5


def test_parameters_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="same structure"):
        next(reinitialised(PARAMS, {**FRESH, "output": np.ones(3)}))
    with pytest.raises(ValueError, match="'layer'"):
        next(reinitialised(PARAMS, FRESH, ["layer"]))


def areas(**changes) -> dict[str, object]:
    rng = np.random.default_rng(0)
    values = {
        "deletion": rng.normal(0.4, 0.1, 100),
        "deletion_random": rng.normal(0.6, 0.1, 100),
        "insertion": rng.normal(0.7, 0.1, 100),
        "insertion_random": rng.normal(0.6, 0.1, 100),
    }
    return values | changes


def test_a_summary_gives_means_and_an_interval() -> None:
    given = areas(agreement_gradients=[np.nan, 0.5, 0.7], random_weights=jnp.array([jnp.nan]))
    found = Faithfulness.of(**given)
    np.testing.assert_allclose(found.margin, found.deletion_random - found.deletion)
    np.testing.assert_allclose(found.deletion, np.mean(given["deletion"]))
    low, high = found.interval
    assert 0.15 < low < found.margin < high < 0.25
    np.testing.assert_allclose(found.agreement_gradients, 0.6)
    assert found.agreement_leave_one_out is None and found.random_weights is None
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert written["interval"] == [low, high] and written["examples"] == 100
    assert Faithfulness.of(**given) == found


def test_measurements_of_other_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="one number per example for each"):
        Faithfulness.of(**areas(insertion=np.ones(99)))
