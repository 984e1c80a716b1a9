"""The two compiled functions of a run: the training step and the prediction."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from attnjax.focus import Recorded, describe, merged, recorded
from attnjax.nn.watching import Looked
from train.common.config import TrainConfig
from train.common.layout import Layout
from train.common.state import Blueprint, Graphs, State, plan_state, step_keys
from train.common.task import Batch, Task

Metrics = dict[str, Any]
RESERVED = (
    "loss",
    "grad_norm",
    "param_norm",
    "learning_rate",
    "grad_squares",
    "param_squares",
    "focus",
    "steady",
    "penalty",
    "clipped_heads",
)
"""Metric names that the step itself writes."""


def on_device(batch: Batch, layout: Layout | None = None, *, size: int = 0) -> dict[str, Any]:
    """The arrays of a batch that a device can hold; strings and objects stay on the host.

    Args:
        batch: a batch, or of a run on a mesh this process's share of it.
        layout: of a run on a mesh, over whose devices the examples are dealt out.
        size: examples in the whole batch; those in `batch` by default.
    """
    arrays = {name: x for name, x in batch.items() if np.asarray(x).dtype.kind in "biufcV"}
    if not arrays:
        raise ValueError(f"a batch must hold numeric arrays, got only {sorted(batch)}")
    if layout is None:
        return arrays
    return layout.put(arrays, size=size or len(next(iter(arrays.values()))))


class Steps(NamedTuple):
    """The step of a run, compiled at its first call."""

    plain: jax.stages.Wrapped
    watched: jax.stages.Wrapped | None
    """The same step with one more metric, `focus`: what attention tells of its heads. Where that
    keeps attention steady, `plain` is this one, too."""


def plan_step(
    task: Task, config: TrainConfig, mesh: Mesh | None = None
) -> tuple[Blueprint, jax.stages.Wrapped]:
    """The state before the first step, and the step, of a task under a training config.

    Args:
        task: what is trained.
        config: how.
        mesh: instead of the config's, as for `plan_state`.

    Raises:
        ValueError: mesh, batches, model and rules do not fit each other.
    """
    start, steps = plan_steps(task, config, mesh)
    return start, steps.plain


def plan_steps(
    task: Task, config: TrainConfig, mesh: Mesh | None = None
) -> tuple[Blueprint, Steps]:
    """As `plan_step`, with the step that watches where heads look besides."""
    total = config.total_steps(task.data.train_size)
    optimizer = config.optim.build(total)
    schedule = config.optim.schedule.build(config.optim.learning_rate, total)
    start = plan_state(task, optimizer, config, mesh)

    def make(watched: bool) -> jax.stages.Wrapped:
        parts = task, start.graphs, optimizer, schedule, config, start.layout
        return make_step(*parts, watched=watched)

    if start.graphs.watched is None:
        return start, Steps(make(False), None)
    watched = make(True)
    return start, Steps(watched if config.build_steady().wanted else make(False), watched)


def make_step(
    task: Task,
    graphs: Graphs,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike],
    config: TrainConfig,
    layout: Layout | None = None,
    *,
    watched: bool = False,
) -> jax.stages.Wrapped:
    """Makes `step(state, batch) -> (state, metrics)`, pure, jitted, the old state donated.

    With a `layout`, state and batch lie on its mesh, and the new state lies as the old one did;
    every device has the metrics.

    The metrics are float32 scalars: `loss`, `grad_norm` (before clipping), `param_norm` (after the
    update), `learning_rate` and whatever `task.loss` names; besides `grad_squares` and
    `param_squares`, sums of squares per parameter array in the order of `jax.tree.leaves`, from
    which `train.common.guard` tells which one is not finite. If `watched`, there is `focus`, too:
    statistics of the heads over the whole batch, as `attnjax.focus.describe` gives them. It changes
    no bit of all the rest, unless the config wants attention kept steady: then `penalty` is what it
    adds to the loss, `clipped_heads` how many heads QK-clip scaled, and `steady` what `auto` did.

    Raises:
        ValueError: (when traced) `task.loss` returns no scalar, uses a reserved metric name, or
            makes the model grow or lose variables.
    """
    parts, steady = config.accumulate, config.build_steady()

    def merge(params: Any, rng: Any, rest: Any) -> nnx.Module:
        if watched:
            assert graphs.watched is not None
            return graphs.watched.merge(params, rng, rest)
        model: nnx.Module = nnx.merge(graphs.train, params, rng, rest)
        return model

    def loss_fn(params: Any, rest: Any, rng: Any, batch: Batch) -> tuple[jax.Array, Any]:
        model = merge(params, rng, rest)
        loss, named = task.loss(model, batch)
        if jnp.shape(loss) != ():
            raise ValueError(f"task.loss must return a scalar loss, got shape {jnp.shape(loss)}")
        if taken := sorted(set(named) & set(RESERVED)):
            raise ValueError(f"task.loss must not name its metrics {taken}: the step writes them")
        focus = recorded(model) if watched else {}
        if steady.penalises:
            named = {**named, "penalty": steady.penalty(describe(focus))}
        after: tuple[Any, ...] = nnx.split(model, nnx.Param, nnx.RngState, Looked, ...)
        new_rest = nnx.to_pure_dict(after[4])
        had, has = str(jax.tree.structure(rest)), str(jax.tree.structure(new_rest))
        if had != has:
            raise ValueError(
                "the model must keep the variables it was built with while task.loss runs; it had "
                f"{had} and now has {has}"
            )
        named = jax.tree.map(partial(jnp.asarray, dtype=jnp.float32), named)
        whole = loss + named["penalty"] if steady.penalises else loss
        return whole, (loss, named, new_rest, focus)

    def placed(grads: Any) -> Any:
        """Gradients where their parameters are, so that each device sums up only its own share."""
        return grads if layout is None else layout.like_params(grads)

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def gradients(state: State, batch: Batch) -> tuple[jax.Array, Metrics, Any, Any, Recorded]:
        """Loss, named metrics, new `rest`, gradients and records of one batch, part by part."""
        model, first = state["model"], state["optimizer"]["step"] * parts
        if parts == 1:
            (_, (loss, named, rest, focus)), grads = grad_fn(
                model["params"], model["rest"], step_keys(model["rng"], first), batch
            )
            return loss, named, rest, placed(grads), focus
        batches = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        if layout is not None:
            batches = layout.deal_parts(batches)
        if "weight" in batch:
            mass = jnp.sum(batches["weight"].reshape(parts, -1), axis=1)
            shares = mass / jnp.maximum(jnp.sum(mass), jnp.finfo(jnp.float32).tiny)
        else:
            shares = jnp.full((parts,), 1 / parts, jnp.float32)

        def one(carry: Any, x: Any) -> Any:
            rest, total = carry
            index, share, part = x
            (_, (loss, named, rest, focus)), grads = grad_fn(
                model["params"], rest, step_keys(model["rng"], first + index), part
            )
            # A part of nothing but padding has no mean; its share of 0 must not spread its NaN.
            total = jax.tree.map(lambda t, g: t + jnp.where(share > 0, share * g, 0), total, grads)
            shared = jax.tree.map(lambda x: jnp.where(share > 0, share * x, 0), (loss, named))
            return (rest, placed(total)), (*shared, focus)

        zeros = jax.tree.map(jnp.zeros_like, model["params"])
        (rest, grads), (loss, named, focus) = jax.lax.scan(
            one, (model["rest"], zeros), (jnp.arange(parts), shares, batches)
        )
        named = jax.tree.map(partial(jnp.sum, axis=0), named)
        return jnp.sum(loss), named, rest, grads, merged(focus)

    @jax.default_matmul_precision(config.matmul_precision)
    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        model, count = state["model"], state["optimizer"]["step"]
        loss, named, rest, grads, focus = gradients(state, batch)
        before, stats = state["optimizer"], describe(focus)
        updates, opt_state = optimizer.update(grads, before["opt_state"], model["params"])
        grad_squares = squares(grads)
        grad_norm = jnp.sqrt(jnp.sum(grad_squares))
        after: dict[str, Any] = {"opt_state": opt_state, "step": count + 1}
        steadied: Metrics = {}
        if steady.acts:
            changed = steady.change(
                before.get("steady"),
                updates,
                model["params"],
                stats,
                graphs.heads,
                loss=loss,
                grad_norm=grad_norm,
            )
            updates = changed.updates
            steadied.update(changed.metrics)
            if changed.actions is not None:
                skip = changed.actions.skip
                # What is not finite must not stay in the optimiser's averages, or in the model's.
                after["opt_state"], rest = jax.tree.map(
                    lambda new, old: jnp.where(skip, old, new),
                    (opt_state, rest),
                    (before["opt_state"], model["rest"]),
                )
                after["steady"], steadied["steady"] = changed.remembered, changed.actions
        params = optax.apply_updates(model["params"], updates)
        ema = model["ema"]
        if config.ema_decay is not None:
            # A short history deserves less trust in it (Adam's bias, cured by a rising decay).
            decay = jnp.minimum(config.ema_decay, (1.0 + count) / (10.0 + count))
            ema = jax.tree.map(lambda e, p: e + (1 - decay).astype(e.dtype) * (p - e), ema, params)
        param_squares = squares(params)
        metrics = {
            **named,
            **steadied,
            "loss": loss.astype(jnp.float32),
            "grad_norm": grad_norm,
            "param_norm": jnp.sqrt(jnp.sum(param_squares)),
            "learning_rate": jnp.asarray(schedule(count), jnp.float32),
            "grad_squares": grad_squares,
            "param_squares": param_squares,
        }
        if watched:
            metrics["focus"] = stats
        return {
            "model": {"params": params, "rest": rest, "rng": model["rng"], "ema": ema},
            "optimizer": after,
        }, metrics

    if layout is None:
        return jax.jit(step, donate_argnums=0)
    return jax.jit(
        layout.inside(step),
        donate_argnums=0,
        in_shardings=(layout.state, layout.batch),
        out_shardings=(layout.state, layout.whole),
    )


def make_predict(
    task: Task, graphs: Graphs, config: TrainConfig, layout: Layout | None = None
) -> Callable[[dict[str, Any], Batch], Any]:
    """Makes the jitted `predict(state["model"], batch)`; it uses the averaged parameters if any.

    With a `layout`, the model's state and the batch lie on its mesh; every device gets all of the
    predictions.
    """

    @jax.default_matmul_precision(config.matmul_precision)
    def predict(model_state: dict[str, Any], batch: Batch) -> Any:
        return task.predict(graphs.merge_eval(model_state), batch)

    if layout is None:
        return jax.jit(predict)
    return jax.jit(
        layout.inside(predict),
        in_shardings=(layout.state["model"], layout.batch),
        out_shardings=layout.whole,
    )


def squares(tree: Any) -> jax.Array:
    """The sum of squares of every leaf, as one float32 array `[leaves]`."""
    return jnp.stack([jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)])
