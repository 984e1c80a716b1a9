"""Sigma-reparametrisation: linear layers whose kernels are divided by their spectral norm."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

FIRST_STEPS = 32
"""Steps of power iteration that a vector begins with."""


class SigmaVector(nnx.Variable[Array]):
    """A guess at the left singular vector of a kernel's largest singular value; no parameter."""


def sigma_vector(
    kernel: Float[Array, "*L *I *O"], *, inputs: int = 1, outputs: int = 1, steps: int = FIRST_STEPS
) -> Float[Array, "*L X"]:
    """Returns the vector that `sigma_kernel` begins with.

    It starts at the same pseudo-random vector for all kernels of a size, so that nothing is drawn
    from a model's random streams.

    Args:
      kernel: as in `sigma_kernel`.
      inputs: as in `sigma_kernel`.
      outputs: as in `sigma_kernel`.
      steps: of power iteration.

    Returns:
      Of length 1, over the `X` inputs of the matrix; float32, or the kernel's dtype if wider.

    Raises:
      ValueError: if the kernel is not of floating point or has too few axes.
    """
    return _settled(jax.lax.stop_gradient(_matrix(kernel, inputs, outputs)), steps)


def sigma_kernel(
    kernel: Float[Array, "*L *I *O"],
    gamma: Float[Array, "*L"],
    vector: Float[Array, "*L X"],
    *,
    inputs: int = 1,
    outputs: int = 1,
    steps: int = 1,
) -> tuple[Float[Array, "*L *I *O"], Float[Array, "*L X"]]:
    """Returns `gamma / sigma(W) * W` and the next vector; `sigma(W)` is the spectral norm.

    The kernel is a matrix W of its inputs (X, the product of their sizes) by its outputs; axes in
    front, those of scanned layers say, make many such matrices, each with a gamma of its own. Its
    spectral norm is estimated as `|v W|`, v being the vector after a step of power iteration: never
    too large, and equal to it once v has settled. Gradients take v, and `u = v W / |v W|`, for
    constants, and flow through `v W u`. In float32 whatever the dtype of the kernel.

    A kernel of zeros stays zeros, and its gradient is gamma times that of the result.

    Source: Zhai et al., "Stabilizing Transformer Training by Preventing Attention Entropy Collapse"
    (2023), section 3.2; power iteration and its gradient as in Miyato et al., "Spectral
    Normalization for Generative Adversarial Networks" (2018).

    Args:
      kernel: of floating point, its inputs' axes before its outputs'.
      gamma: the learned factor, 1 at first; the result's spectral norm.
      vector: what the last call returned, at first what `sigma_vector` returns.
      inputs: number of axes that are summed over.
      outputs: number of axes that remain.
      steps: of power iteration that improve the vector; 0 in evaluation.

    Returns:
      The kernel in its dtype, and the vector that it was measured along.

    Raises:
      ValueError: if the kernel is not of floating point, or shapes do not fit.
    """
    matrix = _matrix(kernel, inputs, outputs)
    for name, found, expected in (
        ("gamma", gamma, matrix.shape[:-2]),
        ("vector", vector, matrix.shape[:-1]),
    ):
        if jnp.shape(found) != expected:
            raise ValueError(
                f"{name}: expected shape {list(expected)} for a kernel {list(kernel.shape)} with "
                f"inputs={inputs}, outputs={outputs}; got {list(jnp.shape(found))}."
            )
    vector = jax.lax.stop_gradient(vector.astype(matrix.dtype))
    for _ in range(steps):
        vector = _iterated(jax.lax.stop_gradient(matrix), vector)
    factor = gamma.astype(matrix.dtype) / _divisor(matrix, vector)
    factor = factor.reshape(*factor.shape, *(1,) * (inputs + outputs))
    return (factor * kernel.astype(factor.dtype)).astype(kernel.dtype), vector


class SigmaLinear(nnx.Linear):
    """`flax.nnx.Linear` with the kernel `gamma / sigma(kernel) * kernel`, as `sigma_kernel` has it.

    Its parameters are those of `nnx.Linear`, and `gamma`, 1 at first. While it trains, every call
    improves its `vector` by a step of power iteration (or as many as its attribute `steps` says);
    `eval()` stops that. Layers whose arrays are stacked have one gamma each.

    Args:
      in_features: number of inputs.
      out_features: number of outputs.
      **options: what else `nnx.Linear` takes, `rngs` at least.
    """

    gamma: nnx.Param[Array]
    vector: SigmaVector
    deterministic: bool
    steps: int

    def __init__(self, in_features: int, out_features: int, **options: Any) -> None:
        super().__init__(in_features, out_features, **options)
        begin_sigma(self)

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Applies the layer to the last axis."""
        return nnx.Linear.__call__(_scaled_copy(self), inputs, **_given(out_sharding))


class SigmaLinearGeneral(nnx.LinearGeneral):
    """`flax.nnx.LinearGeneral` with the kernel that `SigmaLinear` has.

    The matrix is that of all inputs by all outputs: of a query projection `[F, N, H]` F by `N * H`,
    of an output projection `[N, H, O]` `N * H` by O, so that all heads share one spectral norm.

    Args:
      in_features: sizes of the inputs.
      out_features: sizes of the outputs.
      **options: what else `nnx.LinearGeneral` takes, `rngs` at least.
    """

    gamma: nnx.Param[Array]
    vector: SigmaVector
    deterministic: bool
    steps: int

    def __init__(self, in_features: Any, out_features: Any, **options: Any) -> None:
        super().__init__(in_features, out_features, **options)
        begin_sigma(self)

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Applies the layer to its axes."""
        return nnx.LinearGeneral.__call__(_scaled_copy(self), inputs, **_given(out_sharding))


