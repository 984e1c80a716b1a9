"""Where a cache of keys and values keeps each position of its sequence."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Contiguous:
    """Slot `s` of `[B, S, ...]` holds position `s`."""

    @property
    def endless(self) -> bool:
        """Whether a sequence may grow beyond the capacity, over its own oldest positions."""
        return False

    def capacity(self, cache: Any) -> int:
        """Returns how many slots each example has."""
        return cache.shape[1]

    def positions(self, capacity: int, length: Array) -> Int[Array, "b S"]:
        """Returns the position that each slot holds, or -1, for lengths `[b]`."""
        slots = jnp.arange(capacity, dtype=jnp.int32)
        return jnp.where(slots < length[:, None], slots, -1)

    def gather(self, cache: Array) -> Array:
        """Returns the slots of each example, `[B, S, ...]`."""
        return cache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ring(Contiguous):
    """Slot `s` of `[B, S, ...]` holds the latest position `p` with `p % S == s`.

    It serves masks that need no position further back, such as `Causal() & Window(S - 1, 0)`.
    """

    @property
    def endless(self) -> bool:
        return True

    def positions(self, capacity: int, length: Array) -> Int[Array, "b S"]:
        slots = jnp.arange(capacity, dtype=jnp.int32)
        last = length[:, None] - 1
        return jnp.maximum(last - (last - slots) % capacity, -1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Paged(Contiguous):
    """Pages `[pages, page_size, ...]` are shared by all examples, and a table says whose they are.

    Attributes:
      table: int32 `[B, M]`; page `table[b, p // page_size]` holds position `p` of example `b`.
        Entries beyond an example's length are not looked at.
    """

    table: Int[Array, "B M"]

    def capacity(self, cache: Any) -> int:
        return self.table.shape[1] * cache.shape[1]

    def gather(self, cache: Array) -> Array:
        pages = jnp.take(cache, self.table, axis=0, mode="clip")
        return pages.reshape(pages.shape[0], -1, *pages.shape[3:])
