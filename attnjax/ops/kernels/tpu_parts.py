"""How a Pallas TPU kernel receives the arrays of a `TileProgram`, and hands back their cotangents.

A number per batch element and head lies in scalar memory. A number per query or per key arrives as
a row of its block; where the tile wants a column, it is turned once for each row of blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from attnjax.operands import Operand
from attnjax.ops.kernels.programs import LANES, Part, Tile, TileProgram, letters, part


class Place(NamedTuple):
    """Where a grid step is: batch element, query head, block of queries and block of keys."""

    b: Array
    h: Array
    i: Array
    j: Array


Locate = Callable[..., Place]
"""Finds the place of a grid step from what an index map is given."""


@dataclasses.dataclass(frozen=True)
class Transport:
    """One operand of a program on its way into a kernel.

    Attributes:
      operand: the operand; its array may be a shape only.
      tile: the tile.
    """

    operand: Operand
    tile: Tile

    @property
    def part(self) -> Part:
        """What the kernel reads of it."""
        return part(self.operand)

    @property
    def letters(self) -> str:
        """The axes along which it varies."""
        return letters(self.operand)

    @property
    def turned(self) -> bool:
        """Whether its block is a row that the tile wants as a column."""
        return self.part is {"T": Part.ALONG_T, "S": Part.ALONG_S}[self.tile.rows]

    @property
    def unit(self) -> int:
        """The step in which windows of relative positions start."""
        return min(self.tile.block_q, self.tile.block_k)

    def check(self) -> None:
        """Refuses what cannot be handed over.

        Raises:
          NotImplementedError: if blocks of relative positions would not line up.
        """
        t = self.tile
        if self.part is Part.RELATIVE and max(t.block_q, t.block_k) % self.unit:
            raise NotImplementedError(
                f"{self.operand.name} varies with the relative position, so that one block size "
                f"must be a multiple of the other; got {t.block_q} and {t.block_k}."
            )

    def lead(self, b: Any, h: Any) -> tuple[Any, Any]:
        """Returns the block numbers along batch and heads."""
        return (b if "B" in self.letters else 0), (h if "N" in self.letters else 0)

    def array(self, x: Array) -> Array:
        """Lays the operand's array out for the kernel."""
        t = self.tile
        if x.dtype == jnp.bool_:
            x = x.astype(jnp.int8 if self.part is Part.TILE else jnp.int32)
        if self.part is Part.SCALAR:
            return x.reshape(-1)
        sizes = {a: t.sizes[a] if a in self.letters else 1 for a in "BN"}
        lead = (sizes["B"], sizes["N"])
        if self.part is Part.TILE:
            x = x.reshape(*lead, t.T, t.S)
            return jnp.pad(x, ((0, 0), (0, 0), (0, -t.T % t.block_q), (0, -t.S % t.block_k)))
        x = x.reshape(*lead, 1, -1)
        if self.part is Part.RELATIVE:
            nq, nk = -(-t.T // t.block_q), -(-t.S // t.block_k)
            before = nq * t.block_q - t.T
            length = nq * t.block_q + nk * t.block_k
            return jnp.pad(x, ((0, 0),) * 3 + ((before, length - before - x.shape[-1]),))
        block = t.block_q if self.part is Part.ALONG_T else t.block_k
        return jnp.pad(x, ((0, 0),) * 3 + ((0, -x.shape[-1] % block),))

    def specs(self, locate: Locate) -> list[pl.BlockSpec]:
        """Returns the blocks that the kernel reads at each step: one, or several in a row."""
        t, squeezed = self.tile, pl.squeezed
        if self.part is Part.SCALAR:
            return [pl.BlockSpec(memory_space=pltpu.SMEM)]

        def lead(place: Place) -> tuple[Any, Any]:
            return self.lead(place.b, place.h)

        match self.part:
            case Part.TILE:
                shape = (squeezed, squeezed, t.block_q, t.block_k)
                return [pl.BlockSpec(shape, lambda *g: (*lead(p := locate(*g)), p.i, p.j))]
            case Part.ALONG_T:
                shape = (squeezed, squeezed, 1, t.block_q)
                return [pl.BlockSpec(shape, lambda *g: (*lead(p := locate(*g)), 0, p.i))]
            case Part.ALONG_S:
                shape = (squeezed, squeezed, 1, t.block_k)
                return [pl.BlockSpec(shape, lambda *g: (*lead(p := locate(*g)), 0, p.j))]
        shape = (squeezed, squeezed, 1, self.unit)
        return [
            pl.BlockSpec(shape, lambda *g, n=n: (*lead(p := locate(*g)), 0, self.window(p) + n))
            for n in range((t.block_q + t.block_k) // self.unit)
        ]

    def window(self, place: Place) -> Array:
        """Returns where a tile's window of relative positions starts, in units."""
        t = self.tile
        last = -(-t.T // t.block_q) - 1
        return place.j * (t.block_k // self.unit) + (last - place.i) * (t.block_q // self.unit)

    @property
    def scratch(self) -> Any:
        """The memory that holds its column, or None."""
        if not self.turned:
            return None
        return pltpu.VMEM((self.tile.shape[0], LANES), self._stored)

    @property
    def _stored(self) -> jnp.dtype:
        dtype = self.operand.array.dtype
        return jnp.dtype(jnp.int32) if dtype == jnp.bool_ else jnp.dtype(dtype)

    def turn(self, refs: Sequence[Any], column: Any) -> None:
        """Turns the row at hand into the column that `read` reads."""
        if column is not None:
            column[...] = to_column(refs[0][...])

    def read(self, refs: Sequence[Any], column: Any, b: Array, h: Array) -> Array:
        """Returns the part that the program takes."""
        dtype = self.operand.array.dtype
        match self.part:
            case Part.SCALAR:
                ref = refs[0]
                at_b, at_h = self.lead(b, h)
                heads = self.tile.N if "N" in self.letters else 1
                x = ref[at_b * heads + at_h]
            case Part.RELATIVE:
                x = _skew([ref[...] for ref in refs], self.tile)
            case Part.TILE:
                x = refs[0][...]
                if dtype == jnp.bool_:
                    x = x.astype(jnp.int32)
                x = x if self.tile.rows == "T" else x.T
            case _:
                x = column[:, :1] if column is not None else refs[0][...]
        return x != 0 if dtype == jnp.bool_ else x.astype(dtype)


class Parts(NamedTuple):
    """All operands of a program on their way into a kernel."""

    transports: tuple[Transport, ...]

    def arrays(self, program: TileProgram) -> list[list[Array]]:
        """Lays the arrays out; those read in several blocks are listed several times."""
        laid = [t.array(x) for t, x in zip(self.transports, program.arrays, strict=True)]
        return [[x] * len(t.specs(Place)) for t, x in zip(self.transports, laid, strict=True)]

    def specs(self, locate: Locate) -> list[list[pl.BlockSpec]]:
        """Returns the blocks to read, for each operand."""
        return [t.specs(locate) for t in self.transports]

    @property
    def scratch(self) -> list[Any]:
        """Returns the memory for columns, for each operand; None where it needs none."""
        return [t.scratch for t in self.transports]

    @property
    def turned(self) -> bool:
        """Whether any operand is turned into a column."""
        return any(t.turned for t in self.transports)

    def turn(self, refs: Any, columns: Any, *, per_head: bool | None = None) -> None:
        """Turns rows into columns; only of operands that vary with the head, or do not."""
        for t, ref, column in zip(self.transports, refs, columns, strict=True):
            if per_head is None or per_head == ("N" in t.letters):
                t.turn(ref, column)

    def read(
        self, refs: Any, columns: Any, b: Array, h: Array, count: int | None = None
    ) -> list[Array]:
        """Returns the parts that the program takes, all of them or the first `count`."""
        every = list(zip(self.transports, refs, columns, strict=True))
        return [t.read(ref, column, b, h) for t, ref, column in every[:count]]


def parts_of(program: TileProgram, tile: Tile) -> Parts:
    """Returns how a program's operands get into a kernel.

    Raises:
      NotImplementedError: if one of them can't.
    """
    found = Parts(tuple(Transport(o, tile) for o in program.operands))
    for transport in found.transports:
        transport.check()
    return found


def to_column(row: Array) -> Array:
    """Returns a row `[1, n]` as the columns of `[n, LANES]`, all alike."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def _skew(windows: Sequence[Array], tile: Tile) -> Array:
    """Turns a window of relative positions into a tile: `out[a, c] = window[c - a + bq - 1]`."""
    length = tile.block_q + tile.block_k
    row = jnp.concatenate(windows, axis=1)
    rows = jnp.broadcast_to(row, (tile.block_q, length))
    rolled = pltpu.roll(rows, length - tile.block_q + 1, 1, stride=1, stride_axis=0)
    out = rolled[:, : tile.block_k]
    return out if tile.rows == "T" else out.T
