"""Training many runs of a task at once: a program over one run, mapped over rates and seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array

from attnjax.bench.focus.tasks import Task
from attnjax.bench.focus.treatments import Treatment
from attnjax.focus import HeadStats, Watch, describe, recorded, watch
from attnjax.focus.steady import act, clip_factors, clippable, scale_heads
from attnjax.nn import SigmaVector

CLIP_NORM = 1.0


@dataclasses.dataclass(frozen=True)
class Runs:
    """What the runs of one task under one treatment recorded, in NumPy; R runs, P steps.

    Attributes:
      rates: peak learning rate of each run, `[R]`.
      seeds: `[R]`.
      loss: without penalties, `[R, P]`.
      every: steps from one record to the next; the first is of step 0.
      stats: by module the statistics of its heads, each `[R, P / every, N]`.
      acted: how many heads the treatment acted on, `[R, P / every]`; None if it acts on none.
    """

    rates: np.ndarray
    seeds: np.ndarray
    loss: np.ndarray
    every: int
    stats: dict[str, HeadStats]
    acted: np.ndarray | None


def train(
    task: Task,
    treatment: Treatment,
    *,
    rates: Sequence[float],
    seeds: Sequence[int],
    steps: int,
    warm_up: int,
    every: int = 5,
) -> Runs:
    """Trains a task at every rate with every seed.

    AdamW without decay, gradients clipped to a norm of 1, warm-up, cosine. All runs are one
    program, mapped over them, so that they differ from runs alone in rounding only; runs of the
    same seed start from the same parameters and see the same batches.

    Args:
      task: what is trained.
      treatment: what is done to keep it steady.
      rates: peak learning rates.
      seeds: of parameters and batches.
      steps: of each run, a multiple of `every`.
      warm_up: steps in which the rate rises from 0; afterwards it falls as a cosine to 0.
      every: steps from one record to the next, where the treatment needs none in each step.
    """
    every = 1 if treatment.watches else every
    if steps % every:
        raise ValueError(f"steps: expected a multiple of {every}, got {steps}.")
    if not 0 <= warm_up < steps:
        raise ValueError(f"warm_up: expected a number of steps below {steps}, got {warm_up}.")
    rate = np.repeat(np.asarray(rates, np.float32), len(seeds))
    seed = np.tile(np.asarray(seeds), len(rates))
    program = jax.jit(jax.vmap(_one_run(task, treatment, steps, warm_up, every)))
    loss, stats, acted = jax.tree.map(np.asarray, program(rate, seed))
    return Runs(rate, seed, loss, every, stats, acted)


def _one_run(task: Task, treatment: Treatment, steps: int, warm_up: int, every: int) -> Any:
    """Returns `(rate, seed) -> (loss [P], stats [P / every, N], acted [P / every])`."""

    def build(seed: Array | int) -> nnx.Module:
        key = jax.random.key(seed)
        return task.build(treatment.attention(), nnx.Rngs(params=key, dropout=key))

    heads = clippable(build(0)) if treatment.acts else {}
    clip_at = {x: jnp.full(one.shape, treatment.clip or jnp.inf) for x, one in heads.items()}
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP_NORM), optax.scale_by_adam())
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, warm_up, steps)

    def parts(watched: bool) -> tuple[Any, Any]:
        model = build(0)
        if watched:
            watch(model, Watch(differentiable=treatment.penalty is not None))
        split: Any = nnx.split(model, nnx.Param, SigmaVector, ...)
        graph, _, _, others = split
        # As plain arrays, for variables cannot be written to in another trace than theirs.
        return graph, nnx.to_pure_dict(others)

    made = {watched: parts(watched) for watched in (False, True)}

    def objective(params: Any, vectors: Any, batch: Any, watched: bool) -> tuple[Array, Any]:
        model = nnx.merge(made[watched][0], params, vectors, made[watched][1])
        loss = task.loss(model, batch)
        stats = describe(recorded(model))
        added = 0.0 if treatment.penalty is None else treatment.penalty(stats)
        return loss + added, (loss, stats, nnx.to_pure_dict(nnx.state(model, SigmaVector)))

    def step(carry: Any, number: Array, *, rate: Array, seed: Array, watched: bool) -> Any:
        params, vectors, state, policy = carry
        batch = task.batch(jax.random.fold_in(jax.random.key(seed + 1000), number))
        grads, found = jax.grad(objective, has_aux=True)(params, vectors, batch, watched)
        loss, stats, vectors = found
        updates, state = optimizer.update(grads, state)
        updates = jax.tree.map(lambda x: -rate * schedule(number) * x, updates)
        acted = None
        if treatment.clip is not None:
            logits = {path: x.max_logit for path, x in stats.items()}
            factors = clip_factors(logits, clip_at, heads)
            updates = scale_heads(updates, params, factors, heads)
            acted = sum(jnp.sum(x < 1) for x in factors.values())
        if treatment.auto is not None:
            grad_norm = optax.global_norm(grads)
            policy, actions = treatment.auto.decide(
                policy, stats, heads, loss=loss, grad_norm=grad_norm
            )
            updates = act(updates, params, actions, heads)
            acted = sum(jnp.sum(x > 0) for x in actions.level.values())
        params = optax.apply_updates(params, updates)
        return (params, vectors, state, policy), (loss, stats, acted)

    def run(rate: Array, seed: Array) -> Any:
        found: Any = nnx.state(build(seed), nnx.Param, SigmaVector)
        params, vectors = map(nnx.to_pure_dict, found)
        policy = None if treatment.auto is None else treatment.auto.init(heads)

        def record(carry: Any, number: Array) -> Any:
            carry, (first, stats, acted) = step(carry, number, rate=rate, seed=seed, watched=True)
            if every == 1:
                return carry, (first[None], stats, acted)

            def quiet(carry: Any, number: Array) -> Any:
                carry, (loss, _, _) = step(carry, number, rate=rate, seed=seed, watched=False)
                return carry, loss

            carry, others = jax.lax.scan(quiet, carry, number + jnp.arange(1, every))
            return carry, (jnp.concatenate([first[None], others]), stats, acted)

        start = (params, vectors, optimizer.init(params), policy)
        _, (loss, stats, acted) = jax.lax.scan(record, start, jnp.arange(0, steps, every))
        return loss.reshape(steps), stats, acted

    return run
