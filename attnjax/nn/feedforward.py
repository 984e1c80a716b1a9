"""The position-wise feed-forward layer of a Transformer block."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from attnjax.nn.options import KERNEL_INIT

Activation = Literal["gelu", "gelu_exact", "relu", "swiglu", "geglu"]
_GELU_EXACT = functools.partial(jax.nn.gelu, approximate=False)
PLAIN_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": jax.nn.gelu,
    "gelu_exact": _GELU_EXACT,
    "relu": jax.nn.relu,
}
_GATED: dict[str, Callable[[Array], Array]] = {"swiglu": jax.nn.silu, "geglu": jax.nn.gelu}
_ACTIVATIONS = {**PLAIN_ACTIVATIONS, **_GATED}


class FeedForward(nnx.Module):
    """Two projections with an activation between them, or three for the gated ones.

    `down(gelu(up(x)))`; `down(silu(gate(x)) * up(x))` for `swiglu`, with `gelu(gate(x))` for
    `geglu`. GELU is the tanh approximation but in `gelu_exact`.

    Source for gates: Shazeer, "GLU Variants Improve Transformer" (2020).

    Args:
      features: width F of input and output.
      hidden: width between the projections.
      activation: `gelu`, `gelu_exact`, `relu`, `swiglu` or `geglu`.
      dropout_rate: dropout after the activation.
      use_bias: biases of all projections.
      kernel_init: initialiser of the projections.
      dtype: dtype of the computation; None promotes the input's with the parameters'.
      param_dtype: dtype of the parameters.
      rngs: for the parameters, and the stream `dropout`.

    Raises:
      ValueError: for an unknown activation.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        activation: Activation = "gelu",
        dropout_rate: float = 0.0,
        use_bias: bool = True,
        kernel_init: Callable[..., Array] = KERNEL_INIT,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if activation not in _ACTIVATIONS:
            known = ", ".join(_ACTIVATIONS)
            raise ValueError(f"activation: expected one of {known}; got {activation!r}.")

        def project(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(
                inputs,
                outputs,
                use_bias=use_bias,
                kernel_init=kernel_init,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        self.activation = activation
        self.up = project(features, hidden)
        self.gate = project(features, hidden) if activation in _GATED else None
        self.dropout = nnx.Dropout(dropout_rate, rngs=rngs)
        self.down = project(hidden, features)

    def __call__(self, x: Float[Array, "*B T F"]) -> Float[Array, "*B T F"]:
        """Applies the layer to each position.

        Args:
          x: any leading axes.

        Returns:
          An array of the same shape.
        """
        activate = _ACTIVATIONS[self.activation]
        hidden = self.up(x)
        hidden = activate(hidden) if self.gate is None else activate(self.gate(x)) * hidden
        return self.down(self.dropout(hidden))
