"""Loss, class weights, scores and the baseline against their definitions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.common.classification import Scores, balanced_weights, cross_entropy
from train.common.text.baseline import STRENGTHS, tfidf_baseline
from train.common.text.labelled_text import Example, LabelledText


def test_balanced_weights_give_every_class_the_same_share() -> None:
    counts = np.array([90, 9, 1, 0])
    weights = balanced_weights(counts)
    np.testing.assert_allclose((weights * counts)[:3], 100 / 3, rtol=1e-6)
    np.testing.assert_allclose((weights * counts).sum() / counts.sum(), 1, rtol=1e-6)
    assert weights[3] == 0


def test_cross_entropy_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(5, 3)).astype(np.float32), np.array([0, 2, 1, 1, 0])
    log_p = np.asarray(jax.nn.log_softmax(logits))
    right = -log_p[np.arange(5), label]
    np.testing.assert_allclose(cross_entropy(logits, label), right, rtol=1e-5)
    smooth = 0.7 * right - 0.1 * log_p.sum(axis=1)
    np.testing.assert_allclose(cross_entropy(logits, label, smoothing=0.3), smooth, rtol=1e-5)
    weights = np.array([1.0, 2.0, 0.5], np.float32)
    weighted = cross_entropy(logits, label, class_weights=weights)
    np.testing.assert_allclose(weighted, right * weights[label], rtol=1e-5)


def test_cross_entropy_of_bfloat16_logits_is_float32() -> None:
    logits = jnp.zeros((2, 3), jnp.bfloat16)
    assert cross_entropy(logits, jnp.array([0, 1])).dtype == jnp.float32


def test_scores_of_a_worked_example() -> None:
    scores = Scores.of([0, 0, 1, 1, 2], [0, 1, 1, 1, 0], 4)
    assert scores.accuracy == pytest.approx(0.6)
    # F1: class 0: 2*1/(2+2), class 1: 2*2/(3+2), class 2: 0; class 3 never occurs.
    assert scores.macro_f1 == pytest.approx((0.5 + 0.8 + 0.0) / 3)
    np.testing.assert_array_equal(
        scores.confusion, [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    )


def test_the_baseline_learns_what_words_tell_and_sees_no_test_text() -> None:
    rng = np.random.default_rng(1)
    words = (["red", "green", "blue"], ["one", "two", "three"], ["cat", "dog", "cow"])

    def some(count: int) -> tuple[Example, ...]:
        labels = rng.integers(0, 3, count)
        return tuple(Example(" ".join(rng.choice(words[y], 4)), int(y)) for y in labels)

    splits = {"train": some(60), "validation": some(20), "test": some(20)}
    data = LabelledText(splits, ("colour", "number", "animal"), origin="here")
    baseline = tfidf_baseline(data)
    assert baseline.test.accuracy == baseline.validation.accuracy == 1.0
    assert baseline.strength in STRENGTHS
    assert "test accuracy 1.0000" in baseline.describe()
    # A test word that training never saw tells it nothing: it can't have fitted on test.
    unseen = {**splits, "test": tuple(Example(f"unseen{i}", i % 3) for i in range(30))}
    blind = tfidf_baseline(LabelledText(unseen, data.labels, origin="here"))
    assert blind.test.accuracy == pytest.approx(1 / 3)
    again = tfidf_baseline(data)
    np.testing.assert_array_equal(again.test.confusion, baseline.test.confusion)
