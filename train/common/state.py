"""The training state: a pytree of plain dicts that holds everything a resume needs.

`{"model": {"params", "rest", "rng", "ema"}, "optimizer": {"opt_state", "step"}}`: `params` are the
trained parameters, `rest` every other variable of the model (batch statistics, say), `rng` the base
keys of its random streams, which never change, `ema` the averaged parameters or `{}`, `step` the
number of updates done (int32). Plain dicts, because `jax.jit` handles them faster than nnx.State.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

State = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Graphs:
    """The static halves of one model: in train mode and in eval mode."""

    train: nnx.GraphDef
    eval: nnx.GraphDef

    def merge_eval(self, model_state: dict[str, Any]) -> nnx.Module:
        """The model in eval mode, with the averaged parameters where there are any."""
        params = model_state["ema"] or model_state["params"]
        return nnx.merge(self.eval, params, model_state["rng"], model_state["rest"])


def split_model(model: nnx.Module) -> tuple[Graphs, dict[str, Any]]:
    """Splits a model into its static halves and the `model` part of the state (`ema` is `{}`)."""
    model.eval()
    eval_graph, *_ = nnx.split(model, nnx.Param, nnx.RngState, ...)
    model.train()
    train_graph, *parts = nnx.split(model, nnx.Param, nnx.RngState, ...)
    params, rng, rest = (nnx.to_pure_dict(part) for part in parts)
    state = {"params": params, "rng": rng, "rest": rest, "ema": {}}
    return Graphs(train_graph, eval_graph), state


def init_state(
    build_model: Callable[[nnx.Rngs], nnx.Module],
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema: bool,
) -> tuple[Graphs, State]:
    """Builds the model and the state before the first step.

    Args:
        build_model: makes the model from random streams.
        optimizer: what will update the parameters.
        seed: seeds every random stream of the model.
        ema: whether an average of the parameters is kept; it starts as a copy of them.
    """
    graphs, model = split_model(build_model(nnx.Rngs(seed)))
    if ema:
        model["ema"] = jax.tree.map(jnp.copy, model["params"])
    optimizer_state = {"opt_state": optimizer.init(model["params"]), "step": jnp.int32(0)}
    # The donated step may not get one buffer twice, and modules do share constants.
    return graphs, jax.tree.map(jnp.copy, {"model": model, "optimizer": optimizer_state})


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
