"""How a Mosaic GPU kernel receives the arrays of a `TileProgram`, and runs it.

The kernel has whole tiles and scalars, and nothing between them: what a program computes on a
column or a row of a tile, it computes on the tile. Arrays are read where they lie: global memory.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun
from jaxtyping import Array

from attnjax.operands import Operand
from attnjax.ops.kernels import mosaic_gpu as mgpu
from attnjax.ops.kernels.hoisting import trace
from attnjax.ops.kernels.programs import Part, Tile, TileProgram, letters, part

_SHAPING = frozenset({"broadcast_in_dim", "copy", "reshape", "squeeze", "stop_gradient"})
# fmt: off
_KNOWN = _SHAPING | frozenset({
    "abs", "add", "add_any", "and", "clamp", "convert_element_type", "cos", "custom_jvp_call",
    "div", "eq", "erf", "exp", "exp2", "ge", "gt", "integer_pow", "iota", "le", "log", "logistic",
    "lt", "max", "min", "mul", "ne", "neg", "not", "one_minus_square", "or", "rem", "rsqrt",
    "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin",
    "sqrt", "square", "sub", "tanh", "xor",
})
# fmt: on


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tile is.

    Attributes:
      b, h: batch element and query head.
      q, k: first query and first key.
      numbers: 0, 1, 2 and so on in global memory. Positions along rows are read from there: what
        the compiler computes for them before the loop over blocks, it keeps in scarce registers.
    """

    b: Array
    h: Array
    q: Array
    k: Array
    numbers: Any


def check(program: TileProgram, what: str) -> None:
    """Refuses programs that a kernel cannot run.

    Args:
      program: the program.
      what: what it is, for the message.

    Raises:
      NotImplementedError: with the reason and a remedy.
    """
    for operand in program.operands:
        if part(operand) is Part.RELATIVE:
            raise NotImplementedError(
                f"{operand.name} varies with the relative position, which a Mosaic GPU kernel "
                "cannot look up. Use implementation='blockwise', or an attnjax.bias."
            )
    unknown = sorted(set(_primitives(program.closed.jaxpr)) - _KNOWN)
    if unknown:
        raise NotImplementedError(
            f"the {what} needs {', '.join(unknown)}, which Mosaic GPU cannot compute on a tile. "
            "Write it in other functions, or use implementation='blockwise'."
        )


def _primitives(jaxpr: Any) -> list[str]:
    found = []
    for eqn in jaxpr.eqns:
        found.append(eqn.primitive.name)
        if eqn.primitive.name == "custom_jvp_call":
            found += _primitives(eqn.params["call_jaxpr"].jaxpr)
    return found


def with_pull(program: TileProgram, tile: Tile) -> TileProgram:
    """Returns a program `(dots, d_scores) -> (scores, d_dots)` from one `dots -> scores`."""
    block = jax.ShapeDtypeStruct(tile.shape, jnp.float32)

    def both(dots: Array, d_scores: Array, *rest: Array) -> Any:
        run = jaxpr_as_fun(program.closed)
        scores, pull = jax.vjp(lambda x: run(x, *rest)[0], dots)
        return scores, pull(d_scores)[0]

    rest = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in program.closed.in_avals[1:])
    return dataclasses.replace(program, closed=trace(both, block, block, *rest))


def lay_out(operand: Operand, tile: Tile, blocks: tuple[int, int]) -> Array:
    """Returns an operand's array as a kernel reads it: `[B|1, N|1, ...]`, in whole blocks.

    Args:
      operand: the operand.
      tile: the tile.
      blocks: queries and keys of a block.

    Returns:
      The array.
    """
    found = letters(operand)
    x = jnp.asarray(operand.array)
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.int32)
    lead = [tile.sizes[a] if a in found else 1 for a in "BN"]
    multiple = dict(zip("TS", blocks, strict=True))
    along = [a for a in "TS" if a in found]
    x = x.reshape(*lead, *(tile.sizes[a] for a in along))
    if part(operand) is Part.TILE and tile.rows == "S":
        x, along = x.swapaxes(2, 3), along[::-1]
    widths = [(0, 0), (0, 0), *((0, -tile.sizes[a] % multiple[a]) for a in along)]
    return jnp.pad(x, widths)


def _read(operand: Operand, ref: Any, tile: Tile, place: Place) -> Array:
    """Reads an operand's part: a number, or a whole tile."""
    found = letters(operand)
    b, h = (at if a in found else 0 for a, at in (("B", place.b), ("N", place.h)))
    spans = {"T": jax.ds(place.q, tile.block_q), "S": jax.ds(place.k, tile.block_k)}
    match part(operand):
        case Part.SCALAR:
            x = ref[b, h]
        case Part.TILE:
            rows, columns = "TS" if tile.rows == "T" else "ST"
            x = mgpu.load(ref.at[b, h, spans[rows], spans[columns]], mgpu.TILE)
        case _:
            letter = "T" if part(operand) is Part.ALONG_T else "S"
            axis = 0 if letter == tile.rows else 1
            layout = mgpu.ROWS if axis == 0 else mgpu.COLUMNS
            x = mgpu.across(mgpu.load(ref.at[b, h, spans[letter]], layout), tile.shape, axis)
    return x != 0 if operand.array.dtype == jnp.bool_ else x


