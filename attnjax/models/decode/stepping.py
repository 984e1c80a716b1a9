"""A model as a function that decodes, which `jax.jit` takes as an argument."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeStep:
    """`decode(tokens [B, T], cache) -> (logits [B, T, V], cache)` of a model.

    A pytree: its arrays are arguments of a jitted program, not constants in it, and two of models
    of one config share their programs.

    Attributes:
      arrays: all arrays of the model, in the order of its state.
      structure: what they belong to.
      method: name of the method that decodes.
    """

    arrays: tuple[Array, ...]
    structure: Any = dataclasses.field(metadata={"static": True})
    method: str = dataclasses.field(metadata={"static": True}, default="decode")

    def __call__(self, tokens: Array, cache: Any) -> tuple[Array, Any]:
        """Decodes the next T tokens."""
        graphdef, state = self.structure
        model: Any = nnx.merge(graphdef, jax.tree.unflatten(state, self.arrays))
        return getattr(model, self.method)(tokens, cache)


def as_pytree(function: Callable[..., Any]) -> Any:
    """Returns a function that `jax.jit` takes as an argument, arrays that it declares included.

    A method of a module becomes a `DecodeStep`, or a program would keep the parameters of its first
    call.
    """
    owner = getattr(function, "__self__", None)
    if isinstance(owner, nnx.Module):
        return _step(owner, function.__name__)
    leaves = jax.tree.leaves(function)
    alone = len(leaves) == 1 and leaves[0] is function
    return jax.tree_util.Partial(function) if alone else function


def decode_fn(model: nnx.Module) -> DecodeStep:
    """Returns a model's `decode` as a function that `jax.jit` takes as an argument.

    Args:
      model: has `decode(tokens, cache)`, as `attnjax.models.LanguageModel`. Its arrays are taken as
        they are now, and without dropout.

    Returns:
      The function.

    Raises:
      ValueError: if the model has no `decode`.
    """
    if not callable(getattr(model, "decode", None)):
        raise ValueError(
            f"model: expected one with decode(tokens, cache), got {type(model).__name__}."
        )
    return _step(model, "decode")


def _step(model: nnx.Module, method: str) -> DecodeStep:
    own = nnx.merge(*nnx.split(model))
    own.eval()
    graphdef, state = nnx.split(own)
    arrays, structure = jax.tree.flatten(state)
    return DecodeStep(tuple(arrays), (graphdef, structure), method)
