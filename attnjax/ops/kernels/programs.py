"""Masks and score_mods as programs on one two-dimensional tile of one batch element and head.

All arrays of a program are operands, the captured ones and those found by `hoisting` included. In a
kernel an operand is a scalar, a column, a row or a whole tile: see `Part`.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array

from attnjax.masks import Mask, Where, evaluate, walk
from attnjax.numerics import widen
from attnjax.operands import AXES, Operand
from attnjax.ops.kernels.hoisting import Lookup, split, trace
from attnjax.scores import Declared, ScoreFn, ScoreMod, check_scores
from attnjax.typing import Index

# The width of a TPU's vectors, and of its smallest blocks.
LANES = 128


@dataclasses.dataclass(frozen=True)
class Tile:
    """One tile of scores.

    Attributes:
      B, N, T, S: the call's axis sizes.
      block_q, block_k: the tile's sizes.
      rows: `T` if queries are its rows and keys its columns, `S` if it is the other way round.
    """

    B: int
    N: int
    T: int
    S: int
    block_q: int
    block_k: int
    rows: str = "T"

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of a tile."""
        shape = (self.block_q, self.block_k)
        return shape if self.rows == "T" else shape[::-1]

    @property
    def sizes(self) -> dict[str, int]:
        """Axis sizes by letter."""
        return {"B": self.B, "N": self.N, "T": self.T, "S": self.S}

    def span(self, letter: str) -> tuple[int, int]:
        """Returns the shape of a tile's positions along `T` or `S`: a column or a row."""
        return (self.shape[0], 1) if letter == self.rows else (1, self.shape[1])

    def turned(self) -> Tile:
        """Returns the tile with rows and columns exchanged."""
        return dataclasses.replace(self, rows="S" if self.rows == "T" else "T")

    def index(self, b: Array, h: Array, q: Array, k: Array) -> Index:
        """Returns the positions of the tile whose first query and key are `q` and `k`."""

        def positions(first: Array, letter: str) -> Array:
            axis = 0 if letter == self.rows else 1
            return first + jax.lax.broadcasted_iota(jnp.int32, self.span(letter), axis)

        return Index(b, h, positions(q, "T"), positions(k, "S"))


class Part(enum.Enum):
    """What a kernel reads of an operand."""

    SCALAR = "one number per batch element and head"
    ALONG_T = "one number per query"
    ALONG_S = "one number per key"
    TILE = "one number per query and key"
    RELATIVE = "one number per relative position"


def letters(operand: Operand) -> str:
    """Returns the axes along which an operand varies."""
    return "".join(a for a, n in zip(operand.axes, operand.array.shape, strict=True) if n > 1)


def part(operand: Operand) -> Part:
    """Returns what a kernel reads of an operand."""
    found = letters(operand)
    if "R" in found:
        return Part.RELATIVE
    if "T" in found:
        return Part.TILE if "S" in found else Part.ALONG_T
    return Part.ALONG_S if "S" in found else Part.SCALAR


def part_shape(operand: Operand, tile: Tile) -> tuple[int, ...]:
    """Returns the shape in which a program takes an operand."""
    match part(operand):
        case Part.SCALAR:
            return ()
        case Part.ALONG_T:
            return tile.span("T")
        case Part.ALONG_S:
            return tile.span("S")
    return tile.shape


@dataclasses.dataclass(frozen=True)
class TileProgram:
    """A function of one tile.

    Attributes:
      closed: takes the tile's inputs, `b, h, q_idx, k_idx`, and the parts of the operands.
      operands: its arrays; `array` may be a shape only.
      linear: whether what it looks up depends linearly on the arrays that it captured.
    """

    closed: Any
    operands: tuple[Operand, ...]
    linear: bool = True

    @property
    def arrays(self) -> tuple[Array, ...]:
        """Its arrays."""
        return tuple(jnp.asarray(o.array) for o in self.operands)

    def bare(self) -> TileProgram:
        """Returns the program with shapes in the place of its arrays."""
        shapes = (jax.ShapeDtypeStruct(o.array.shape, o.array.dtype) for o in self.operands)
        return self._over(shapes)

    def with_arrays(self, arrays: Sequence[Array]) -> TileProgram:
        """Returns the same program over other arrays of the same shapes."""
        return self._over(arrays)

    def _over(self, arrays: Any) -> TileProgram:
        replaced = zip(self.operands, arrays, strict=True)
        operands = tuple(dataclasses.replace(o, array=x) for o, x in replaced)
        return dataclasses.replace(self, operands=operands)

    def __call__(self, *tiles: Array, index: Index, parts: Sequence[Array]) -> Array:
        """Runs on one tile."""
        # What is looked up by the query is one number where there is but one query.
        shapes = [x.shape for x in self.closed.in_avals[len(self.closed.in_avals) - len(parts) :]]
        spread = (
            x if x.shape == shape else jnp.broadcast_to(x, shape)
            for x, shape in zip(parts, shapes, strict=True)
        )
        (result,) = jaxpr_as_fun(self.closed)(*tiles, *index, *spread)
        return result


