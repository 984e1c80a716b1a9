"""Which blocks of a mask are empty, partial or full: interval analysis, O(blocks).

A mask bounds itself on every block of a `Grid` from the lowest and highest position (and the
lowest and highest value of its per-position arrays) in the block; `& | ~` combine the bounds.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from attnjax.operands import AXES, Operand

EMPTY, PARTIAL, FULL = 0, 1, 2


class Bounds(NamedTuple):
    """What is known of a mask on each block, bool `[B|1, N|1, nq|1, nk|1]`.

    Attributes:
      some: False where no position is allowed; True where one may be.
      all: True where every position is allowed; False where one may not be.
    """

    some: Array
    all: Array


class Blocked(Protocol):
    """Anything that bounds itself on a grid; every mask does."""

    def bounds(self, grid: Grid) -> Bounds:
        """Bounds the mask on every block."""


class Grid:
    """Blocks of queries and keys.

    Attributes:
      T, S: number of queries and of keys.
      block_q, block_k: block sizes; the last block may be shorter.
      shape: `(nq, nk)`, the number of blocks.
      xp: `numpy` on the host, `jax.numpy` inside a trace.
      q_lo, q_hi: first and last query of each block, int32 `[1, 1, nq, 1]`.
      k_lo, k_hi: first and last key of each block, int32 `[1, 1, 1, nk]`.
    """

    def __init__(
        self,
        T: int,
        S: int,
        block_q: int,
        block_k: int,
        *,
        host: bool,
        first: tuple[Array | int, Array | int] = (0, 0),
    ) -> None:
        """Lays the grid out.

        Args:
          T: number of queries.
          S: number of keys.
          block_q: queries in a block.
          block_k: keys in a block.
          host: whether NumPy may compute with it now.
          first: positions of the first query and the first key, for a part of a larger call.
        """
        self.T, self.S, self.block_q, self.block_k = T, S, block_q, block_k
        self.shape = (-(-T // block_q), -(-S // block_k))
        self.xp: Any = np if host else jnp
        q, k = (np.arange(n, dtype=np.int32) for n in self.shape) if host else self._traced()
        q_lo: Any = q[None, None, :, None] * block_q
        k_lo: Any = k[None, None, None, :] * block_k
        self.q_lo, self.q_hi = q_lo + first[0], self.xp.minimum(q_lo + block_q, T) - 1 + first[0]
        self.k_lo, self.k_hi = k_lo + first[1], self.xp.minimum(k_lo + block_k, S) - 1 + first[1]
        self.true = self.xp.ones((1, 1, 1, 1), bool)

    def _traced(self) -> tuple[Array, Array]:
        # The barrier keeps XLA from evaluating the whole grid, O(blocks), at compile time.
        return jax.lax.optimization_barrier(
            tuple(jnp.arange(n, dtype=jnp.int32) for n in self.shape)
        )

    def value(self, number: int | Array) -> Array:
        """Returns a number or a `[B]` array so that it broadcasts against the grid."""
        return self.xp.reshape(self.xp.asarray(number), (-1, 1, 1, 1))

    def min(self, operand: Operand) -> Array:
        """Returns the smallest value of an operand in each block."""
        return self._reduce(operand, "min")

    def max(self, operand: Operand) -> Array:
        """Returns the largest value of an operand in each block."""
        return self._reduce(operand, "max")

    def _reduce(self, operand: Operand, how: str) -> Array:
        x = self.xp.asarray(operand.array)
        if self.xp is jnp:
            # A constant array under jit: XLA would reduce it at compile time, in half a minute.
            x = jax.lax.optimization_barrier(x)
        x = self.xp.reshape(x, [operand.size(a) for a in AXES])
        reduce = getattr(self.xp, how)
        for axis, block in ((AXES.index("T"), self.block_q), (AXES.index("S"), self.block_k)):
            length = x.shape[axis]
            if length == 1:
                continue
            widths = [(0, 0)] * x.ndim
            widths[axis] = (0, -length % block)
            x = self.xp.pad(x, widths, mode="edge")
            x = reduce(x.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :]), axis=axis + 1)
        return x


def classify(mask: Blocked, grid: Grid) -> Array:
    """Returns int8 kinds `[B|1, N|1, nq, nk]` of a mask on a grid."""
    some, every = mask.bounds(grid)
    kinds = some.astype(np.int8) * (PARTIAL + every.astype(np.int8) * (FULL - PARTIAL))
    return grid.xp.broadcast_to(kinds, (*kinds.shape[:2], *grid.shape))
