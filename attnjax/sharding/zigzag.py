"""Which positions a device takes: its own neighbours, or one chunk from either end.

Where queries see only what came before, the device with the last positions has nearly all the work.
In zigzag order, device `d` of P takes chunks `d` and `2P - 1 - d` of 2P, an early and a late one.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from attnjax.masks import EMPTY, Mask, Where, walk
from attnjax.masks.blocks import Grid, classify
from attnjax.sharding.arrays import map_leaves
from attnjax.typing import is_concrete

# Blocks per chunk, along each axis, that are counted.
_FINE = 4
# Re-ordering costs an exchange of its own.
_WORTH_IT = 0.95


@dataclasses.dataclass(frozen=True)
class Order:
    """Which positions each device takes.

    Attributes:
      devices: number of devices P.
      chunks: chunks of each device, 1 in order of position, 2 in zigzag.
    """

    devices: int
    chunks: int

    @property
    def name(self) -> str:
        """What to call it."""
        return "zigzag" if self.chunks == 2 else "contiguous"

    def number(self, device: Array | int, chunk: Array | int) -> Array:
        """Returns which of all chunks is the given one of a device."""
        return jnp.where(jnp.asarray(chunk) == 0, device, self.chunks * self.devices - 1 - device)

    def scatter(self, x: Array, axis: int, names: tuple[str, ...]) -> Array:
        """Moves an array from order of position, as devices hold it, to this order."""
        if self.chunks == 1:
            return x
        first, second = jnp.split(x, 2, axis=axis)
        sends = self._sends()
        first, second = (
            jax.lax.ppermute(half, names, list(enumerate(to)))
            for half, to in zip((first, second), sends, strict=True)
        )
        return self._pair(first, second, axis, names)

    def gather(self, x: Array, axis: int, names: tuple[str, ...]) -> Array:
        """Moves an array back to order of position."""
        if self.chunks == 1:
            return x
        # Which of the two came as a first half is told by the same rule in both directions.
        low, high = jnp.split(x, 2, axis=axis)
        halves = jnp.split(self._pair(low, high, axis, names), 2, axis=axis)
        moved = (
            jax.lax.ppermute(half, names, [(b, a) for a, b in enumerate(to)])
            for half, to in zip(halves, self._sends(), strict=True)
        )
        return jnp.concatenate(list(moved), axis=axis)

    def _sends(self) -> list[list[int]]:
        """Returns for the first and the second half of each device where it goes."""
        total = 2 * self.devices
        return [
            [min(m, total - 1 - m) for m in range(start, total, 2)]  # chunk m and its mirror image
            for start in (0, 1)
        ]

    def _pair(self, first: Array, second: Array, axis: int, names: tuple[str, ...]) -> Array:
        even = jax.lax.axis_index(names) % 2 == 0
        low, high = jnp.where(even, first, second), jnp.where(even, second, first)
        return jnp.concatenate([low, high], axis=axis)


def loads(mask: Mask, T: int, S: int, order: Order) -> np.ndarray:
    """Counts the blocks that devices visit in each step of a ring.

    Masks whose arrays are traced, and `Where`, count as if they allowed everything.

    Returns:
      `[P, P]`, device by step, in chunks of the zigzag order, `T / 2P` by `S / 2P`.
    """
    P, total = order.devices, 2 * order.devices
    block_q, block_k = (max(1, -(-n // (total * _FINE))) for n in (T, S))
    grid = Grid(T, S, block_q, block_k, host=True)
    kinds = np.asarray(classify(map_leaves(mask, _known), grid))
    visited = (kinds != EMPTY).mean(axis=(0, 1))
    chunk = np.zeros((total, total))
    # A block that chunks cut counts for the chunk of its first position.
    rows = np.arange(visited.shape[0]) * block_q * total // T
    columns = np.arange(visited.shape[1]) * block_k * total // S
    np.add.at(chunk, (rows[:, None], columns), visited / _FINE**2)
    own = np.arange(P)
    if order.chunks == 2:
        members = np.stack([own, total - 1 - own], axis=1)
    else:
        members = np.stack([2 * own, 2 * own + 1], axis=1)
    source = (own[:, None] - own) % P
    pairs = chunk[members[:, None, :, None], members[source][:, :, None, :]]
    return pairs.sum(axis=(2, 3))


def choose_order(mask: Mask, T: int, S: int, devices: int) -> Order:
    """Chooses the order in which devices wait least for each other, by the mask's blocks."""
    contiguous, zigzag = Order(devices, 1), Order(devices, 2)
    if devices == 1 or T % (2 * devices) or S % (2 * devices):
        return contiguous
    # Every step takes as long as its busiest device.
    slow, fast = (loads(mask, T, S, order).max(axis=0).sum() for order in (contiguous, zigzag))
    return zigzag if fast < _WORTH_IT * slow else contiguous


def _known(leaf: Mask) -> Mask:
    """Returns a mask leaf, or one that may allow everything if this one is known only later."""
    if isinstance(leaf, Where) or not is_concrete(*leaf.leaves()):
        return Where(_anything)
    return leaf


def _anything(b: Array, h: Array, q_idx: Array, k_idx: Array) -> Array:
    return jnp.ones((), bool)


def has_unknown(mask: Mask) -> bool:
    """Returns whether a mask has parts that `loads` cannot count."""
    return any(_known(leaf) is not leaf for leaf in walk(mask))