def lower_scores(
    mods: tuple[ScoreMod | ScoreFn, ...],
    scale: Array,
    tile: Tile,
    origin: Array | None = None,
    *,
    inside: bool = False,
) -> TileProgram:
    """Lowers the scale and the score_mods to a program `(dot products, index) -> scores`.

    The scale is the first of the program's operands.

    Args:
      mods: applied from left to right.
      scale: factor of the dot products.
      tile: the tile.
      origin: as in `Problem`; the program takes positions in the whole call.
      inside: whether it takes positions in the part instead, and adds the origin itself.

    Returns:
      The program, on float32.

    Raises:
      NotImplementedError: if a score_mod does what a kernel cannot do.
      ValueError: if a score_mod returns scores of another shape, or no floats.
    """
    declared = [o for m in mods if isinstance(m, ScoreMod) for o in m.operands(tile.sizes)]
    if any(isinstance(m, Declared) for m in mods):
        _check_integers(declared)
    operands = (Operand("scale", scale.astype(jnp.float32), ""), *(_wide(o) for o in declared))

    def function(dots: Array, index: Index, parts: Iterator[Array]) -> Array:
        score = dots * next(parts)
        for mod in mods:
            if isinstance(mod, ScoreMod):
                new = mod.apply(score, index, *(next(parts) for _ in mod.operands(tile.sizes)))
            else:
                new = mod(score, *index)
            score = check_scores(new, score)
        return score

    dots = jax.ShapeDtypeStruct(tile.shape, jnp.float32)
    return _lower(function, operands, tile, (dots,), origin, inside)


def lower_mask(
    mask: Mask, tile: Tile, origin: Array | None = None, *, inside: bool = False
) -> TileProgram:
    """Lowers a mask to a program `index -> bool` that broadcasts against a tile of scores.

    Args:
      mask: the mask.
      tile: the tile.
      origin: as in `lower_scores`.
      inside: likewise.

    Returns:
      The program.

    Raises:
      NotImplementedError: if a `Where` does what a kernel cannot do.
    """
    for leaf in walk(mask):
        if isinstance(leaf, Where):
            _check_integers(leaf.operands())
    operands = tuple(_wide(o) for o in mask.operands())

    def function(index: Index, parts: Iterator[Array]) -> Array:
        return evaluate(mask, index, lambda _: next(parts))

    return _lower(function, operands, tile, (), origin, inside)


def _wide(operand: Operand) -> Operand:
    """Returns an operand of 32 bits, or of bools: kernels have no arithmetic on less."""
    array = jnp.asarray(operand.array)
    if array.dtype == jnp.bool_:
        return dataclasses.replace(operand, array=array)
    if jnp.issubdtype(array.dtype, jnp.integer):
        wide = jnp.uint32 if array.dtype == jnp.uint32 else jnp.int32
        return dataclasses.replace(operand, array=array.astype(wide))
    return dataclasses.replace(operand, array=widen(array, jnp.float32))


def _check_integers(operands: Sequence[Operand]) -> None:
    for operand in operands:
        dtype = operand.array.dtype
        if jnp.issubdtype(dtype, jnp.integer) and dtype not in (jnp.int32, jnp.uint32):
            raise NotImplementedError(
                f"{operand.name} is of dtype {dtype}, and a kernel computes with 32 bits: your "
                "function could see other results where integers wrap. Pass "
                f"{operand.name}.astype('int32'), or implementation='blockwise'."
            )


def _lower(
    function: Callable[..., Array],
    operands: tuple[Operand, ...],
    tile: Tile,
    tiles: tuple[jax.ShapeDtypeStruct, ...],
    origin: Array | None,
    inside: bool,
) -> TileProgram:
    def flat(*args: Array) -> Array:
        inputs, positions = args[: len(tiles)], Index(*args[len(tiles) : len(tiles) + 4])
        if inside:
            positions = positions.moved(origin)
        return function(*inputs, positions, iter(args[len(tiles) + 4 :]))

    index = (
        *(jax.ShapeDtypeStruct((), jnp.int32),) * 2,
        *(jax.ShapeDtypeStruct(tile.span(a), jnp.int32) for a in "TS"),
    )
    parts = (jax.ShapeDtypeStruct(part_shape(o, tile), o.array.dtype) for o in operands)
    closed = trace(flat, *tiles, *index, *parts)
    program, lookups, scalars = split(closed, len(tiles), tile.shape, tile.rows)
    found = (
        _wide(_look_up(lookup, tile, n, None if inside else origin))
        for n, lookup in enumerate(lookups)
    )
    captured = (Operand(f"captured number {n}", x, "") for n, x in enumerate(scalars))
    every = (*operands, *found, *(_wide(o) for o in captured))
    return TileProgram(program, every, all(lookup.linear for lookup in lookups))


def _look_up(lookup: Lookup, tile: Tile, n: int, origin: Array | None) -> Operand:
    """Computes a value for all positions: an operand over the axes that it depends on."""
    size = {"T": -(-tile.T // tile.block_q), "S": -(-tile.S // tile.block_k)} | {
        "B": tile.B,
        "N": tile.N,
    }
    block = {"T": tile.block_q, "S": tile.block_k}

    def first(b: Array, h: Array, i: Array, j: Array) -> Array:
        index = tile.index(b, h, i * tile.block_q, j * tile.block_k)
        return lookup.compute(*index.moved(origin))

    at: Callable[..., Array] = first
    for letter in reversed(lookup.letters):
        axes = tuple(0 if a == letter else None for a in AXES)
        at = jax.vmap(at, in_axes=axes)
    zero = jnp.zeros((), jnp.int32)
    numbers = (jnp.arange(size[a], dtype=jnp.int32) if a in lookup.letters else zero for a in AXES)
    values = at(*numbers)
    along = lookup.letters[-1:]
    if along in block:
        values = values.reshape(*values.shape[: len(lookup.letters) - 1], -1)
        values = values[..., : tile.sizes[along]]
    else:
        values = values.reshape([size[a] for a in lookup.letters])
    return Operand(f"captured array {n}", values, lookup.letters)
