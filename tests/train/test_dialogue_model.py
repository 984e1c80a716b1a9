"""The model that chooses answers, against sums written out in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from train.common.dialogue.batches import SPEAKERS
from train.common.dialogue.models import SelectorConfig
from train.common.dialogue.task import accuracies
from train.common.dialogue.words import padded_bags

KNOWN, SIZE, F, P, HOPS, AGES = 7, 10, 4, 3, 2, 3
HISTORY = jnp.array([[[2, 3, 0], [8, 4, 0], [5, 9, 9], [0, 0, 0]], [[6, 0, 0]] + [[0, 0, 0]] * 3])
QUERY = jnp.array([[5, 9, 9], [6, 0, 0]])
AGE = jnp.array([[7, 1, 0, 0], [0, 0, 0, 0]])
SPEAKER = jnp.array([[0, 1, 0, 0], [0, 0, 0, 0]])
CANDIDATES = jnp.array([[2, 3, 0], [8, 0, 0], [9, 4, 4], [7, 0, 0]])
UNKNOWN = 1


def _model(hidden: float = 0.0, pointers: int = P):
    config = SelectorConfig(
        features=F, hops=HOPS, pointers=pointers, ages=AGES, hidden_words=hidden, heads=2
    )
    model = config.build(size=SIZE, known=KNOWN, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    model.bias[...] = jnp.asarray(rng.normal(size=KNOWN), jnp.float32)
    if pointers:
        model.gate[...] = jnp.asarray(rng.normal(size=KNOWN), jnp.float32)
        model.strength[...] = jnp.asarray(rng.normal(size=P), jnp.float32)
    return model


@jax.jit
def _scores(graph_state, candidates):
    return nnx.merge(*graph_state)(HISTORY, QUERY, age=AGE, speaker=SPEAKER, candidates=candidates)


def _apply(model, candidates=CANDIDATES):
    return _scores(nnx.split(model), candidates)


def _row(word: int) -> int:
    return word if word < KNOWN else UNKNOWN


def _expected(model, b: int, state: np.ndarray) -> np.ndarray:
    """Scores of the candidates from the network's last state."""
    words = np.asarray(model.network.words[HOPS], np.float64)
    said = [m for m in range(4) if np.any(HISTORY[b, m])]
    memory = {}
    for m in said:
        ids = [int(w) for w in HISTORY[b, m] if w]
        memory[m] = sum(words[_row(w)] for w in ids)
        memory[m] = memory[m] + np.asarray(model.network.age[HOPS])[min(int(AGE[b, m]), AGES - 1)]
        memory[m] = memory[m] + np.asarray(model.network.kind[HOPS])[int(SPEAKER[b, m])]
    pointed = np.zeros(SIZE)
    if model.pointers:
        query = state @ np.asarray(model.pointer.kernel) + np.asarray(model.pointer.bias)
        for p in range(P):
            logits = np.array([query[p * F : (p + 1) * F] @ memory[m] for m in said])
            shares = np.exp(logits) / np.exp(logits).sum()
            for share, m in zip(shares, said, strict=True):
                for w in HISTORY[b, m]:
                    pointed[int(w)] += share * float(model.strength[p])
    scores = []
    for bag in np.asarray(CANDIDATES):
        total = 0.0
        for w in bag[bag > 0]:
            total += state @ words[_row(w)] + float(model.bias[_row(w)])
            if model.pointers:
                total += pointed[w] / (1 + np.exp(-float(model.gate[_row(w)])))
        scores.append(total)
    return np.array(scores)


@pytest.mark.parametrize("pointers", [pytest.param(0, marks=pytest.mark.slow), P])
def test_scores_are_sums_over_words(pointers):
    model = _model(pointers=pointers)
    model.eval()
    scores, weights = _apply(model)
    assert weights.shape == (2, 2 * HOPS + pointers, 4)
    there = np.any(np.asarray(HISTORY) != 0, axis=-1)
    np.testing.assert_allclose(np.sum(weights, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(weights).sum(1)[~there], 0)
    rows = jnp.where(HISTORY < KNOWN, HISTORY, UNKNOWN)
    asked = jnp.where(QUERY < KNOWN, QUERY, UNKNOWN)
    ask = nnx.jit(lambda network: network(rows, asked, ages=AGE, kinds=SPEAKER))
    states = np.asarray(ask(model.network), np.float64)
    for b in range(2):
        np.testing.assert_allclose(scores[b], _expected(model, b, states[b]), rtol=2e-4, atol=1e-5)


def test_unknown_words_are_told_apart_by_where_they_stand_only():
    """Ids 7 and 8 have no embedding: they differ by what points at them, and by nothing else."""
    model = _model()
    model.eval()
    scores, _ = _apply(model, jnp.array([[7], [8], [1]]))
    assert scores[0, 0] != scores[0, 1]  # 8 stands in the first dialogue
    np.testing.assert_allclose(scores[1, 0], scores[1, 1])  # neither stands in the second
    np.testing.assert_allclose(scores[:, 2], scores[:, 0])
    without = _model(pointers=0)
    without.eval()
    scores, _ = _apply(without, jnp.array([[7], [8]]))
    np.testing.assert_allclose(scores[:, 0], scores[:, 1])


def test_hidden_words_look_unknown_in_training_only():
    model = _model(hidden=0.5)
    shown = np.asarray(model._rows(400))
    assert np.all(shown[:, 0] == 0)
    assert np.all((shown == np.arange(SIZE)) | (shown == UNKNOWN) | (shown == 0))
    np.testing.assert_allclose(np.mean(shown[:, 2:KNOWN] == UNKNOWN), 0.5, atol=0.05)
    model.eval()
    assert model._rows(1)[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 1, 1, 1]


def test_shares_of_right_answers_and_dialogues():
    right = np.array([True, True, False, True, True])
    scores = accuracies(right, np.array([0, 0, 1, 1, 2]))
    np.testing.assert_allclose([scores["accuracy"], scores["dialogue_accuracy"]], [0.8, 2 / 3])


def test_bags_are_padded():
    bags = padded_bags([np.array([3]), np.array([4, 5])])
    assert bags.tolist() == [[3, 0], [4, 5]]
    assert len(SPEAKERS) == 3
