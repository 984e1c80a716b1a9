"""Gradient-weighted attention that keys receive, in every attention module of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from attnjax.nn import AdditiveAttention, MultiHeadAttention
from attnjax.nn.stack import LayerStack


class _Gate(nnx.Variable[Array]):
    """A relative change of values, `[B, S, K]`; of a scanned stack `[L, B, S, K]`."""


class _Shapes:
    """Notes the shapes of values while a model is traced; compared by identity, as nnx wants."""

    def __init__(self) -> None:
        self.seen: dict[str, set[tuple[int, ...]]] = {}


class _Gated(nnx.Module):
    """A value projection whose result is noted, and then multiplied by one plus a gate."""

    def __init__(self, inner: nnx.Module, path: str, shapes: _Shapes) -> None:
        self.inner, self.path, self.shapes = inner, path, shapes
        self.gate: Any = nnx.data(None)

    def __call__(self, x: Array) -> Array:
        inner: Any = self.inner
        values = inner(x)
        self.shapes.seen.setdefault(self.path, set()).add(values.shape[:-1])
        if self.gate is None:
            return values
        return values * (1 + self.gate[...][..., None]).astype(values.dtype)


def gradient_weighted_received(
    model: nnx.Module, score: Callable[[Any], Float[Array, "B"]]
) -> dict[str, Float[Array, "B S K"]]:
    """Sums weight times gradient by the weight over the queries, for each key.

    An output is linear in the values, so this sum is the derivative of the score by a factor on the
    key's value: `sum_t w[t, s] dscore/dw[t, s] = v[s] . dscore/dv[s]`. It needs one gradient, and
    no array of queries by keys.

    Args:
      model: in eval mode; any module that has `MultiHeadAttention` or `AdditiveAttention` inside,
        scanned stacks of layers too. It is not changed.
      score: `score(model)`, of a copy of the model; each number from its own example alone.

    Returns:
      By the dotted path of the module; layers of a scanned stack have a number of their own in the
      place of the stack's `layers`, as layers of a list do. Sums over the heads that share a value
      head, in float32.

    Raises:
      ValueError: if the model has no such module that the score calls.
      NotImplementedError: if a module is called with sequences of several shapes.
    """
    copy, shapes = nnx.clone(model), _Shapes()
    gated = _gate(copy, shapes)
    graph, state = nnx.split(copy)
    jax.eval_shape(lambda state: score(nnx.merge(graph, state)), state)
    if not shapes.seen:
        raise ValueError(
            "model: expected one with MultiHeadAttention or AdditiveAttention that the score "
            f"calls, found none in {type(model).__name__}."
        )
    for path, (module, layers) in gated.items():
        seen = shapes.seen.get(path, set())
        if len(seen) > 1:
            raise NotImplementedError(
                f"{path} is called with values of several shapes, {sorted(seen)}: give a score "
                "that calls the model once."
            )
        if seen:
            stacked = () if layers is None else (layers,)
            module.gate = _Gate(jnp.zeros(stacked + seen.pop(), jnp.float32))
    split: Any = nnx.split(copy, _Gate, ...)
    graph, gates, rest = split

    def total(gates: Any) -> Array:
        return jnp.sum(score(nnx.merge(graph, gates, rest)))

    nnx.update(copy, jax.grad(total)(gates))
    return {
        name: found
        for path, (module, layers) in gated.items()
        if module.gate is not None
        for name, found in _by_layer(path, module.gate[...], scanned=layers is not None)
    }


_SCANNED = ".*"


def _gate(model: nnx.Module, shapes: _Shapes) -> dict[str, tuple[_Gated, int | None]]:
    """Wraps every value projection; returns them by path, with the number of scanned layers."""
    modules = list(nnx.iter_modules(model))
    scanned = {
        (*path, "layers"): module.num_layers
        for path, module in modules
        if isinstance(module, LayerStack) and module.scanned
    }
    found: dict[str, tuple[_Gated, int | None]] = {}
    for path, module in modules:
        if not isinstance(module, MultiHeadAttention | AdditiveAttention):
            continue
        stack = next((s for s in scanned if path[: len(s)] == s), None)
        parts = path if stack is None else (*stack, "*", *path[len(stack) :])
        name = ".".join(map(str, parts))
        gated = _Gated(module.value, name, shapes)
        module.value = cast(nnx.LinearGeneral, gated)
        found[name] = gated, None if stack is None else scanned[stack]
    return found


def _by_layer(path: str, gradient: Array, *, scanned: bool) -> list[tuple[str, Array]]:
    if not scanned:
        return [(path, gradient)]
    return [(path.replace(_SCANNED, f".{n}", 1), part) for n, part in enumerate(gradient)]
