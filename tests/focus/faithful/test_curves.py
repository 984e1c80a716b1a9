"""Curves on a bag of words, where the best order and every point of its curve are known."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.focus.faithful import (
    Curve,
    bootstrap_interval,
    deletion_curve,
    insertion_curve,
    random_curves,
)
from tests.focus.faithful.linear import drawn_bag, inside, score

B, T = 7, 13


def naive(bag, attributions, shares, *, insertion: bool) -> np.ndarray:
    """One example and one share after the other, straight from the definition."""
    found = np.zeros((B, len(shares)))
    for b, length in enumerate(bag.lengths):
        order = np.argsort(-attributions[b, :length])
        for k, share in enumerate(shares):
            first = order[: int(np.floor(share * length + 0.5))]
            part = bag.weights[b, first].sum()
            found[b, k] = part if insertion else bag.weights[b, :length].sum() - part
    return found


@pytest.mark.parametrize("curve", [deletion_curve, insertion_curve])
@pytest.mark.parametrize("shares", [(0, 0.1, 0.3, 0.7, 1), (0, 0.5, 1)])
def test_every_point_is_the_score_of_what_remains(curve, shares) -> None:
    bag = drawn_bag(B, T)
    attributions = np.random.default_rng(1).normal(size=(B, T))
    attributions[~inside(bag)] = np.nan  # what lies in the padding must not matter
    found = curve(score, bag.weights, attributions, lengths=bag.lengths, shares=shares)
    expected = naive(bag, attributions, shares, insertion=curve is insertion_curve)
    np.testing.assert_array_equal(found.scores, expected)
    np.testing.assert_array_equal(found.shares, shares)


def test_no_order_beats_the_true_one() -> None:
    bag = drawn_bag(B, T)
    best = deletion_curve(score, bag.weights, bag.weights, lengths=bag.lengths).area
    most = insertion_curve(score, bag.weights, bag.weights, lengths=bag.lengths).area
    worst = deletion_curve(score, bag.weights, -bag.weights, lengths=bag.lengths).area
    for seed in range(20):
        drawn = np.random.default_rng(seed).normal(size=(B, T))
        area = deletion_curve(score, bag.weights, drawn, lengths=bag.lengths).area
        assert np.all(best <= area) and np.all(area <= worst)
        assert np.all(most >= insertion_curve(score, bag.weights, drawn, lengths=bag.lengths).area)
    assert np.all(best[bag.lengths > 3] < worst[bag.lengths > 3])


def test_a_curve_without_its_truth_is_no_better_than_random() -> None:
    bag = drawn_bag(200, T)
    at_random = random_curves(score, bag.weights, bag.weights.shape, lengths=bag.lengths)
    drawn = np.random.default_rng(9).normal(size=bag.weights.shape)

    def margin(attributions):
        curve = deletion_curve(score, bag.weights, attributions, lengths=bag.lengths)
        return bootstrap_interval(at_random.deletion.area - curve.area)

    low, high = margin(drawn)
    assert low < 0 < high
    assert margin(bag.weights)[0] > 1
    assert margin(-bag.weights)[1] < -1


def test_random_orders_average_to_a_straight_line() -> None:
    weights = drawn_bag(40, 10).weights
    found = random_curves(score, weights, weights.shape, orders=100, seed=3)
    whole = weights.sum(axis=1).mean()
    line = np.linspace(0, 1, 11) * whole
    np.testing.assert_allclose(found.insertion.scores.mean(axis=0), line, atol=0.3)
    np.testing.assert_allclose(found.deletion.scores.mean(axis=0), line[::-1], atol=0.3)
    again = random_curves(score, weights, weights.shape, orders=100, seed=3)
    np.testing.assert_array_equal(found.deletion.scores, again.deletion.scores)
    other = random_curves(score, weights, weights.shape, orders=100, seed=4)
    assert np.any(found.deletion.scores != other.deletion.scores)


def test_equal_attributions_favour_no_place() -> None:
    weights = np.tile(np.arange(10, dtype=np.float32), (400, 1))
    flat = deletion_curve(score, weights, np.zeros_like(weights))
    np.testing.assert_allclose(flat.scores.mean(axis=0), np.linspace(45, 0, 11), atol=1)


def test_the_area_is_the_mean_of_the_score() -> None:
    curve = Curve(np.array([0, 0.25, 1]), np.array([[1.0, 0.5, 0.0], [2.0, 2.0, 2.0]]))
    np.testing.assert_allclose(curve.area, [0.25 * 0.75 + 0.75 * 0.25, 2])


def test_all_shares_and_all_methods_take_one_compilation() -> None:
    traced = []

    def counting(inputs, keep):
        traced.append(keep.shape)
        return score(inputs, keep)

    bag = drawn_bag(B, T)
    for attributions in (bag.weights, -bag.weights):
        deletion_curve(counting, bag.weights, attributions, lengths=bag.lengths)
        insertion_curve(counting, bag.weights, attributions, lengths=bag.lengths)
    random_curves(counting, bag.weights, (B, T), lengths=bag.lengths, orders=3)
    assert traced == [(B, T)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attributions": np.zeros(T)}, r"\[B, T\]"),
        ({"attributions": np.full((B, T), np.nan)}, "finite"),
        ({"lengths": np.full(B, T + 1)}, "from 0 to T=13"),
        ({"lengths": np.full(B - 1, T)}, r"\[B=7\]"),
        ({"lengths": np.full(B, 2.0)}, "integers"),
        ({"shares": (0.1, 1)}, "from 0 to 1"),
        ({"shares": (0, 0.5, 0.5, 1)}, "from 0 to 1"),
        ({"score": lambda inputs, keep: jnp.sum(inputs)}, "one number per example"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message) -> None:
    options = {"score": score, "inputs": np.ones((B, T)), "attributions": np.ones((B, T))} | options
    with pytest.raises(ValueError, match=message):
        deletion_curve(**options)


def test_no_orders_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        random_curves(score, np.ones((B, T)), (B, T), orders=0)
