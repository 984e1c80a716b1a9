"""Chosen rows and columns of the weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from attnjax.focus.maps.tiles import make_scene
from attnjax.focus.maps.weights import Weights
from attnjax.ops.tiles import Origin, Tiling
from attnjax.typing import is_concrete


def rows(found: Weights, queries: Int[Array, "R"]) -> Float[Array, "B N R S"]:
    """Returns all weights of chosen queries.

    Args:
      found: the weights.
      queries: their positions, integers `[R]`; traced ones out of range give NaN.

    Returns:
      float32.

    Raises:
      ValueError: if positions are not integers `[R]`, or are out of range.
    """
    return _lines(found, queries, "queries", "T")


def columns(found: Weights, keys: Int[Array, "C"]) -> Float[Array, "B N T C"]:
    """Returns the weights that chosen keys receive from every query.

    Args:
      found: the weights.
      keys: their positions, integers `[C]`; traced ones out of range give NaN.

    Returns:
      float32.

    Raises:
      ValueError: if positions are not integers `[C]`, or are out of range.
    """
    return jnp.swapaxes(_lines(found, keys, "keys", "S"), 2, 3)


def _lines(found: Weights, chosen: Any, name: str, letter: str) -> Array:
    chosen = check_chosen(name, chosen, letter, found.sizes[letter])
    run = _compute if found.problem.user_functions else _compute_cached
    return run(found, chosen, letter)


def check_chosen(name: str, chosen: Any, letter: str, length: int) -> Array:
    """Returns chosen positions as an array, or raises ValueError."""
    known = np.asarray(chosen) if is_concrete(*jax.tree.leaves(chosen)) else None
    array = jnp.asarray(chosen) if known is None else known
    if array.ndim != 1 or not jnp.issubdtype(array.dtype, jnp.integer) or not array.shape[0]:
        raise ValueError(
            f"{name}: expected one or more positions, integers in one dimension, got shape "
            f"{tuple(array.shape)}, dtype {array.dtype}."
        )
    if known is not None and not (known.min() >= 0 and known.max() < length):
        raise ValueError(
            f"{name}: expected positions from 0 to {letter} - 1 = {length - 1}, got "
            f"{known.min()} to {known.max()}."
        )
    return jnp.asarray(array, jnp.int32)


def _compute(found: Weights, chosen: Array, letter: str) -> Array:
    """Computes each line as one tile of a width of 1."""
    size = found.sizes
    B, T, S, N, K = (size[a] for a in "BTSNK")
    block = {"T": 1, "S": S} if letter == "T" else {"T": T, "S": 1}
    t = Tiling(B, T, S, N, K, 1, N, block["T"], block["S"])
    scene, zero = make_scene(found, t), jnp.zeros((), jnp.int32)

    def one(place: tuple[Array, Array]) -> Array:
        b, line = place
        i, j = (line, zero) if letter == "T" else (zero, line)
        at = Origin(b, 0, i, j)
        x = scene.tile(scene.rows(at), at, i, j, partial=True).x.reshape(N, -1)
        return jnp.where((line >= 0) & (line < size[letter]), x, jnp.nan)

    batch, line = (x.reshape(-1) for x in jnp.meshgrid(jnp.arange(B), chosen, indexing="ij"))
    lines = jax.lax.map(one, (batch, line)).reshape(B, chosen.shape[0], N, -1)
    return jnp.swapaxes(lines, 1, 2)


_compute_cached = jax.jit(_compute, static_argnames="letter")
