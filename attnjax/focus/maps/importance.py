"""How much a model's loss depends on each head: by its gradient, and by taking the head away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from attnjax.focus.modules import attention_modules, layer_names
from attnjax.focus.steady.sigma import fold_sigma

Loss = Callable[[Any, Any], Array]
Gates = dict[str, Array]


def gradient_importance(
    model: nnx.Module, loss: Loss, examples: Any
) -> dict[str, Float[Array, "N"]]:
    """Returns how much the loss would change with the size of each head's output.

    The mean over examples of `|sum(out_h * d loss / d out_h)|`, the sum being over all positions of
    an example. It is the derivative by a factor of the head's rows of the output projection, so
    that every model and every scanned stack of layers has it. Source: Michel et al., "Are Sixteen
    Heads Really Better than One?" (2019), equation 2, without their division by the norm of a
    layer. Example:

        def loss(model, example):
            tokens, label = example
            return optax.softmax_cross_entropy_with_integer_labels(model(tokens), label).mean()

        importance = maps.gradient_importance(model, loss, (tokens, labels))
        importance["encoder.layers.0.attention"]  # [N]

    Args:
      model: a model with attention modules of attnjax.nn, in evaluation mode; it is not changed.
      loss: `(model, example) -> scalar`.
      examples: a pytree of arrays with one entry per example along the first axis; the loss gets
        one at a time, with a first axis of 1.

    Returns:
      float32, by the dotted path of the module; each layer of a scanned stack has a path of its
      own. Modules without an output projection are left out.

    Raises:
      ValueError: if the model has no such module, the loss is no scalar, or examples differ in
        number.
    """
    gates, state, gated = _gates(model)
    counts = {jnp.shape(x)[:1] for x in jax.tree.leaves(examples)}
    if len(counts) != 1 or counts & {(), (0,)}:
        raise ValueError(
            "examples: expected arrays with the same number of examples along the first axis, at "
            f"least one, got {sorted(counts)}."
        )

    @jax.jit
    def all_slopes(state: Any, examples: Any) -> Gates:
        def slopes(example: Any) -> Gates:
            one = jax.tree.map(lambda x: x[None], example)
            return jax.grad(lambda gates: _scalar(loss(gated(state, gates), one)))(gates)

        found: Gates = jax.lax.map(slopes, examples)
        return found

    found = all_slopes(state, examples)
    return _by_layer({path: jnp.mean(jnp.abs(x), axis=0) for path, x in found.items()})


def ablation_importance(model: nnx.Module, loss: Loss, batch: Any) -> dict[str, Float[Array, "N"]]:
    """Returns how much the loss grows when a head is taken away, for each head alone.

    A head is taken away by zeros in its rows of the output projection. The loss is computed once
    for each head, and once for the whole model. Source: Michel et al. (2019), section 3.

    Args:
      model: a model with attention modules of attnjax.nn, in evaluation mode; it is not changed.
      loss: `(model, batch) -> scalar`.
      batch: what the loss takes.

    Returns:
      As `gradient_importance`: the loss without the head, less the loss of the whole model; below 0
      where the model does better without it.

    Raises:
      ValueError: if the model has no such module, or the loss is no scalar.
    """
    gates, state, gated = _gates(model)
    flat, unravel = ravel_pytree(gates)

    @jax.jit
    def growth(state: Any, batch: Any) -> Array:
        def without(head: Array) -> Array:
            # The number after the last head's is no head's: nothing is taken away.
            some = flat.at[head].set(0, mode="drop")
            return _scalar(loss(gated(state, unravel(some)), batch))

        found = jax.lax.map(without, jnp.arange(flat.size + 1))
        return found[:-1] - found[-1]

    return _by_layer(unravel(growth(state, batch)))


def _gates(model: nnx.Module) -> tuple[Gates, Any, Callable[[Any, Gates], nnx.Module]]:
    """Returns a factor of 1 for each head, the state of the model, and what applies other factors.

    The state is an argument of what is compiled, for as a constant it would be written into it.
    """
    model = nnx.clone(model)
    fold_sigma(model)  # a factor of a head's rows would change the norm of all heads' rows
    kernels = _out_kernels(model)
    if not kernels:
        raise ValueError(
            "model: expected one with attention modules of attnjax.nn that project their output, "
            f"found none in {type(model).__name__}."
        )
    gates = {path: jnp.ones(x[...].shape[:-2], jnp.float32) for path, x in kernels.items()}
    graphdef, state = nnx.split(model)

    def gated(state: Any, gates: Gates) -> nnx.Module:
        copy: nnx.Module = nnx.merge(graphdef, state, copy=True)
        for path, kernel in _out_kernels(copy).items():
            factor = gates[path][..., None, None].astype(kernel[...].dtype)
            kernel[...] = kernel[...] * factor
        return copy

    return gates, state, gated


def _out_kernels(model: nnx.Module) -> dict[str, Any]:
    """Returns the kernels `[N, D, O]`, scanned `[L, N, D, O]`, of output projections by path."""
    projections = {path: getattr(m, "out", None) for path, m, _ in attention_modules(model)}
    return {path: out.kernel for path, out in projections.items() if out is not None}


def _scalar(value: Array) -> Array:
    if jnp.shape(value):
        raise ValueError(f"loss: expected a scalar, got shape {tuple(jnp.shape(value))}.")
    return value.astype(jnp.float32)


def _by_layer(found: Gates) -> Gates:
    named: Gates = {}
    for path, x in found.items():
        if x.ndim == 1:
            named[path] = x
        else:
            named |= dict(zip(layer_names(path, x.shape[0]), x, strict=True))
    return named
