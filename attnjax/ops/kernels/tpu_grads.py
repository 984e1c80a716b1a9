"""How a Pallas TPU kernel hands back the cotangents of the operands of a `TileProgram`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from attnjax.ops.kernels.programs import Part
from attnjax.ops.kernels.tpu_parts import LANES, Locate, Transport

# Rows of a block whose every entry is one number.
_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Gradient:
    """The cotangent of one operand: summed over the steps that see the same part of it.

    It is made for every batch element and head; `total` adds up those that share the part.

    Attributes:
      transport: how the operand got into the kernel.
      groups: query heads that the kernel visits one after the other at each step.
    """

    transport: Transport
    groups: int = 1

    @property
    def _blocks(self) -> tuple[int, int]:
        t = self.transport.tile
        return -(-t.T // t.block_q), -(-t.S // t.block_k)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the kernel's output."""
        t, (nq, nk) = self.transport.tile, self._blocks
        match self.transport.part:
            case Part.SCALAR:
                return (t.B, t.N, _ROWS, LANES)
            case Part.ALONG_T:
                return (t.B, t.N, 1, nq * t.block_q)
            case Part.ALONG_S:
                return (t.B, t.N, 1, nk * t.block_k)
            case Part.TILE:
                return (t.B, t.N, nq * t.block_q, nk * t.block_k)
        unit = self.transport.unit
        return (t.B, t.N, (nq * t.block_q + nk * t.block_k) // unit, unit)

    def spec(self, locate: Locate) -> pl.BlockSpec:
        """Returns the block that the kernel writes at each step."""
        t, squeezed = self.transport.tile, pl.squeezed
        shape: tuple[int, ...] = self.shape[2:]
        match self.transport.part:
            case Part.ALONG_S:
                return pl.BlockSpec(
                    (squeezed, self.groups, 1, t.block_k),
                    lambda *g: ((p := locate(*g)).b, p.h // self.groups, 0, p.j),
                )
            case Part.ALONG_T:
                shape = (1, t.block_q)
            case Part.TILE:
                shape = (t.block_q, t.block_k)

        def at(*grid: Any) -> tuple[Any, ...]:
            place = locate(*grid)
            match self.transport.part:
                case Part.ALONG_T:
                    return place.b, place.h, 0, place.i
                case Part.TILE:
                    return place
            return place.b, place.h, 0, 0

        return pl.BlockSpec((squeezed, squeezed, *shape), at)

    @property
    def scratch(self) -> Any:
        """The memory in which a column is summed, or None."""
        if not self.transport.turned:
            return None
        return pltpu.VMEM((self.groups, self.transport.tile.shape[0], LANES), jnp.float32)

    def start(self, out: Any, column: Any, g: Any, *, call: Array, row: Array) -> None:
        """Sets sums to 0 where they begin.

        Args:
          out: the output block.
          column: the `scratch`.
          g: the query head among `groups`.
          call: whether it is the first step of its batch element and head.
          row: whether it is the first step of its row.
        """
        if column is not None:

            @pl.when(row)
            def clear_column() -> None:
                column[g] = jnp.zeros(column.shape[1:], column.dtype)

            return
        # A block of scores is visited once. It is cleared for the row that visits none.
        begins = row if self.transport.part is Part.TILE else call

        @pl.when(begins)
        def clear() -> None:
            out[...] = jnp.zeros_like(out)

    def add(self, out: Any, column: Any, g: Any, cotangent: Array, window: Array) -> None:
        """Adds the cotangent of a tile's part; `window` is `Transport.window`."""
        if column is not None:
            column[g] = column[g] + cotangent
            return
        match self.transport.part:
            case Part.SCALAR:
                out[...] = out[...] + cotangent
            case Part.TILE:
                out[...] = cotangent
            case Part.RELATIVE:
                sums = _diagonals(cotangent, self.transport.tile)
                unit = self.transport.unit
                for n in range(sums.shape[1] // unit):
                    at = pl.ds(window + n, 1)
                    out[at, :] = out[at, :] + sums[:, n * unit : (n + 1) * unit]
            case _:
                raise AssertionError("a part along rows is summed in a column")

    def finish(self, out: Any, column: Any, g: Any) -> None:
        """Writes what was summed in a column."""
        if column is None:
            return
        sums = column[g].T[:1]
        if self.transport.part is Part.ALONG_S:
            out[g] = sums
        else:
            out[...] = sums

    def total(self, result: Array) -> Array:
        """Adds up the kernel's output to the operand's shape."""
        t, operand = self.transport.tile, self.transport.operand
        nq, _ = self._blocks
        match self.transport.part:
            case Part.SCALAR:
                result = result[:, :, 0, 0]
            case Part.ALONG_T:
                result = result[:, :, 0, : t.T]
            case Part.ALONG_S:
                result = result[:, :, 0, : t.S]
            case Part.TILE:
                result = result[:, :, : t.T, : t.S]
            case Part.RELATIVE:
                before = nq * t.block_q - t.T
                size = operand.size("R")
                result = result.reshape(t.B, t.N, -1)[..., before : before + size]
        for axis, letter in enumerate("BN"):
            if letter not in self.transport.letters:
                result = jnp.sum(result, axis=axis, keepdims=True)
        return result.reshape(operand.array.shape)


def _diagonals(tile_of: Array, tile: Any) -> Array:
    """Sums a tile over its diagonals: the transpose of `out[a, c] = window[c - a + bq - 1]`.

    Row `a` must move `bq - 1 - a` to the right; it moves `bq - 1`, and back by the powers of two
    that make up `a`, because a rotation by more with every row goes to the right only.
    """
    length = tile.block_q + tile.block_k
    if tile.rows == "S":
        tile_of = tile_of.T
    filled = jnp.concatenate([tile_of, jnp.zeros((tile.block_q, tile.block_q), tile_of.dtype)], 1)
    rows = jax.lax.broadcasted_iota(jnp.int32, filled.shape, 0)
    moved = pltpu.roll(filled, tile.block_q - 1, 1)
    for bit in range((tile.block_q - 1).bit_length()):
        back = pltpu.roll(moved, length - (1 << bit), 1)
        moved = jnp.where((rows >> bit) & 1 == 1, back, moved)
    return jnp.sum(moved, axis=0, keepdims=True)
