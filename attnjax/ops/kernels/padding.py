"""Arrays in whole blocks."""

import jax.numpy as jnp
from jaxtyping import Array


def pad(x: Array, axis: int, multiple: int, value: float = 0) -> Array:
    """Pads an axis at its end to a multiple."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths, constant_values=value) if widths[axis][1] else x
