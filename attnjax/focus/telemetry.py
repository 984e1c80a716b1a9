"""One switch that makes the attention modules of a model tell where their heads look."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from attnjax.focus import heads
from attnjax.focus.heads import HeadStats
from attnjax.focus.modules import attention_modules, layer_names
from attnjax.nn.watching import Looked, Seen

Recorded = dict[str, Array]
"""What was kept of each module, by its dotted path; `*` stands for layers of a scanned stack."""


@dataclasses.dataclass(frozen=True)
class Watch:
    """How a model is watched.

    Attributes:
      differentiable: whether gradients flow back from what is recorded, for penalties; without
        them, recording leaves every other number of a program as it was, to the last bit.
    """

    differentiable: bool = False

    def empty(self, num_heads: int) -> Array:
        """Returns the record of no call."""
        return heads.empty(num_heads)

    def add(self, kept: Array, seen: Seen) -> Array:
        """Returns the record after one more call."""
        if not self.differentiable:
            arrays = jax.lax.stop_gradient((seen.q, seen.k, seen.out, seen.kernel))
            # Without the barrier, XLA would fuse the call itself in another way for the second
            # reader of its queries and keys, and round its results in another way.
            q, k, out, kernel = jax.lax.optimization_barrier(arrays)
            seen = seen._replace(q=q, k=k, out=out, kernel=kernel)
        found = heads.record(seen)
        if not self.differentiable:  # nor through sinks and tables of the scores
            found = jax.lax.stop_gradient(found)
        return heads.merged(jnp.stack([kept, found]))


def watch(model: nnx.Module, how: Watch | None = None) -> int:
    """Has every attention module of a model record where its heads look, whenever it is called.

    `MultiHeadAttention`, `AdditiveAttention` and `AttentionPooling` record, inside other modules,
    too, in training and evaluation, under `jax.jit`, `nnx.jit`, over scanned layers, with
    rematerialisation and over a mesh; steps with a cache (`decode`) do not. Records are
    `attnjax.nn.watching.Looked` variables of the modules, and add up over calls until `read` or
    `clear` empties them.

    Args:
      model: any module; changed in place.
      how: what is looked at; None is `Watch()`.

    Returns:
      The number of modules that record, each layer of a scanned stack counted.

    Raises:
      ValueError: if the model has no attention module.
    """
    how, found = Watch() if how is None else how, 0
    for _, module, layers in attention_modules(model):
        module.observer = how
        module.looked = Looked(_over_layers(how.empty(module.num_heads), layers))
        found += layers or 1
    if not found:
        raise ValueError(
            "model: expected one with attention modules of attnjax.nn, found none in "
            f"{type(model).__name__}."
        )
    return found


def unwatch(model: nnx.Module) -> None:
    """Takes back what `watch` did, in place."""
    for _, module, _ in attention_modules(model):
        if module.looked is not None:
            module.observer = module.looked = None


def clear(model: nnx.Module) -> None:
    """Empties the records of a watched model, in place."""
    for _, module, layers in attention_modules(model):
        if module.looked is not None:
            module.looked[...] = _over_layers(heads.empty(module.num_heads), layers)


def recorded(model: nnx.Module) -> Recorded:
    """Returns the records of a watched model, by module; of a scanned stack, of all its layers.

    They can leave a jitted function; `merged` puts those of several parts of a batch
    together, and `describe` makes statistics of them.
    """
    return {
        path: module.looked[...]
        for path, module, _ in attention_modules(model)
        if module.looked is not None
    }


def merged(stacked: Mapping[str, Float[Array, "P ..."]]) -> Recorded:
    """Returns the records of a whole, from those of its parts stacked on a new first axis."""
    return {path: heads.merged(parts) for path, parts in stacked.items()}


def describe(kept: Mapping[str, Array]) -> dict[str, HeadStats]:
    """Returns the statistics of the heads of each module.

    Args:
      kept: what `recorded` returned.

    Returns:
      By the dotted path of the module; layers of a scanned stack have a number of their own in the
      place of the stack's `layers`, as layers of a list do.
    """
    described: dict[str, HeadStats] = {}
    for path, record in kept.items():
        stats = heads.summary(record)
        if record.ndim == 2:
            described[path] = stats
            continue
        for layer, named in enumerate(layer_names(path, record.shape[0])):
            described[named] = HeadStats(*(x[layer] for x in stats))
    return described


def read(model: nnx.Module) -> dict[str, HeadStats]:
    """Returns the statistics of everything since the last time, and empties the records.

    Args:
      model: a watched model, outside of any jitted function.

    Returns:
      As `describe`, in NumPy arrays.

    Raises:
      ValueError: if the model is not watched.
    """
    found = recorded(model)
    if not found:
        raise ValueError("model: expected one that `attnjax.focus.watch` watches.")
    described = jax.tree.map(np.asarray, describe(found))
    clear(model)
    return described


def _over_layers(record: Array, layers: int) -> Array:
    return jnp.broadcast_to(record, (layers, *record.shape)) if layers else record
