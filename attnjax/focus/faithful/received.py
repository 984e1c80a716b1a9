"""Attention that keys receive in every attention module of a model, raw and gradient-weighted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax.focus.modules import attention_modules, layer_names
from attnjax.nn import AdditiveAttention, MultiHeadAttention
from attnjax.nn.watching import Looked, Seen


class Received(NamedTuple):
    """What the keys of one attention module receive from all queries.

    Attributes:
      raw: the sum of the weights.
      gradient_weighted: the sum of each weight times the derivative of the score by it.
    """

    raw: Float[Array, "B S K"]
    gradient_weighted: Float[Array, "B S K"]


def received_attention(
    model: nnx.Module,
    score: Callable[[Any], Float[Array, "B"]],
    *,
    lengths: Int[Array, "B"] | None = None,
) -> dict[str, Received]:
    """Sums what each key receives over the queries and over the heads that share a value head.

    An output is linear in the values, so the sum of weight times gradient is the derivative of the
    score by a factor on the key's value: `sum_t w[t, s] dscore/dw[t, s] = v[s] . dscore/dv[s]`. All
    modules together take one gradient, and no array of queries by keys.

    Args:
      model: in eval mode; any module that has `MultiHeadAttention` or `AdditiveAttention` inside,
        scanned stacks of layers too. It is not changed.
      score: `score(model)`, of a copy of the model; each number from its own example alone.
      lengths: how many queries of each example count in `raw`, from the first; None is all. In the
        gradients, only those count that the score depends on.

    Returns:
      By the dotted path of the module; layers of a scanned stack have a number of their own in the
      place of the stack's `layers`, as layers of a list do. In float32.

    Raises:
      ValueError: if the model has no such module that the score calls.
      NotImplementedError: if a module is called more than once, with sequences of several shapes.
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
    observer = _Raw(lengths)
    for path, (module, layers) in gated.items():
        seen = shapes.seen.get(path, set())
        if len(seen) > 1:
            raise NotImplementedError(
                f"{path} is called with values of several shapes, {sorted(seen)}: give a score "
                "that calls the model once."
            )
        if seen:
            zeros = jnp.zeros((() if layers is None else (layers,)) + seen.pop(), jnp.float32)
            projection = cast(_Gated, module.value)
            projection.gate, module.looked = _Gate(zeros), Looked(zeros)
            module.observer = observer
    split: Any = nnx.split(copy, _Gate, ...)
    graph, gates, rest = split

    def total(gates: Any) -> tuple[Array, Any]:
        # nnx writes the records of this trace into no variables but those made inside it.
        model = nnx.merge(graph, gates, jax.tree.map(lambda x: x, rest))
        return jnp.sum(score(model)), nnx.state(model, Looked)

    gradients, looked = jax.grad(total, has_aux=True)(gates)
    nnx.update(copy, gradients, looked)
    found: dict[str, Received] = {}
    for path, (module, layers) in gated.items():
        if module.looked is None:
            continue
        both = Received(module.looked[...], cast(_Gated, module.value).gate[...])
        if layers is None:
            found[path] = both
            continue
        for layer, name in enumerate(layer_names(path, layers)):
            found[name] = Received(*(x[layer] for x in both))
    return found


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


class _Raw:
    """An observer that adds up the weights of the queries that count."""

    def __init__(self, lengths: Array | None) -> None:
        self.lengths = lengths

    def empty(self, num_heads: int) -> Array:
        raise AssertionError("received_attention knows the shapes, and makes the records itself")

    def add(self, kept: Array, seen: Seen) -> Array:
        q, k = jax.lax.stop_gradient((seen.q, seen.k))
        T = q.shape[1]
        counts = jnp.ones((1, T), bool)
        if self.lengths is not None:
            counts = jnp.arange(T) < jnp.asarray(self.lengths)[:, None]

        def total(values: Array) -> Array:
            out, _ = seen.attend(q, k, values)
            return jnp.sum(jnp.where(counts[..., None, None], out, 0), dtype=jnp.float32)

        # The output is linear in the values, so its derivative by a value is the value's weight.
        weights = jax.grad(total)(jnp.ones((*k.shape[:3], 1), q.dtype))
        return kept + weights[..., 0].astype(jnp.float32)


def _gate(
    model: nnx.Module, shapes: _Shapes
) -> dict[str, tuple[MultiHeadAttention | AdditiveAttention, int | None]]:
    """Wraps every value projection; returns modules by path, and how many layers are scanned."""
    found: dict[str, tuple[MultiHeadAttention | AdditiveAttention, int | None]] = {}
    for name, module, layers in attention_modules(model):
        if isinstance(module, MultiHeadAttention | AdditiveAttention):
            module.value = cast(nnx.LinearGeneral, _Gated(module.value, name, shapes))
            module.observer, module.looked = None, nnx.data(None)
            found[name] = module, layers or None
    return found
