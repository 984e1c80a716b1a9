"""Position schemes by themselves, against formulas written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.nn import (
    Alibi,
    LearnedPositions,
    Positions,
    RelativeBias,
    Rotary,
    SinusoidalPositions,
    sinusoids,
)

B, T, N, H = 2, 5, 3, 14
SIZES = {"features": 11, "num_heads": N, "head_dim": H}


def _x():
    return jax.random.normal(jax.random.key(0), (B, T, N, H))


def _complex(x, half):
    x = np.asarray(x, np.float64)
    return x[..., :half] + 1j * x[..., half : 2 * half]


@pytest.mark.parametrize(("fraction", "half"), [(1.0, 7), (0.5, 3), (0.8, 5)])
def test_rotary_turns_pairs_in_the_complex_plane(fraction, half):
    scheme, positions = Rotary(base=100.0, fraction=fraction), np.asarray([0, 1, 5, 2, 30])
    got = scheme.rotate(_x(), jnp.asarray(positions))
    angles = positions[:, None] * 100.0 ** (-np.arange(half) / half)
    want = _complex(_x(), half) * np.exp(1j * angles)[:, None]
    np.testing.assert_allclose(_complex(got, half), want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got[..., 2 * half :], _x()[..., 2 * half :])
    np.testing.assert_array_equal(got[:, 0], _x()[:, 0])  # position 0 turns nothing


def test_rotary_scaling():
    positions = jnp.arange(T)
    plain = Rotary().rotate(_x(), positions)
    np.testing.assert_allclose(
        Rotary(interpolation=4.0).rotate(_x(), 4 * positions), plain, rtol=1e-5, atol=1e-6
    )
    halved = Rotary(rescale=lambda frequencies: frequencies / 2)
    np.testing.assert_allclose(halved.rotate(_x(), 2 * positions), plain, rtol=1e-5, atol=1e-6)
    assert not np.allclose(halved.rotate(_x(), positions), plain)


def test_rotary_keeps_the_dtype_and_takes_positions_of_each_example():
    per_row = jnp.stack((jnp.arange(T), 7 - jnp.arange(T)))
    both = Rotary().rotate(_x(), per_row)
    for row in range(B):
        alone = Rotary().rotate(_x()[row : row + 1], per_row[row])
        np.testing.assert_allclose(both[row : row + 1], alone, rtol=1e-6)
    assert Rotary().rotate(_x().astype(jnp.bfloat16), per_row).dtype == jnp.bfloat16


@pytest.mark.parametrize("features", [6, 7])
def test_sinusoids_are_those_of_the_paper(features):
    got = sinusoids(jnp.arange(20).reshape(4, 5), features)
    assert got.shape == (4, 5, features) and got.dtype == jnp.float32
    for position in (0, 3, 19):
        for i in range(features):
            angle = position / 10_000 ** (2 * (i // 2) / features)
            want = np.cos(angle) if i % 2 else np.sin(angle)
            np.testing.assert_allclose(got[position // 5, position % 5, i], want, atol=1e-5)


def test_learned_positions_outside_the_table_are_refused_or_nan():
    scheme, x = LearnedPositions(7), jnp.zeros((B, T, 11))
    table = scheme.init(jax.random.key(0), features=11, num_heads=N, dtype=jnp.float32)
    assert table.shape == (7, 11)
    wanted = jnp.asarray([6, 0, 3, 3, 1])
    np.testing.assert_array_equal(scheme.embed(x, wanted, table)[1], table[wanted])
    for position in (-1, 7):
        positions = wanted.at[2].set(position)
        with pytest.raises(ValueError, match=r"expected positions in \[0, 7\)"):
            scheme.embed(x, positions, table)
        bad = np.isnan(jax.jit(scheme.embed)(x, positions, table)).all(-1)[0]
        np.testing.assert_array_equal(bad, np.arange(T) == 2)


def test_schemes_do_nothing_by_default():
    scheme, x = Positions(), _x()
    scheme.check(**SIZES)
    assert scheme.init(jax.random.key(0), features=1, num_heads=1, dtype=jnp.float32) is None
    assert scheme.score_mods(N, None) == ()
    assert scheme.rotate(x, jnp.arange(T)) is x and scheme.embed(x, jnp.arange(T), None) is x


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Rotary(base=0.0), "Rotary.base: expected a positive number"),
        (lambda: Rotary(interpolation=-1.0), "Rotary.interpolation: expected a positive"),
        (lambda: Rotary(fraction=0.0), r"Rotary.fraction: expected a number in \(0, 1\]"),
        (lambda: Rotary(fraction=0.1).check(**SIZES), "expected at least 2 features to rotate"),
        (lambda: Rotary().check(**{**SIZES, "head_dim": 7}), "expected an even head width, got 7"),
        (lambda: Alibi((1.0, 2.0)).check(**SIZES), "expected 3, one per head, got 2"),
        (lambda: RelativeBias(reach=0).check(**SIZES), "reach: expected at least 1"),
        (lambda: RelativeBias("t6").check(**SIZES), "kind: expected 'clipped' or 't5'"),
        (lambda: RelativeBias("t5", buckets=3).check(**SIZES), "exact buckets < max_distance"),
        (lambda: LearnedPositions(0).check(**SIZES), "max_length: expected at least 1"),
        (lambda: SinusoidalPositions(base=-1.0).check(**SIZES), "base: expected a positive"),
    ],
)
def test_errors_name_the_field(build, message):
    with pytest.raises(ValueError, match=message):
        build()