SigmaLayer = SigmaLinear | SigmaLinearGeneral
SIGMA_KINDS: dict[type[nnx.Module], type[nnx.Module]] = {
    nnx.Linear: SigmaLinear,
    nnx.LinearGeneral: SigmaLinearGeneral,
}
"""What becomes what."""


def begin_sigma(layer: Any) -> None:
    """Gives a layer its `gamma` and its `vector`, in training mode."""
    vector = new_vector(layer)
    layer.gamma = nnx.Param(jnp.ones(vector.shape[:-1], vector.dtype))
    layer.vector = SigmaVector(vector)
    layer.deterministic, layer.steps = False, 1


def new_vector(layer: Any, *, steps: int = FIRST_STEPS) -> Float[Array, "*L X"]:
    """Returns the `sigma_vector` of a layer's own kernel."""
    return sigma_vector(layer.kernel[...], **_axes(layer), steps=steps)


def divisor_of(layer: Any) -> Float[Array, "*L"]:
    """Returns what a layer's own kernel is divided by in evaluation."""
    return _divisor(_matrix(layer.kernel[...], **_axes(layer)), layer.vector[...])


def kernel_of(layer: Any) -> Array:
    """Returns the kernel that a layer multiplies by; of a `SigmaLayer` the scaled one."""
    if not isinstance(layer, SigmaLayer):
        kernel: Array = layer.kernel[...]
        return kernel
    return _scaled(layer, steps=0)[0]


def _scaled(layer: Any, *, steps: int) -> tuple[Array, Array]:
    kernel, gamma, vector = layer.kernel[...], layer.gamma[...], layer.vector[...]
    return sigma_kernel(kernel, gamma, vector, **_axes(layer), steps=steps)


def _scaled_copy(layer: Any) -> Any:
    """Returns a layer like this one with the scaled kernel; in training, also keeps the vector."""
    kernel, vector = _scaled(layer, steps=0 if layer.deterministic else layer.steps)
    if not layer.deterministic:
        layer.vector[...] = vector
    copy = nnx.merge(*nnx.split(layer))
    copy.kernel = nnx.Param(kernel)  # not written into: that variable is of the layer's own trace
    return copy


def _given(out_sharding: Any) -> dict[str, Any]:
    """Returns the argument if there is one: not every Flax that we support has it."""
    return {} if out_sharding is None else {"out_sharding": out_sharding}


def _axes(layer: Any) -> dict[str, int]:
    if isinstance(layer, nnx.Linear):
        return {"inputs": 1, "outputs": 1}
    return {"inputs": len(layer.in_features), "outputs": len(layer.out_features)}


def _matrix(kernel: Array, inputs: int, outputs: int) -> Array:
    """Returns the kernel as matrices `[..., X, Y]`, float32 or wider."""
    lead = kernel.ndim - inputs - outputs
    if min(inputs, outputs) < 1 or lead < 0 or not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise ValueError(
            f"kernel: expected floating point with at least {inputs} axes of inputs and {outputs} "
            f"of outputs (one of each at least), got {kernel.dtype} {list(kernel.shape)}."
        )
    wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    sizes = kernel.shape[lead : lead + inputs], kernel.shape[lead + inputs :]
    return wide.reshape(*kernel.shape[:lead], *map(math.prod, sizes))


@jax.jit
def _settled(matrix: Array, steps: Array | int) -> Array:
    """Returns the vector after so many steps from the start; compiled once for all layers alike."""
    start = jax.random.normal(jax.random.key(0), matrix.shape[-2:-1], matrix.dtype)
    start = jnp.broadcast_to(start, matrix.shape[:-1])
    vector = _unit(start, start)
    found: Array = jax.lax.fori_loop(0, steps, lambda _, v: _iterated(matrix, v), vector)
    return found


def _iterated(matrix: Array, vector: Array) -> Array:
    """Returns the vector after one step; where the matrix is zeros, the vector as it was."""
    image = _image(matrix, vector)
    return _unit(_product("...xy,...y->...x", matrix, _unit(image, image)), vector)


def _divisor(matrix: Array, vector: Array) -> Array:
    """Returns the spectral norm along a vector, and 1 where the matrix is zeros."""
    image = _image(matrix, jax.lax.stop_gradient(vector))
    # The same number as the length of the image, but its gradient is finite at 0.
    sigma = jnp.sum(jax.lax.stop_gradient(_unit(image, image)) * image, axis=-1)
    return jnp.where(sigma <= _tiny(sigma), 1, sigma)


def _image(matrix: Array, vector: Array) -> Array:
    return _product("...xy,...x->...y", matrix, vector)


def _product(pattern: str, matrix: Array, vector: Array) -> Array:
    return jnp.einsum(pattern, matrix, vector, precision="highest")


def _unit(x: Array, otherwise: Array) -> Array:
    """Returns vectors scaled to length 1, and `otherwise` where they are zeros or not finite."""
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    x = x / jnp.where(largest > _tiny(x), largest, 1)  # else squares of small numbers would vanish
    length = jnp.linalg.norm(x, axis=-1, keepdims=True)
    fine = length > 0.5
    return jnp.where(fine, x / jnp.where(fine, length, 1), otherwise)


def _tiny(x: Array) -> Any:
    return jnp.finfo(x.dtype).tiny
