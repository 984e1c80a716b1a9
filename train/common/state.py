"""The training state: a pytree of plain dicts that holds everything a resume needs.

`{"model": {"params", "rest", "rng", "ema"}, "optimizer": {"opt_state", "step"}}`: `params` are the
trained parameters, `rest` every other variable of the model (batch statistics, say), `rng` the base
keys of its random streams, which never change, `ema` the averaged parameters or `{}`, `step` the
number of updates done (int32). Beside `opt_state`, `--steady auto` keeps its own as `steady`. Plain
dicts, because `jax.jit` handles them faster than nnx.State.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from attnjax.focus import Watch, clear, unwatch, watch
from attnjax.focus.steady import Heads
from attnjax.nn.watching import Looked
from attnjax.sharding.rules import TRANSFORMER, Rules
from train.common.config import TrainConfig
from train.common.layout import Layout, state_shardings
from train.common.spreading import prepare_model
from train.common.steadying import SteadyConfig
from train.common.task import Task

State = dict[str, dict[str, Any]]


class Watched(NamedTuple):
    """The static half of a model in train mode whose attention tells where its heads look."""

    graph: nnx.GraphDef
    looked: Any
    """Shapes of its records: no part of the state, because every step begins with empty ones."""

    def merge(self, params: Any, rng: Any, rest: Any) -> nnx.Module:
        """The model, with empty records."""
        looked = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.looked)
        model: nnx.Module = nnx.merge(self.graph, params, rng, looked, rest)
        clear(model)
        return model


@dataclass(frozen=True)
class Graphs:
    """The static halves of one model: in train mode and in eval mode."""

    train: nnx.GraphDef
    eval: nnx.GraphDef
    watched: Watched | None = None
    """In train mode, watched; None if it is not to be."""
    heads: Mapping[str, Heads] = field(default_factory=dict)
    """The heads whose updates are kept steady, by dotted path of their module."""

    def merge_eval(self, model_state: dict[str, Any]) -> nnx.Module:
        """The model in eval mode, with the averaged parameters where there are any."""
        params = model_state["ema"] or model_state["params"]
        return nnx.merge(self.eval, params, model_state["rng"], model_state["rest"])


def split_model(
    model: nnx.Module, how: Watch | None = None, steady: SteadyConfig | None = None
) -> tuple[Graphs, dict[str, Any]]:
    """Splits a model into its static halves and the `model` part of the state (`ema` is `{}`).

    Args:
        model: the model, in any mode; `how` leaves it unwatched.
        how: how it is to be watched; None for not at all.
        steady: what is done to keep its attention steady; None for nothing.

    Raises:
        ValueError: there is no attention to watch, or none of the kind that can be kept steady.
    """
    model.eval()
    eval_graph, *_ = nnx.split(model, nnx.Param, nnx.RngState, ...)
    model.train()
    train_graph, *parts = nnx.split(model, nnx.Param, nnx.RngState, ...)
    params, rng, rest = (nnx.to_pure_dict(part) for part in parts)
    state = {"params": params, "rng": rng, "rest": rest, "ema": {}}
    watched = None
    if how is not None:
        watch(model, how)
        graph, *parts = nnx.split(model, nnx.Param, nnx.RngState, Looked, ...)
        looked = nnx.to_pure_dict(parts[2])
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), looked)
        watched = Watched(graph, shapes)
        unwatch(model)
    heads = {} if steady is None else steady.heads(model)
    return Graphs(train_graph, eval_graph, watched, heads), state


def init_state(
    build_model: Callable[[nnx.Rngs], nnx.Module],
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema: bool,
    how: Watch | None = None,
    steady: SteadyConfig | None = None,
) -> tuple[Graphs, State]:
    """Builds the model and the state before the first step.

    Args:
        build_model: makes the model from random streams.
        optimizer: what will update the parameters.
        seed: seeds every random stream of the model.
        ema: whether an average of the parameters is kept; it starts as a copy of them.
        how: how the model is to be watched; None for not at all.
        steady: what is done to keep its attention steady; None for nothing.
    """
    graphs, model = split_model(build_model(nnx.Rngs(seed)), how, steady)
    if ema:
        model["ema"] = jax.tree.map(jnp.copy, model["params"])
    optimizer_state = {"opt_state": optimizer.init(model["params"]), "step": jnp.int32(0)}
    if steady is not None and steady.auto:
        optimizer_state["steady"] = steady.init(graphs.heads)
    # The donated step may not get one buffer twice, and modules do share constants.
    return graphs, jax.tree.map(jnp.copy, {"model": model, "optimizer": optimizer_state})


@dataclass(frozen=True)
class Blueprint:
    """The state before the first step: how to make it, and what it will be."""

    graphs: Graphs
    """The static halves of the model."""
    layout: Layout | None
    """Where everything lies on a mesh; None without one."""
    like: State
    """Shape, dtype and sharding of each array."""
    make: Callable[[], State]
    """Makes the arrays."""


def blueprint(
    build_model: Callable[[nnx.Rngs], nnx.Module],
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema: bool,
    mesh: Mesh | None = None,
    rules: Rules = TRANSFORMER,
    how: Watch | None = None,
    steady: SteadyConfig | None = None,
) -> Blueprint:
    """Plans the state before the first step.

    On a mesh, `make` is compiled and makes each array where it belongs: no device ever holds the
    whole of one that is split, but for initialisers that XLA cannot split (`orthogonal`). Drawn
    values may differ in their last bit from those made without a mesh.

    Args:
        build_model: as in `init_state`.
        optimizer: as in `init_state`.
        seed: as in `init_state`.
        ema: as in `init_state`.
        mesh: with the axes of `attnjax.sharding.laying.AXES`; its devices need not be here to plan.
        rules: where the parameters belong on the mesh.
        how: as in `init_state`.
        steady: as in `init_state`.

    Raises:
        ValueError: a parameter cannot be placed; names it.
    """
    graphs: list[Graphs] = []

    def make() -> State:
        made, state = init_state(build_model, optimizer, seed=seed, ema=ema, how=how, steady=steady)
        graphs.append(made)
        return state

    if mesh is None:
        state = make()
        return Blueprint(graphs[0], None, abstract(state), lambda: state)
    shapes = jax.eval_shape(make)
    layout = Layout(mesh, state_shardings(shapes, mesh, rules))
    like = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        layout.state,
    )
    compiled = jax.jit(layout.inside(make), out_shardings=layout.state)
    return Blueprint(graphs[0], layout, like, compiled)


def plan_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    mesh: Mesh | None = None,
) -> Blueprint:
    """The `blueprint` of a task under a training config.

    Args:
        task: what is trained.
        optimizer: what will update the parameters.
        config: how.
        mesh: instead of the config's, which is over the devices at hand.

    Raises:
        ValueError: mesh, batches, model and rules do not fit each other.
    """
    mesh = config.build_mesh() if mesh is None else mesh

    def build(rngs: nnx.Rngs) -> nnx.Module:
        model = task.build_model(rngs)
        prepare_model(model, config, None if mesh is None else mesh.shape)
        return model

    start = blueprint(
        build,
        optimizer,
        seed=config.seed,
        ema=config.ema_decay is not None,
        mesh=mesh,
        rules=task.rules,
        how=config.watch,
        steady=config.build_steady(),
    )
    if start.layout is not None:
        start.layout.check_used("model")
    return start


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of `tree`, as orbax wants them for a restore."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def step_keys(rng: Any, index: jax.Array) -> Any:
    """The random streams of one forward pass: every base key with `index` folded in.

    The keys of a pass follow from the base keys and its number alone, so a resumed run draws the
    same bits as one that was never stopped.
    """

    def fold(x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(x.reshape(-1))
        return keys.reshape(x.shape)

    return jax.tree.map(fold, rng)
