"""Heads over devices, and the exchange of sequence for heads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.sharding.partition import Spread


def divides(K: int, devices: int) -> bool:
    """Returns whether key heads divide over devices; else some devices share a key head."""
    return K % devices == 0


def count(N: int, K: int, devices: int) -> int:
    """Returns how many key heads a device computes with."""
    if divides(K, devices):
        return K // devices
    return 1 if (N // K) % (N // devices) == 0 else N // devices


def _own(device: Array, N: int, K: int, devices: int) -> Array:
    """Returns the key heads of one device's query heads, where key heads do not divide."""
    own, groups = N // devices, N // K
    first = device * own
    if count(N, K, devices) == 1:
        return (first // groups)[None]
    # Query heads of one device belong to several key heads, unevenly: each gets its own copy.
    return (first + jnp.arange(own)) // groups


def choose_keys(x: Array, found: Spread, N: int, K: int) -> Array:
    """Returns of keys or values `[B, S, K, H]` the heads of this device's query heads."""
    if not found.heads or divides(K, found.sizes[1]):
        return x  # cut already
    return jnp.take(x, _own(jax.lax.axis_index(found.heads), N, K, found.sizes[1]), axis=2)


def to_heads(x: Array, found: Spread) -> Array:
    """Exchanges sequence for query heads: `[B, T / P, n, H]` to `[B, T, n / P, H]`."""
    return jax.lax.all_to_all(x, found.sequence, split_axis=2, concat_axis=1, tiled=True)


def to_sequence(x: Array, found: Spread) -> Array:
    """Exchanges query heads for sequence, the way back."""
    return jax.lax.all_to_all(x, found.sequence, split_axis=1, concat_axis=2, tiled=True)


def keys_to_heads(x: Array, found: Spread, N: int, K: int) -> Array:
    """Exchanges sequence for key heads; a head that several devices need goes to all of them."""
    _, heads, devices = found.sizes
    if not divides(K, heads * devices):
        row = jax.lax.axis_index(found.heads) if found.heads else jnp.int32(0)
        cut = bool(found.heads) and divides(K, heads)
        first = row * (K // heads) if cut else 0
        needed = [_own(row * devices + d, N, K, heads * devices) for d in range(devices)]
        x = jnp.take(x, jnp.concatenate(needed) - first, axis=2)
    return to_heads(x, found)
