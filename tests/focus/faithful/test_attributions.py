"""Integrated gradients and leave-one-out where their values are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.focus.faithful import integrated_gradients, leave_one_out, spearman
from tests.focus.faithful.linear import drawn_bag, embedded_score, inside, score

B, T, F = 5, 11, 3


def embedded(seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(B, T, F)), jnp.float32)


@pytest.mark.parametrize("steps", [1, 7])
def test_of_a_linear_score_they_are_weight_times_input(steps: int) -> None:
    kernel, x, base = jnp.array([1.0, -2.0, 3.0]), embedded(0), embedded(1)
    found = integrated_gradients(embedded_score, kernel, x, base, steps=steps)
    np.testing.assert_allclose(found.attributions, (x - base) @ kernel, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.change, ((x - base) @ kernel).sum(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.gap, 0, atol=1e-5)


def curved(kernel: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.tanh(x @ kernel), axis=1) ** 2


def test_of_a_curved_score_they_add_up_with_enough_steps() -> None:
    kernel, x = jnp.array([1.0, -2.0, 3.0]), embedded(0)
    rough, fine = (integrated_gradients(curved, kernel, x, steps=n) for n in (1, 64))
    assert np.max(np.abs(rough.gap)) > 0.1
    np.testing.assert_allclose(fine.gap, 0, atol=1e-3)
    np.testing.assert_allclose(fine.change, curved(kernel, x) - curved(kernel, 0 * x), rtol=1e-5)


def test_padding_stays_as_it_is_and_gets_nothing() -> None:
    kernel, x, lengths = jnp.array([1.0, -2.0, 3.0]), embedded(0), np.array([11, 1, 0, 4, 7])
    found = integrated_gradients(curved, kernel, x, lengths=lengths)
    outside = np.arange(T) >= lengths[:, None]
    np.testing.assert_array_equal(np.asarray(found.attributions)[outside], 0)
    rest = jnp.where(outside[..., None], x, 0)
    np.testing.assert_allclose(found.change, curved(kernel, x) - curved(kernel, rest), atol=1e-5)
    np.testing.assert_allclose(found.gap, 0, atol=1e-2)


def test_leaving_one_out_of_a_sum_gives_its_weight() -> None:
    bag = drawn_bag(B, T)
    found = leave_one_out(score, bag.weights, (B, T), lengths=bag.lengths)
    np.testing.assert_array_equal(found, np.where(inside(bag), bag.weights, 0))
    np.testing.assert_allclose(spearman(found, bag.weights, lengths=bag.lengths), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"embedded": jnp.ones(3)}, r"\[B, T, \.\.\.\]"),
        ({"baseline": jnp.ones((2, 2))}, "broadcasts"),
        ({"lengths": np.full(B, T + 1)}, "lengths"),
        ({"score": lambda inputs, x: x}, "one number per example"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message) -> None:
    given = {"score": curved, "inputs": jnp.ones(F), "embedded": embedded(0)} | options
    with pytest.raises(ValueError, match=message):
        integrated_gradients(**given)
