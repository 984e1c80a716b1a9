"""Caches of projected keys and values, for attention step by step.

A cache is an immutable pytree of fixed size: a step takes one and returns the next, under `jit`,
inside `lax.scan`, on any device. Slot `s` holds position `s` of the sequence.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from attnjax.typing import is_concrete


class KeyValues(NamedTuple):
    """Projected keys and values of a sequence.

    Attributes:
      k: keys, positions applied, `[B, S, K, H]`.
      v: values, `[B, S, K, H]`.
    """

    k: Float[Array, "B S K H"]
    v: Float[Array, "B S K H"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of the positions so far, in `capacity` slots.

    Attributes:
      k: keys, `[B, capacity, K, H]`.
      v: values, `[B, capacity, K, H]`.
      length: positions so far, int32: `[]` if all examples go in step, `[B]` if each has its own.
    """

    k: Array
    v: Array
    length: Array

    @classmethod
    def zeros(
        cls, batch: int, capacity: int, num_kv_heads: int, head_dim: int, dtype: Any
    ) -> KVCache:
        """Returns an empty cache.

        Raises:
          ValueError: if the capacity is below 1.
        """
        if capacity < 1:
            raise ValueError(f"capacity: expected at least 1, got {capacity}.")
        shape = (batch, capacity, num_kv_heads, head_dim)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((), jnp.int32))

    @property
    def capacity(self) -> int:
        """Number of slots."""
        return self.k.shape[1]

    def next_positions(self, T: int) -> Int[Array, "*B T"]:
        """Returns the positions of the next T tokens, `[T]`, or `[B, T]` for lengths `[B]`."""
        return self.length[..., None] + jnp.arange(T, dtype=self.length.dtype)

    def overfull(self, T: int) -> Bool[Array, "*B"]:
        """Returns whether T more positions do not fit, in the shape of `length`."""
        return self.length + T > self.capacity

    def append(self, kv: KeyValues) -> KVCache:
        """Writes the keys and values of the next positions.

        Where they do not fit and the length is traced, nothing is written, and the length grows
        past the capacity, so that every later step does not fit either.

        Args:
          kv: `[B, T, K, H]` each; cast to the cache's dtype.

        Returns:
          The new cache.

        Raises:
          ValueError: if the shapes do not match, or if the positions do not fit and this is known.
        """
        T = kv.k.shape[1]
        want = (self.k.shape[0], T, *self.k.shape[2:])
        if kv.k.shape != want:
            raise ValueError(f"cache: expected keys of shape {want}, got {kv.k.shape}.")
        # By NumPy, because inside a trace jnp would hide what is known.
        known = np.asarray(self.length) if is_concrete(self.length) else np.zeros((), np.int32)
        if np.any(known + T > self.capacity):
            raise ValueError(
                f"cache: expected room for {T} more positions, got {known} of {self.capacity} "
                "slots filled. Make the cache with a larger capacity, or rewind it."
            )
        full = self.overfull(T)
        k = _write(self.k, kv.k, self.length, full)
        v = _write(self.v, kv.v, self.length, full)
        return KVCache(k, v, self.length + T)

    def rewind(self, length: int | Int[Array, "*B"]) -> KVCache:
        """Returns the cache as of an earlier length, for example each prompt's own.

        Args:
          length: an integer, or an integer array `[]` or `[B]`, from 0 to the present length; may
            be traced, and where it is out of range then, every later step is overfull.

        Returns:
          The cache; slots from the new length on are hidden, then overwritten.

        Raises:
          ValueError: for another shape or dtype, or a length that is known to be out of range.
        """
        length = rewound(self.length, length, self.k.shape[0], self.capacity)
        return dataclasses.replace(self, length=length)

    def take(self, index: Int[Array, "A"]) -> KVCache:
        """Returns the cache of some examples, in any order, each as often as it is named.

        Args:
          index: examples, integers `[A]`; may be traced.

        Returns:
          The cache of A examples.

        Raises:
          ValueError: for another shape or dtype, or an example that is known not to be there.
        """
        check_examples(index, self.k.shape[0])
        k, v = (taken(x, index) for x in (self.k, self.v))
        return KVCache(k, v, taken(self.length, index) if self.length.ndim else self.length)


def check_examples(index: Any, batch: int) -> None:
    """Raises ValueError unless `index` names examples of a batch: integers `[A]`."""
    if np.ndim(index) != 1 or not jnp.issubdtype(jnp.result_type(index), jnp.integer):
        raise ValueError(
            f"index: expected integers [A], the examples to take, got shape {np.shape(index)}, "
            f"dtype {jnp.result_type(index)}."
        )
    if is_concrete(index) and np.any((np.asarray(index) < 0) | (np.asarray(index) >= batch)):
        raise ValueError(f"index: expected examples from 0 to {batch - 1}, got {index}.")


def taken(x: Array, index: Array, axis: int = 0) -> Array:
    """Takes entries along an axis; what a traced index asks for beyond its end is NaN."""
    return jnp.take(x, jnp.asarray(index), axis=axis, mode="fill")


def rewound(present: Array, length: int | Array, batch: int, capacity: int) -> Int[Array, "*B"]:
    """Checks an earlier length of a cache; `KVCache.rewind` says how.

    Returns:
      The length as int32, or `capacity + 1` where it is out of range.
    """
    array = jnp.asarray(length)
    if not jnp.issubdtype(array.dtype, jnp.integer) or array.shape not in ((), (batch,)):
        raise ValueError(
            f"length: expected an integer or an integer array [B={batch}], got shape "
            f"{array.shape}, dtype {array.dtype}."
        )
    wrong = (array < 0) | (array > present)
    if is_concrete(wrong) and np.any(wrong):
        raise ValueError(f"length: expected 0 to the cache's present {present}, got {length}.")
    return jnp.where(wrong, capacity + 1, array).astype(jnp.int32)


def _write(buffer: Array, new: Array, start: Array, full: Array) -> Array:
    """Writes `[B, T, K, H]` at slot `start`, and nothing where it does not fit."""
    T, capacity = new.shape[1], buffer.shape[1]
    # XLA:CPU fuses the write of a single row with what reads the buffer, and copies it for that.
    size = min(max(T, 2), capacity)

    def write(buffer: Array, new: Array, start: Array, full: Array, axis: int) -> Array:
        # An update that does not fit would be moved back over slots that are still needed.
        first = jnp.minimum(start, capacity - size)
        old = jax.lax.dynamic_slice_in_dim(buffer, first, size, axis)
        row = (jnp.arange(size) - (start - first)).reshape(-1, *(1,) * (buffer.ndim - axis - 1))
        own = (row >= 0) & (row < T) & ~full
        new = jnp.where(own, new.astype(buffer.dtype), old)
        return jax.lax.dynamic_update_slice_in_dim(buffer, new, first, axis)

    if not start.ndim:
        return write(buffer, new, start, full, 1)
    return jax.vmap(write, in_axes=(0, 0, 0, 0, None))(buffer, new, start, full, 0)
