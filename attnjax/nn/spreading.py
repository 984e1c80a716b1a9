"""Spreading a model over a mesh after it was built, and what that asks of its activations."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped

from attnjax.nn.additive import AdditiveAttention
from attnjax.nn.options import AttentionOptions
from attnjax.sharding.partition import Partition


def spread(model: nnx.Module, partition: Partition | None) -> int:
    """Sets the mesh axes that the attention of a model is spread over.

    Every module of the model whose `options` are `AttentionOptions`, and every `AdditiveAttention`,
    gets this partition in the place of its own; modules with a single query, which say so by an
    attribute `single_query`, get its batch axes; everything else stays as it is. So one model can
    be built once, without a mesh, and run on any.

    Args:
      model: any module; changed in place.
      partition: the axes; None leaves attention to `jax.jit`.

    Returns:
      How many modules can spread a sequence; those with a single query can't.
    """
    found = 0
    module: Any
    for _, module in nnx.iter_modules(model):
        if getattr(module, "single_query", False):
            module.partition = None if partition is None else Partition(batch=partition.batch)
        if isinstance(module, AdditiveAttention):
            module.partition = partition
            found += 1
        options = getattr(module, "options", None)
        if isinstance(options, AttentionOptions):
            module.options = dataclasses.replace(options, partition=partition)
            found += 1
    return found


def place_sequence(x: Shaped[Array, "B T *F"], partition: Partition | None) -> Array:
    """Lays a sequence over the mesh in context: examples and positions split, features whole.

    Parameters that are split would otherwise pull activations along, which makes the compiler
    exchange them again before each product.

    Args:
      x: the sequence; its first two axes are split.
      partition: the axes; None leaves the sequence as it is.

    Returns:
      The same values.
    """
    if partition is None:
        return x
    spec = PartitionSpec(partition.batch, partition.sequence)
    return jax.lax.with_sharding_constraint(x, spec)