def run(
    program: TileProgram,
    tiles: Sequence[Array],
    refs: Sequence[Any],
    tile: Tile,
    place: Place,
    known: Mapping[int, Array] = MappingProxyType({}),
) -> list[Array]:
    """Runs a program on one tile.

    Args:
      program: the program, whose arrays may be shapes only.
      tiles: its tiles.
      refs: its arrays in global memory, as `lay_out` returns them.
      tile: the tile.
      place: where it is.
      known: operands that are not read but given, by number.

    Returns:
      Its results, each a tile or a scalar.
    """

    def index(letter: str) -> Callable[[], Array]:
        return lambda: positions(letter, tile, place)

    def reader(n: int, operand: Operand, ref: Any) -> Callable[[], Array]:
        return lambda: known[n] if n in known else _read(operand, ref, tile, place)

    inputs = [
        *((lambda x=x: x) for x in tiles),
        lambda: place.b,
        lambda: place.h,
        index("T"),
        index("S"),
        *(reader(n, *x) for n, x in enumerate(zip(program.operands, refs, strict=True))),
    ]
    return _evaluate(program.closed, inputs, tile.shape)


def positions(letter: str, tile: Tile, place: Place) -> Array:
    """Returns the positions of queries (`T`) or keys (`S`) all over a tile."""
    first = place.q if letter == "T" else place.k
    if letter == tile.rows:
        return mgpu.positions(first, tile.shape, 0)
    columns = place.numbers.at[jax.ds(first, tile.shape[1])]
    return mgpu.across(mgpu.load(columns, mgpu.COLUMNS), tile.shape, 1)


def _evaluate(
    closed: ClosedJaxpr, inputs: Sequence[Callable[[], Array]], shape: tuple[int, int]
) -> list[Array]:
    """Evaluates a program on scalars and whole tiles; what it does not use is not read."""
    known: dict[Any, Any] = {}
    for var, const in zip(closed.jaxpr.constvars, closed.consts, strict=True):
        known[var] = const
    pending = dict(zip(closed.jaxpr.invars, inputs, strict=True))

    def value(var: Any) -> Any:
        if isinstance(var, Literal):
            # Not jnp.asarray: a kernel must not capture arrays.
            return np.asarray(var.val, getattr(var.aval, "dtype", None))[()]
        if var not in known:
            known[var] = pending[var]()
        return known[var]

    for eqn in closed.jaxpr.eqns:
        name = eqn.primitive.name
        if name == "iota":
            axis = eqn.params["dimension"]
            positions = mgpu.positions(jnp.int32(0), shape, axis)
            known[eqn.outvars[0]] = positions.astype(eqn.params["dtype"])
            continue
        given = [value(v) for v in eqn.invars]
        if name in _SHAPING:
            known[eqn.outvars[0]] = given[0]
        elif name == "custom_jvp_call":
            inner = [lambda x=x: x for x in given]
            known |= zip(
                eqn.outvars, _evaluate(eqn.params["call_jaxpr"], inner, shape), strict=True
            )
        elif name in _SPECIAL:
            known[eqn.outvars[0]] = _SPECIAL[name](*_alike(given), **eqn.params)
        else:
            known[eqn.outvars[0]] = eqn.primitive.bind(*_alike(given), **eqn.params)
    return [value(v) for v in closed.jaxpr.outvars]


def _tanh(x: Array, **_: Any) -> Array:
    # The GPU's own tanh has 11 bits.
    return 2 * jax.lax.logistic(2 * x) - 1


def _integer_pow(x: Array, *, y: int) -> Array:
    result = functools.reduce(jax.lax.mul, [x] * abs(y)) if y else jnp.ones_like(x)
    return result if y >= 0 else 1 / result


def _sqrt(x: Array, **_: Any) -> Array:
    return jnp.where(x == 0, x, x * jax.lax.rsqrt(x))


# What some version of Mosaic GPU lacks, or has in a form that is not enough.
_SPECIAL: dict[str, Callable[..., Array]] = {
    "add_any": jax.lax.add,
    "integer_pow": _integer_pow,
    "one_minus_square": lambda x, **_: 1 - x * x,
    "sqrt": _sqrt,
    "tanh": _tanh,
}


def _alike(values: Sequence[Array]) -> list[Array]:
    """Returns operands of an elementwise operation in one shape."""
    shape = max((x.shape for x in values), key=len)
    return [jnp.broadcast_to(x, shape) for x in values]
