"""Rank correlations against scipy's, and intervals against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest

from attnjax.focus.faithful import bootstrap_interval, kendall, spearman

B, T = 11, 17


def drawn(seed: int, values: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, values, (B, T)).astype(np.float32)


@pytest.mark.parametrize("values", [3, 1_000_000])
def test_they_are_scipys(values: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = drawn(0, values), drawn(1, values)
    lengths = np.random.default_rng(2).integers(5, T + 1, B)
    rows = [(x[:n], y[:n]) for x, y, n in zip(a, b, lengths, strict=True)]
    rho = [stats.spearmanr(x, y).statistic for x, y in rows]
    tau = [stats.kendalltau(x, y).statistic for x, y in rows]
    np.testing.assert_allclose(spearman(a, b, lengths=lengths), rho, atol=1e-12)
    np.testing.assert_allclose(kendall(a, b, lengths=lengths), tau, atol=1e-12)


@pytest.mark.parametrize("correlation", [spearman, kendall])
def test_only_the_order_counts(correlation) -> None:
    a = drawn(0, 1_000_000)
    np.testing.assert_allclose(correlation(a, np.log1p(a) ** 3), 1)
    np.testing.assert_allclose(correlation(a, -a), -1)
    other = np.random.default_rng(1).random((30 * B, T))
    assert abs(np.mean(correlation(np.tile(a, (30, 1)), other))) < 0.1


@pytest.mark.parametrize("correlation", [spearman, kendall])
def test_rows_without_an_order_have_no_correlation(correlation) -> None:
    a = drawn(0, 100)
    assert np.isnan(correlation(a, np.ones((B, T)))).all()
    assert np.isnan(correlation(a, a, lengths=np.ones(B, int))).all()
    assert np.isnan(correlation(a, a, lengths=np.zeros(B, int))).all()


def test_kendall_of_long_rows_is_summed_in_pieces() -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = np.random.default_rng(0).integers(0, 50, (2, 1, 2500))
    np.testing.assert_allclose(kendall(a, b), stats.kendalltau(a[0], b[0]).statistic, atol=1e-12)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="shape of a"):
        spearman(np.ones((2, 3)), np.ones((2, 4)))


def test_the_interval_is_the_known_one_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap_interval(values)
    error = values.std() / np.sqrt(400)
    np.testing.assert_allclose(
        (low, high), values.mean() + 1.96 * error * np.array([-1, 1]), atol=0.03
    )
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, seed=1) != (low, high)
    narrow = bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert bootstrap_interval([2.0]) == (2, 2)


def test_it_holds_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    intervals = [bootstrap_interval(rng.exponential(1, 60), resamples=400) for _ in range(300)]
    share = np.mean([low <= 1 <= high for low, high in intervals])
    assert 0.88 < share < 0.98


@pytest.mark.parametrize(
    "arguments", [{"values": []}, {"values": [np.nan]}, {"level": 1}, {"resamples": 0}]
)
def test_intervals_of_nothing_are_refused(arguments) -> None:
    with pytest.raises(ValueError, match="expected"):
        bootstrap_interval(**{"values": [1.0, 2.0]} | arguments)
