"""Optimisers by name equal optax's own, step for step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.common.optim import DIRECTIONS, OptimConfig
from train.common.schedule import ScheduleConfig

RATE, DECAY, STEPS = 0.05, 0.1, 5
CONSTANT = ScheduleConfig(name="constant", warmup_steps=0)


def arrays(seed: int, size: float) -> dict:
    """Normal random arrays in the structure of a small model's parameters."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: (size * rng.normal(size=shape)).astype(np.float32)  # noqa: E731
    return {
        "dense": {"kernel": draw(7, 5), "bias": draw(5)},
        "embed": {"embedding": draw(11, 5)},
        "layer_norm": {"scale": draw(3, 5)},
    }


def params() -> dict:
    return arrays(0, 1.0)


def descend(optimizer: optax.GradientTransformation) -> dict:
    """Parameters after some steps on random gradients of growing size."""

    @jax.jit
    def step(values: dict, state: object, grads: dict) -> tuple[dict, object]:
        updates, state = optimizer.update(grads, state, values)
        return optax.apply_updates(values, updates), state

    values = params()
    state = jax.jit(optimizer.init)(values)
    for i in range(STEPS):
        values, state = step(values, state, arrays(i + 1, 0.1 * (i + 1)))
    return values


def assert_same(found: dict, wanted: dict, rtol: float = 1e-6) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), found, wanted)


def mask(values: dict) -> dict:
    return {
        "dense": {"kernel": True, "bias": False},
        "embed": {"embedding": True},
        "layer_norm": {"scale": False},
    }


OPTAX = {
    "sgd": optax.sgd(RATE),
    "momentum": optax.sgd(RATE, momentum=0.9),
    "nesterov": optax.sgd(RATE, momentum=0.9, nesterov=True),
    "adagrad": optax.adagrad(RATE),
    "rmsprop": optax.rmsprop(RATE),
    "adam": optax.adam(RATE),
    "adamw": optax.adam(RATE),
    "nadam": optax.nadam(RATE),
    "adamax": optax.adamax(RATE),
    "amsgrad": optax.amsgrad(RATE),
    "radam": optax.radam(RATE),
    "adabelief": optax.adabelief(RATE),
    "lamb": optax.lamb(RATE),
    "lion": optax.lion(RATE, weight_decay=0.0),
    "adafactor": optax.adafactor(RATE),
    "muon": optax.contrib.muon(
        RATE,
        muon_weight_dimension_numbers=lambda p: {
            "dense": {"kernel": optax.contrib.MuonDimensionNumbers(), "bias": None},
            "embed": {"embedding": None},
            "layer_norm": {"scale": optax.contrib.MuonDimensionNumbers()},
        },
    ),
}


def test_every_name_is_tested() -> None:
    assert OPTAX.keys() == DIRECTIONS.keys()


@pytest.mark.parametrize("name", DIRECTIONS)
def test_equals_optax(name: str) -> None:
    config = OptimConfig(name=name, learning_rate=RATE, schedule=CONSTANT, clip_norm=None)
    assert_same(descend(config.build(STEPS)), descend(OPTAX[name]))


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("adamw", optax.adamw(RATE, weight_decay=DECAY, mask=mask)),
        ("nadam", optax.nadamw(RATE, weight_decay=DECAY, mask=mask)),
        ("lion", optax.lion(RATE, weight_decay=DECAY, mask=mask)),
        ("lamb", optax.lamb(RATE, weight_decay=DECAY, mask=mask)),
    ],
)
def test_weight_decay_equals_optax(name: str, twin: optax.GradientTransformation) -> None:
    config = OptimConfig(
        name=name, learning_rate=RATE, schedule=CONSTANT, clip_norm=None, weight_decay=DECAY
    )
    assert_same(descend(config.build(STEPS)), descend(twin))


@pytest.mark.parametrize("name", sorted(DIRECTIONS.keys() - {"lamb"}))
def test_weight_decay_is_decoupled_and_masked(name: str) -> None:
    """One step with decay minus one without is -rate * decay * parameter, where it applies."""
    start = params()
    grads = jax.tree.map(np.ones_like, start)
    after = []
    for decay in (0.0, DECAY):
        config = OptimConfig(name=name, learning_rate=RATE, schedule=CONSTANT, weight_decay=decay)
        optimizer = config.build(STEPS)
        state = jax.jit(optimizer.init)(start)
        after.append(jax.jit(optimizer.update)(grads, state, start)[0])
    jax.tree.map(
        lambda plain, decayed, x, on: np.testing.assert_allclose(
            decayed - plain, -RATE * DECAY * x * on, rtol=1e-4, atol=1e-6
        ),
        *after,
        start,
        mask(start),
    )


def test_gradients_are_clipped_by_their_global_norm() -> None:
    config = OptimConfig(name="sgd", learning_rate=1.0, schedule=CONSTANT, clip_norm=0.5)
    optimizer = config.build(STEPS)
    start = params()
    for size in (1e-3, 100.0):
        grads = jax.tree.map(lambda x, size=size: size * np.ones_like(x), start)
        updates, _ = optimizer.update(grads, optimizer.init(start), start)
        norm = min(0.5, size * np.sqrt(7 * 5 + 5 + 11 * 5 + 15))
        np.testing.assert_allclose(optax.tree.norm(updates), norm, rtol=1e-5)


def test_the_schedule_is_followed() -> None:
    linear = ScheduleConfig(name="linear", warmup_steps=0)
    optimizer = OptimConfig(name="sgd", learning_rate=1.0, schedule=linear).build(4)
    values = {"x": jnp.zeros(())}
    state, found = optimizer.init(values), []
    for _ in range(4):
        updates, state = optimizer.update({"x": jnp.float32(0.5)}, state, values)
        found.append(float(updates["x"]))
    np.testing.assert_allclose(found, [-0.5, -0.375, -0.25, -0.125])


def test_names_that_are_never_decayed() -> None:
    matrix = jnp.ones((2, 3))
    tree = {
        "layers": [{"bias": matrix, "kernel": matrix, "query_bias": matrix}],
        "final_norm": {"weird": matrix},
        "attention": {"sinks": matrix, "upscale": matrix},
        "vector": jnp.ones(3),
    }
    assert OptimConfig().decay_mask(tree) == {
        "layers": [{"bias": False, "kernel": True, "query_bias": False}],
        "final_norm": {"weird": False},
        "attention": {"sinks": False, "upscale": True},
        "vector": False,
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adaam"}, "optimiser must be one of sgd, .* got 'adaam'"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, got nan"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"clip_norm": 0.0}, "clip_norm must be positive or None"),
        ({"name": "sgd", "momentum": 0.9}, "sgd has no momentum"),
        ({"name": "adam", "momentum": 0.9}, "adam has no momentum .*b1, b2, eps"),
        ({"name": "lion", "eps": 1e-8}, "lion has no eps"),
        ({"b1": 1.0}, "b1 must be at least 0 and below 1, got 1.0"),
        ({"no_decay": "("}, "no_decay is no regular expression"),
    ],
)
def test_bad_fields(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig(**fields)
