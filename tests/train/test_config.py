"""TrainConfig refuses what cannot mean anything and turns epochs into steps."""

import pytest

from train.common.config import TrainConfig


def test_epochs_become_whole_steps() -> None:
    assert TrainConfig(epochs=2, batch_size=32).total_steps(100) == 7
    assert TrainConfig(epochs=0.001, batch_size=32).total_steps(100) == 1
    assert TrainConfig(steps=5).total_steps(100) == 5


def test_intervals_follow_the_length_of_the_run() -> None:
    config = TrainConfig(steps=95)
    assert config.eval_interval(95) == 10
    assert config.checkpoint_interval(95) == 10
    assert TrainConfig(steps=95, eval_every=7).checkpoint_interval(95) == 7
    assert TrainConfig(steps=95, eval_every=7, checkpoint_every=3).checkpoint_interval(95) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one of steps and epochs"),
        ({"steps": 3, "epochs": 1.0}, "exactly one of steps and epochs"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"epochs": 0.0}, "epochs must be a positive number"),
        ({"epochs": float("inf")}, "epochs must be a positive number"),
        ({"steps": 3, "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"steps": 3, "batch_size": 10, "accumulate": 4}, "multiple of accumulate, got 10 and 4"),
        ({"steps": 3, "keep": 0}, "keep must be at least 1"),
        ({"steps": 3, "patience": 0}, "patience must be at least 1"),
        ({"steps": 3, "log_every": -1}, "log_every must be at least 1"),
        ({"steps": 3, "seed": -1}, "seed must not be negative"),
        ({"steps": 3, "ema_decay": 1.0}, "ema_decay must lie between 0 and 1"),
        ({"steps": 3, "select_mode": "most"}, "select_mode must be max or min, got 'most'"),
    ],
)
def test_bad_fields(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)


def test_an_empty_training_split() -> None:
    with pytest.raises(ValueError, match="its size is 0"):
        TrainConfig(epochs=1.0).total_steps(0)
