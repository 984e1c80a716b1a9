"""Stretched rotary positions against the formulas of their papers, wave by wave."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.nn import Rotary, llama3_rotary, yarn_rotary

WIDTH, BASE, LENGTH, FACTOR = 16, 100.0, 64, 8.0
PLAIN = BASE ** (-np.arange(0, WIDTH, 2) / WIDTH)


def _frequencies(rotary):
    """Reads the frequencies off the turned vectors: pair i becomes (cos, sin) of its angle."""
    x = jnp.concatenate((jnp.ones(WIDTH // 2), jnp.zeros(WIDTH // 2)))[None, None, None]
    turned = np.asarray(rotary.rotate(x, jnp.array([1])), np.float64).reshape(2, -1)
    return np.arctan2(turned[1], turned[0]), np.hypot(*turned)


def test_llama3_slows_the_long_waves():
    rotary = llama3_rotary(factor=FACTOR, low=1.0, high=4.0, original_length=LENGTH, base=BASE)
    want = []
    for f in PLAIN:
        wave = 2 * math.pi / f
        if wave < LENGTH / 4:
            want.append(f)
        elif wave > LENGTH:
            want.append(f / FACTOR)
        else:
            smooth = (LENGTH / wave - 1) / (4 - 1)
            want.append((1 - smooth) * f / FACTOR + smooth * f)
    got, size = _frequencies(rotary)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(size, 1, rtol=1e-6)
    assert want[0] == PLAIN[0] and want[-1] == PLAIN[-1] / FACTOR  # both ends are met


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_slows_the_waves_that_turn_seldom(truncate):
    rotary = yarn_rotary(
        factor=FACTOR, original_length=LENGTH, base=BASE, fast=3.0, slow=1.0, truncate=truncate
    )

    def index(turns):
        return WIDTH * math.log(LENGTH / (2 * math.pi * turns)) / (2 * math.log(BASE))

    low, high = index(3.0), index(1.0)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    slowed = np.clip((np.arange(WIDTH // 2) - low) / (high - low), 0, 1)
    got, size = _frequencies(rotary)
    np.testing.assert_allclose(got, PLAIN * (1 - slowed) + PLAIN / FACTOR * slowed, rtol=1e-5)
    np.testing.assert_allclose(size, 0.1 * math.log(FACTOR) + 1, rtol=1e-5)
    assert low > 0 and slowed[0] == 0 and slowed[-1] == 1  # both ends are met


def test_magnitude_leaves_the_rest_of_the_head():
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 6))
    plain = Rotary(fraction=0.5).rotate(x, jnp.arange(3))
    loud = Rotary(fraction=0.5, magnitude=3.0).rotate(x, jnp.arange(3))
    np.testing.assert_allclose(loud[..., :2], 3 * plain[..., :2], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(loud[..., 2:], x[..., 2:])


def test_equal_settings_are_equal():
    """So that two models of the same config share compiled programs."""
    make = {"factor": 2.0, "original_length": 8}
    assert yarn_rotary(**make) == yarn_rotary(**make) != yarn_rotary(**make, slow=2.0)
    assert hash(yarn_rotary(**make)) == hash(yarn_rotary(**make))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: yarn_rotary(factor=0.0, original_length=8), "expected a positive factor, got 0.0"),
        (
            lambda: yarn_rotary(factor=2.0, original_length=8, fast=1.0, slow=2.0),
            "expected slow <= fast, got slow=2.0, fast=1.0",
        ),
        (
            lambda: llama3_rotary(factor=2.0, low=4.0, high=4.0, original_length=8),
            "expected low < high, got low=4.0, high=4.0",
        ),
        (lambda: Rotary(magnitude=0.0), "Rotary.magnitude: expected a positive number"),
    ],
)
def test_errors_name_the_number(build, message):
    with pytest.raises(ValueError, match=message):
        build()
