"""The compiled step: gradients, accumulation, randomness, averages and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.train.toy import CLASSES, PlainNet, ToyData, ToyNet, loss, toy_task, toy_train
from train.common.config import TrainConfig
from train.common.guard import NonFiniteError, check_finite
from train.common.optim import OptimConfig
from train.common.schedule import ScheduleConfig
from train.common.state import init_state, step_keys
from train.common.step import make_predict, make_step, on_device
from train.common.task import Batch, Task

PLAIN_SGD = OptimConfig(
    name="sgd",
    learning_rate=0.5,
    schedule=ScheduleConfig(name="constant", warmup_steps=0),
    clip_norm=None,
)


def setup(task: Task, config: TrainConfig) -> tuple[Callable, dict, Batch]:
    """The step, the state before it, and the first batch."""
    optimizer = config.optim.build(10)
    ema = config.ema_decay is not None
    graphs, state = init_state(task.build_model, optimizer, seed=config.seed, ema=ema)
    schedule = config.optim.schedule.build(config.optim.learning_rate, 10)
    batches = task.data.train_batches(batch_size=config.batch_size, seed=0, start_step=0)
    return make_step(task, graphs, optimizer, schedule, config), state, on_device(next(batches))


def close(found: object, wanted: object) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), found, wanted)


def test_one_step_is_gradient_descent() -> None:
    task = toy_task(build_model=PlainNet)
    step, state, batch = setup(task, toy_train(optim=PLAIN_SGD))
    before = jax.tree.map(np.asarray, state["model"]["params"])["dense"]
    logits = batch["x"] @ before["kernel"] + before["bias"]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = (probabilities - np.eye(CLASSES)[batch["y"]]) / len(batch["y"])
    grads = {"kernel": batch["x"].T @ error, "bias": error.sum(0)}
    state, metrics = step(state, batch)
    close(state["model"]["params"]["dense"], {k: before[k] - 0.5 * grads[k] for k in before})
    picked = probabilities[np.arange(len(logits)), batch["y"]]
    close(metrics["loss"], -np.log(picked).mean())
    close(metrics["accuracy"], (logits.argmax(1) == batch["y"]).mean())
    close(metrics["grad_norm"], np.sqrt(sum((g**2).sum() for g in grads.values())))
    close(metrics["learning_rate"], 0.5)
    assert int(state["optimizer"]["step"]) == 1


def test_the_old_state_is_donated() -> None:
    step, state, batch = setup(toy_task(), toy_train())
    step(state, batch)
    assert state["model"]["params"]["first"]["kernel"].is_deleted()


@pytest.mark.parametrize("weights", [None, "some", "one part empty"])
def test_accumulation_equals_one_large_batch(weights: str | None) -> None:
    task = toy_task(build_model=PlainNet)
    outcomes = []
    for parts in (1, 3):
        step, state, batch = setup(task, toy_train(optim=PLAIN_SGD, accumulate=parts))
        if weights is not None:
            batch["weight"] = np.array([1, 0, 2, 1, 1, 1, 0.5, 0, 3, 1, 1, 1], np.float32)
        if weights == "one part empty":
            batch["weight"][4:8] = 0
        state, metrics = step(state, batch)
        outcomes.append((state["model"]["params"], metrics))
    close(outcomes[1], outcomes[0])
    assert np.isfinite(outcomes[1][1]["loss"])


def test_accumulation_draws_new_dropout_for_each_part_and_keeps_statistics() -> None:
    step, state, batch = setup(toy_task(), toy_train(accumulate=2, optim=PLAIN_SGD))
    batch = {name: np.concatenate([x[:6], x[:6]]) for name, x in batch.items()}
    before = np.asarray(state["model"]["rest"]["norm"]["mean"])
    state, _ = step(state, batch)
    once, halves = before, np.asarray(state["model"]["rest"]["norm"]["mean"])
    model = ToyNet(nnx.Rngs(0))
    for _ in range(2):
        hidden = np.asarray(model.first(batch["x"][:6]))
        once = 0.99 * once + 0.01 * hidden.mean(0)
    close(halves, once)


def test_random_bits_follow_from_the_step_alone() -> None:
    """Every layer, step and part draws its own; the same step draws the same again."""

    class TwoDropouts(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.dense = nnx.Linear(5, CLASSES, rngs=rngs)
            self.drops = nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(2)])

    def mask_loss(model: nnx.Module, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        masks = [drop(jnp.ones(24)) > 0 for drop in model.drops]
        code = 2.0 ** jnp.arange(24)
        named = {f"mask{i}": jnp.sum(mask * code) for i, mask in enumerate(masks)}
        return jnp.mean(model.dense(batch["x"])) * 0, named

    step, state, batch = setup(toy_task(build_model=TwoDropouts, loss=mask_loss), toy_train())
    saved = jax.tree.map(jnp.copy, state)
    codes = []
    for _ in range(3):
        state, metrics = step(state, batch)
        codes += [float(metrics["mask0"]), float(metrics["mask1"])]
    assert len(set(codes)) == 6
    saved["optimizer"]["step"] = jnp.int32(2)
    _, metrics = step(saved, batch)
    assert [float(metrics["mask0"]), float(metrics["mask1"])] == codes[4:]


def test_step_keys_of_stacked_streams() -> None:
    keys = jax.random.split(jax.random.key(3), (2, 3))
    folded = step_keys({"key": keys, "count": jnp.zeros((2, 3), jnp.uint32)}, jnp.int32(7))
    wanted = [[jax.random.fold_in(key, 7) for key in row] for row in keys]
    for i, row in enumerate(wanted):
        for j, key in enumerate(row):
            assert (jax.random.key_data(folded["key"][i, j]) == jax.random.key_data(key)).all()
    np.testing.assert_array_equal(folded["count"], np.zeros((2, 3)))


def test_the_average_is_used_for_predictions() -> None:
    config = toy_train(ema_decay=0.5, optim=PLAIN_SGD)
    task = toy_task(build_model=PlainNet)
    step, state, batch = setup(task, config)
    average = np.asarray(state["model"]["params"]["dense"]["kernel"])
    for count in range(12):
        state, _ = step(state, batch)
        decay = min(0.5, (1 + count) / (10 + count))
        kernel = np.asarray(state["model"]["params"]["dense"]["kernel"])
        average = decay * average + (1 - decay) * kernel
    ema = state["model"]["ema"]["dense"]
    close(ema["kernel"], average)
    graphs, _ = init_state(task.build_model, optax.identity(), seed=0, ema=True)
    predicted = make_predict(task, graphs, config)(state["model"], batch)
    close(predicted, batch["x"] @ np.asarray(ema["kernel"]) + np.asarray(ema["bias"]))


def test_predictions_are_made_in_eval_mode() -> None:
    """No dropout, and the running statistics instead of the batch's."""
    task = toy_task()
    graphs, state = init_state(task.build_model, optax.identity(), seed=0, ema=False)
    predict = make_predict(task, graphs, toy_train())
    x = np.ones((2, 5), np.float32)
    x[1] = 7
    both = predict(state["model"], {"x": x})
    alone = predict(state["model"], {"x": x[:1]})
    np.testing.assert_allclose(both[:1], alone, rtol=1e-6)


