"""Every schedule against its formula."""

import math

import numpy as np
import pytest

from train.common.schedule import ScheduleConfig

PEAK, TOTAL, WARMUP = 0.5, 100, 10


def rates(config: ScheduleConfig, steps: range = range(TOTAL + 1)) -> np.ndarray:
    return np.array([float(f) for f in map(config.build(PEAK, TOTAL), steps)])


def expected(name: str, final: float) -> np.ndarray:
    after = np.maximum(np.arange(TOTAL + 1) - WARMUP, 0) / (TOTAL - WARMUP)
    down = {
        "constant": np.ones_like(after),
        "linear": 1 + (final - 1) * after,
        "cosine": final + (1 - final) * (1 + np.cos(math.pi * after)) / 2,
        "exponential": final**after,
        "rsqrt": np.sqrt(WARMUP / np.maximum(np.arange(TOTAL + 1), WARMUP)),
    }[name]
    rising = np.minimum((np.arange(TOTAL + 1) + 1) / WARMUP, 1)
    return PEAK * np.where(np.arange(TOTAL + 1) < WARMUP, rising, down)


@pytest.mark.parametrize(
    ("name", "final"),
    [
        ("constant", 0.0),
        ("linear", 0.0),
        ("linear", 0.2),
        ("cosine", 0.0),
        ("cosine", 0.2),
        ("exponential", 0.2),
        ("rsqrt", 0.0),
    ],
)
def test_formula(name: str, final: float) -> None:
    config = ScheduleConfig(name=name, warmup_steps=WARMUP, final_fraction=final)
    np.testing.assert_allclose(rates(config), expected(name, final), rtol=1e-5, atol=1e-7)


def test_no_step_has_a_rate_of_zero_without_warmup() -> None:
    config = ScheduleConfig(name="cosine", warmup_steps=0)
    np.testing.assert_allclose(rates(config)[0], PEAK, rtol=1e-6)
    assert (rates(config)[:TOTAL] > 0).all()


def test_onecycle_peaks_where_the_warmup_ends() -> None:
    config = ScheduleConfig(name="onecycle", warmup_fraction=0.3, final_fraction=0.01)
    found = rates(config)
    assert found.argmax() == 30
    np.testing.assert_allclose(found[[0, 30, TOTAL]], [PEAK / 25, PEAK, PEAK / 100], rtol=1e-4)


def test_warmup_is_a_tenth_unless_said_otherwise() -> None:
    assert ScheduleConfig().warmup(250) == 25
    assert ScheduleConfig(warmup_fraction=0.5).warmup(250) == 125
    assert ScheduleConfig(warmup_steps=0).warmup(250) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup_steps": 3, "warmup_fraction": 0.1}, "not both"),
        ({"warmup_steps": -1}, "warmup_steps must not be negative, got -1"),
        ({"warmup_fraction": 1.0}, "warmup_fraction must be .* got 1.0"),
        ({"final_fraction": 1.5}, r"final_fraction must lie in \[0, 1\], got 1.5"),
        ({"name": "exponential"}, "set final_fraction > 0"),
        ({"name": "rsqrt", "final_fraction": 0.1}, "rsqrt schedule has no final_fraction"),
        ({"name": "polynomial"}, "polynomial"),
    ],
)
def test_bad_fields(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**fields)


def test_warmup_longer_than_the_run() -> None:
    with pytest.raises(ValueError, match="got 100 of 100"):
        ScheduleConfig(warmup_steps=100).build(PEAK, TOTAL)
