"""score_mods that do not depend on positions: caps, temperatures, biases and activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.operands import Operand, declare
from attnjax.scores.base import ScoreMod, check_floats, positive_scalar, pytree
from attnjax.typing import Index

Activation = Literal["identity", "sigmoid", "tanh", "relu"]
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
}


@pytree()
class SoftCap(ScoreMod):
    """See `soft_cap`."""

    cap: Array

    def apply(self, score: Array, index: Index, *tiles: Array) -> Array:
        return self.cap * jnp.tanh(score / self.cap)


def soft_cap(cap: float | Array) -> SoftCap:
    """Bounds scores smoothly: `cap * tanh(score / cap)`.

    Source: Gemma Team, "Gemma 2" (2024).

    Args:
      cap: the bound, positive; a number or a float array `[]`.

    Returns:
      The score_mod.

    Raises:
      ValueError: if `cap` is a number that is not positive and finite, or not a scalar.
    """
    return SoftCap(positive_scalar("soft_cap.cap", cap))


@pytree()
class Temperature(ScoreMod):
    """See `temperature`."""

    value: Array

    def operands(self, sizes: Mapping[str, int]) -> tuple[Operand, ...]:
        return (declare("temperature", self.value, "N"),) if self.value.ndim else ()

    def apply(self, score: Array, index: Index, *tiles: Array) -> Array:
        return score / (tiles[0] if tiles else self.value)


def temperature(value: float | Array) -> Temperature:
    """Divides scores by a temperature: above 1 flattens the weights, below 1 sharpens them.

    Args:
      value: positive; a number, or a float array `[]` or `[N]`.

    Returns:
      The score_mod.

    Raises:
      ValueError: if `value` is a number that is not positive and finite, or has another shape.
    """
    if hasattr(value, "shape") and len(value.shape):
        value = check_floats("temperature", value)
        declare("temperature", value, "N")
        return Temperature(value)
    return Temperature(positive_scalar("temperature", value))


@pytree()
class Bias(ScoreMod):
    """See `bias`."""

    array: Array

    def operands(self, sizes: Mapping[str, int]) -> tuple[Operand, ...]:
        return (Operand("bias", self.array, "BNTS"[4 - len(self.array.shape) :]),)

    def apply(self, score: Array, index: Index, *tiles: Array) -> Array:
        return score + tiles[0].astype(score.dtype)


def bias(array: Array) -> Bias:
    """Adds an array to the scores.

    Args:
      array: float, broadcastable to `[B, N, T, S]`; its rank may be lower, as in NumPy. It gets
        gradients of its own shape.

    Returns:
      The score_mod.

    Raises:
      ValueError: if it is not a float array of at most four dimensions.
    """
    check_floats("bias", array)
    if len(array.shape) > 4:
        raise ValueError(
            "bias: expected at most 4 dimensions, broadcastable to [B, N, T, S], "
            f"got shape {tuple(array.shape)}."
        )
    return Bias(array)


@pytree("activation")
class Activated(ScoreMod):
    """See `activated`."""

    per_key: Array | None
    bias: Array | None
    activation: str

    def operands(self, sizes: Mapping[str, int]) -> tuple[Operand, ...]:
        found = []
        if self.per_key is not None:
            found.append(declare("activated.per_key", self.per_key, "S"))
        if self.bias is not None and len(self.bias.shape):
            found.append(declare("activated.bias", self.bias, "N"))
        return tuple(found)

    def apply(self, score: Array, index: Index, *tiles: Array) -> Array:
        for tile in tiles:
            score = score + tile.astype(score.dtype)
        if self.bias is not None and not len(self.bias.shape):
            score = score + self.bias.astype(score.dtype)
        return _ACTIVATIONS[self.activation](score)


def activated(
    activation: Activation = "sigmoid",
    *,
    per_key: Array | None = None,
    bias: float | Array | None = None,
) -> Activated:
    """Passes scores through an activation: `sigma(score + per_key + bias)`.

    With `per_key = h @ v` this is the general score `softmax(sigma(q.k + v.h + b_a))`. Pass
    `scale=1.0` to `attention` for an unscaled dot product.

    Args:
      activation: `identity`, `sigmoid`, `tanh` or `relu`.
      per_key: float array `[S]`, `[B, S]` or `[B, N, S]`, added to the scores of each key.
      bias: a number, or a float array `[]`, `[N]` or `[B, N]`.

    Returns:
      The score_mod.

    Raises:
      ValueError: for an unknown activation or an array of another shape.
    """
    if activation not in _ACTIVATIONS:
        known = ", ".join(sorted(_ACTIVATIONS))
        raise ValueError(f"activated.activation: expected one of {known}; got {activation!r}.")
    if per_key is not None:
        check_floats("activated.per_key", per_key)
    if isinstance(bias, int | float):
        bias = jnp.asarray(bias, jnp.float32)
    if bias is not None:
        check_floats("activated.bias", bias)
    result = Activated(per_key, bias, activation)
    result.operands({})
    return result