def test_matmul_precision_reaches_the_products() -> None:
    step, state, batch = setup(toy_task(), toy_train(matmul_precision="highest"))
    assert "precision = [HIGHEST, HIGHEST]" in step.lower(state, batch).as_text()


def test_strings_stay_on_the_host() -> None:
    batch = {"x": np.ones(2, np.float32), "id": np.array(["a", "b"]), "o": np.array([{}, {}])}
    batch["half"] = np.asarray(jnp.ones(2, jnp.bfloat16))
    assert on_device(batch).keys() == {"x", "half"}
    with pytest.raises(ValueError, match=r"numeric arrays, got only \['id'\]"):
        on_device({"id": np.array(["a"])})


def grows(model: nnx.Module, batch: Batch) -> tuple[jax.Array, dict]:
    model.extra = nnx.Variable(jnp.ones(3))
    return loss(model, batch)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda m, b: (m(b["x"]), {}), r"scalar loss, got shape \(12, 3\)"),
        (lambda m, b: (loss(m, b)[0], {"grad_norm": 1.0}), r"metrics \['grad_norm'\]"),
        (grows, "must keep the variables it was built with"),
    ],
)
def test_losses_that_are_refused(bad: Callable, message: str) -> None:
    step, state, batch = setup(toy_task(loss=bad), toy_train())
    with pytest.raises(ValueError, match=message):
        step(state, batch)


def finite_metrics(**changes: object) -> dict:
    fine = np.ones(2, np.float32)
    return {"loss": np.float32(1), "grad_squares": fine, "param_squares": fine, **changes}


def test_the_guard_is_silent_when_all_is_finite() -> None:
    check_finite(3, finite_metrics(), {"a": 0, "b": 0}, {"x": np.ones(2)})


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        (
            {"grad_squares": np.array([1, np.inf])},
            ["step 3:", "First of 1 of 2 bad gradients: b.", "All updated parameters are finite"],
        ),
        ({"param_squares": np.array([np.nan, np.nan])}, ["2 of 2 bad updated parameters: a."]),
        ({"loss": np.float32(np.nan)}, ["(loss nan)", "Not finite among the metrics: loss."]),
        ({"perplexity": np.float32(np.inf)}, ["among the metrics: perplexity."]),
    ],
)
def test_the_guard_names_what_is_bad(changes: dict, messages: list[str]) -> None:
    with pytest.raises(NonFiniteError) as caught:
        check_finite(3, finite_metrics(**changes), {"a": 0, "b": 0}, {"x": np.ones(2)})
    for message in messages:
        assert message in str(caught.value)
    assert "batch itself" not in str(caught.value)


def test_the_guard_finds_the_first_bad_gradient_of_a_real_step() -> None:
    """sqrt has an infinite slope at 0: the loss is finite, one layer's gradient is not."""

    def broken(model: nnx.Module, batch: Batch) -> tuple[jax.Array, dict]:
        return loss(model, batch)[0] + jnp.sum(jnp.sqrt(model.last.bias[...])), {}

    step, state, batch = setup(toy_task(loss=broken), toy_train(optim=PLAIN_SGD))
    state, metrics = step(state, batch)
    with pytest.raises(NonFiniteError, match=r"First of 1 of 6 bad gradients: last\.bias"):
        check_finite(1, jax.device_get(metrics), state["model"]["params"], batch)


def test_the_toy_data_can_start_anywhere() -> None:
    whole, late = (ToyData().train_batches(batch_size=4, seed=1, start_step=s) for s in (0, 3))
    batches = [next(whole) for _ in range(5)]
    for wanted in batches[3:]:
        np.testing.assert_array_equal(next(late)["x"], wanted["x"])
