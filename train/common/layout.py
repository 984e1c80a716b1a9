"""Where the training state and the batches of a run lie on a mesh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from attnjax.sharding.laying import BATCH_AXES
from attnjax.sharding.partition import names
from attnjax.sharding.rules import Rules, shardings


def state_shardings(state: Any, mesh: Mesh, rules: Rules) -> Any:
    """Says where each array of a training state belongs.

    Parameters lie as the rules say, their average and whatever the optimiser keeps for each of
    their numbers beside them. All else is whole on every device: random keys, statistics of the
    model and of factored optimisers, counters.

    Args:
        state: a training state, or its shapes.
        mesh: with the axes of `attnjax.sharding.laying.AXES`.
        rules: for the parameters.

    Returns:
        A tree of the same structure that holds a `NamedSharding` for each array.

    Raises:
        ValueError: a parameter cannot be placed; names it.
    """
    params = state["model"]["params"]
    places = shardings(params, mesh, rules)
    whole = NamedSharding(mesh, PartitionSpec())
    by_path = {
        path: (tuple(x.shape), place)
        for (path, x), place in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(places), strict=True
        )
    }

    def beside(path: tuple[Any, ...], x: Any) -> NamedSharding:
        """The parameter's place, for an array of its shape whose path ends with its path."""
        ends = (path[start:] for start in range(len(path)))
        shape, place = next((by_path[end] for end in ends if end in by_path), (None, whole))
        return place if shape == tuple(x.shape) else whole

    rest = jax.tree.map(lambda x: whole, state)
    ema = places if state["model"]["ema"] else {}
    return {
        "model": {**rest["model"], "params": places, "ema": ema},
        "optimizer": jax.tree_util.tree_map_with_path(beside, state["optimizer"]),
    }


@dataclass(frozen=True)
class Layout:
    """Where everything of a run lies on a mesh."""

    mesh: Mesh
    """With the axes of `attnjax.sharding.laying.AXES`."""
    state: Any
    """A `NamedSharding` for each array of the training state."""

    @property
    def whole(self) -> NamedSharding:
        """The sharding of what every device has all of."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """The sharding of a batch: its examples over `BATCH_AXES`."""
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))

    def check_used(self, axis: str) -> None:
        """Checks that an axis that splits parameters, and no batch, does split some.

        Raises:
            ValueError: its devices would all do the same.
        """
        places = jax.tree.leaves(self.state["model"]["params"])
        used = {name for place in places for entry in place.spec for name in names(entry)}
        if self.mesh.shape[axis] > 1 and axis not in used:
            raise ValueError(
                f"mesh: {axis}={self.mesh.shape[axis]} splits no parameter of this model, so that "
                "its devices would repeat each other's work; give them to data or fsdp"
            )

    def rows(self, size: int) -> np.ndarray:
        """The places in a batch of `size` examples of those that this process's devices hold."""
        held = self.batch.addressable_devices_indices_map((size,)).values()
        return np.unique(np.concatenate([np.arange(size)[index] for index in held]))

    def put(self, batch: dict[str, np.ndarray], *, size: int) -> dict[str, jax.Array]:
        """Makes global arrays of a batch.

        Args:
            batch: named arrays; with all examples, or with those at `rows(size)`.
            size: examples in the whole batch, over all processes.
        """
        rows = self.rows(size)

        def place(x: np.ndarray) -> jax.Array:
            here = rows if len(x) < size else np.arange(size)

            def piece(index: Any) -> np.ndarray:
                first, stop, _ = index[0].indices(size)
                start = int(np.searchsorted(here, first))
                return x[start : start + stop - first]

            return jax.make_array_from_callback((size, *x.shape[1:]), self.batch, piece)

        return {name: place(np.asarray(x)) for name, x in batch.items()}

    def deal_parts(self, batch: Any) -> Any:
        """Deals the examples of each part of a batch `[parts, examples, ...]` to all devices.

        Reshaping leaves whole parts on few devices, which then would wait for each other.
        """
        place = NamedSharding(self.mesh, PartitionSpec(None, BATCH_AXES))
        return jax.lax.with_sharding_constraint(batch, place)

    def like_params(self, tree: Any) -> Any:
        """Lays a tree such as the gradients out as the parameters are."""
        return jax.lax.with_sharding_constraint(tree, self.state["model"]["params"])

    def inside(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` traced with this mesh in context, where attention and constraints find it."""

        def traced(*arguments: Any) -> Any:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return function(*arguments)

        return traced
