"""Splits a traced tile function into what a kernel can run and what must be looked up before it.

A kernel cannot index an array by position. A lookup that depends on the batch element, the head and
the query alone, or on the key in the query's place, is computed before the kernel for every such
position; the kernel then reads its block of the result. So a function may index what it closes
over, as in `document[q_idx] == document[k_idx]`, and gradients reach the arrays it captured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun
from jaxtyping import Array

# What every kernel language has for blocks of 32-bit numbers, elementwise.
# fmt: off
_ELEMENTWISE = frozenset({
    "abs", "add", "and", "broadcast_in_dim", "cbrt", "ceil", "clamp", "convert_element_type",
    "copy", "cos", "div", "eq", "erf", "exp", "exp2", "expm1", "floor", "ge", "gt",
    "integer_pow", "iota", "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min",
    "mul", "ne", "neg", "not", "or", "pow", "rem", "reshape", "round", "rsqrt", "select_n",
    "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sqrt",
    "square", "squeeze", "stop_gradient", "sub", "tanh", "xor",
})
# fmt: on
_SHAPING = frozenset({"broadcast_in_dim", "copy", "reshape", "squeeze"})


@dataclasses.dataclass(frozen=True)
class Lookup:
    """A value that is computed before the kernel.

    Attributes:
      letters: what it depends on, among B, N, T and S.
      compute: `compute(b, h, q_idx, k_idx)` for one tile, with the tile function's own shapes.
      shape: `()` or the shape of the block that the kernel reads.
      dtype: its dtype.
      linear: whether its derivative by the captured arrays is the same wherever they are.
    """

    letters: str
    compute: Callable[..., Array]
    shape: tuple[int, ...]
    dtype: jnp.dtype
    linear: bool


class _Value:
    """What is known of a value of the traced function while it is split."""

    def __init__(self, letters: frozenset[str], *, kernel: bool) -> None:
        self.letters = letters
        self.kernel = kernel


def split(
    closed: ClosedJaxpr, index_at: int, tile: tuple[int, int], rows: str
) -> tuple[ClosedJaxpr, tuple[Lookup, ...], tuple[Array, ...]]:
    """Splits a traced function of one tile.

    Args:
      closed: the function; its inputs are tiles and blocks of operands but for four, its index.
      index_at: where the index begins among the inputs: b and h (scalars), q_idx and k_idx.
      tile: the shape of a tile.
      rows: `T` if queries are its rows, `S` if keys are.

    Returns:
      The part for the kernel, whose inputs are those of the function, then the lookups, then the
      captured scalars; the lookups; and the scalars.

    Raises:
      NotImplementedError: if the function does what a kernel cannot do, with a remedy.
    """
    jaxpr = closed.jaxpr
    known: dict[Any, _Value] = {}
    letters = dict(zip(jaxpr.invars[index_at : index_at + 4], "BNTS", strict=True))
    for var in jaxpr.invars:
        # X stands for what varies over the whole tile, or is known in the kernel alone.
        known[var] = _Value(frozenset(letters.get(var, "X")), kernel=True)
    scalars = {}
    for var, const in zip(jaxpr.constvars, closed.consts, strict=True):
        known[var] = _Value(frozenset(), kernel=not np.shape(const))
        if not np.shape(const):
            scalars[var] = const

    inside: list[Any] = []
    wanted: dict[Any, None] = {}
    for eqn in jaxpr.eqns:
        inputs = [v for v in eqn.invars if not isinstance(v, Literal)]
        depends = frozenset().union(*(known[v].letters for v in inputs))
        fits = all(known[v].kernel or _block(v, known[v], tile, rows) for v in inputs)
        if eqn.primitive.name in _SHAPING and not depends & {"T", "S", "X"}:
            # A number gets the shape in which it is used before the kernel, not in it.
            fits = all(known[v].kernel for v in inputs)
        kernel = fits and _runs_in_kernel(eqn, tile)
        if not kernel and ("X" in depends or {"T", "S"} <= depends):
            raise NotImplementedError(_reason(jaxpr, eqn.primitive.name))
        if kernel:
            inside.append(eqn)
            wanted |= {v: None for v in inputs if not known[v].kernel}
        for var in eqn.outvars:
            known[var] = _Value(depends, kernel=kernel)
    for var in jaxpr.outvars:
        if not isinstance(var, Literal) and not known[var].kernel:
            if not _block(var, known[var], tile, rows):
                raise NotImplementedError(_reason(jaxpr, "its result is no tile"))
            wanted[var] = None

    lookups = tuple(
        Lookup(
            "".join(a for a in "BNTS" if a in known[v].letters),
            _before(closed, v, index_at),
            tuple(v.aval.shape),
            v.aval.dtype,
            _is_linear(closed, v, index_at),
        )
        for v in wanted
    )

    inner = _program(jaxpr, inside, (*jaxpr.invars, *wanted, *scalars), jaxpr.outvars)
    return inner, lookups, tuple(jnp.asarray(x) for x in scalars.values())


def trace(function: Callable[..., Array], *shapes: jax.ShapeDtypeStruct) -> ClosedJaxpr:
    """Traces a function, with the jitted functions that it calls written out."""
    with jax.disable_jit():
        return jax.make_jaxpr(function)(*shapes)


def _program(
    jaxpr: Any, eqns: Sequence[Any], invars: Sequence[Any], outvars: Sequence[Any]
) -> ClosedJaxpr:
    """Returns a program of those of some equations that its results need."""
    needed = _needed(eqns, outvars)
    kept = [eqn for eqn in eqns if needed & set(eqn.outvars)]
    changed = jaxpr.replace(
        constvars=[],
        invars=list(invars),
        outvars=list(outvars),
        eqns=kept,
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    return ClosedJaxpr(changed, [])


def _needed(eqns: Sequence[Any], outvars: Sequence[Any]) -> set[Any]:
    """Returns the variables that some results depend on, and the results."""
    needed = {v for v in outvars if not isinstance(v, Literal)}
    for eqn in reversed(eqns):
        if needed & set(eqn.outvars):
            needed |= {v for v in eqn.invars if not isinstance(v, Literal)}
    return needed


def _alone(closed: ClosedJaxpr, var: Any, index_at: int) -> tuple[Callable, Sequence[Any]]:
    """Returns the function of captured arrays and index that computes one value, and the index."""
    jaxpr = closed.jaxpr
    index = jaxpr.invars[index_at : index_at + 4]
    return jaxpr_as_fun(_program(jaxpr, jaxpr.eqns, (*jaxpr.constvars, *index), [var])), index


def _before(closed: ClosedJaxpr, var: Any, index_at: int) -> Callable[..., Array]:
    """Returns the function of the index that computes one value."""
    run, _ = _alone(closed, var, index_at)

    def compute(*index: Array) -> Array:
        (result,) = run(*closed.consts, *index)
        return result

    return compute


def _is_linear(closed: ClosedJaxpr, var: Any, index_at: int) -> bool:
    """Returns whether a value's derivative by captured floats needs none of them."""
    run, index = _alone(closed, var, index_at)
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.constvars]
    smooth = [n for n, x in enumerate(shapes) if jnp.issubdtype(x.dtype, jnp.inexact)]
    moving = [shapes[n] for n in smooth]

    def derivative(at: list[Array], along: list[Array], others: list[Array], *index: Array) -> Any:
        def value(at: list[Array]) -> Array:
            consts = list(others)
            for n, x in zip(smooth, at, strict=True):
                consts[n] = x
            return run(*consts, *index)[0]

        return jax.jvp(value, (at,), (along,))[1]

    if not smooth or not jnp.issubdtype(var.aval.dtype, jnp.inexact):
        return True
    places = (jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in index)
    found = jax.make_jaxpr(derivative)(moving, moving, shapes, *places).jaxpr
    needed = _needed(found.eqns, found.outvars)
    return not needed & set(found.invars[: len(moving)])


def _block(var: Any, value: _Value, tile: tuple[int, int], rows: str) -> bool:
    """Returns whether a value computed before the kernel can be handed to it block by block."""
    along = {"T": rows == "T", "S": rows == "S"}
    varying = [a for a in "TS" if a in value.letters]
    if not varying:
        return var.aval.shape in ((), (1, 1))
    want = (tile[0], 1) if along[varying[0]] else (1, tile[1])
    return var.aval.shape == want


def _runs_in_kernel(eqn: Any, tile: tuple[int, int]) -> bool:
    if eqn.primitive.name == "custom_jvp_call":
        inner = eqn.params["call_jaxpr"]
        if not all(_runs_in_kernel(e, tile) for e in inner.eqns):
            return False
    elif eqn.primitive.name not in _ELEMENTWISE:
        return False
    shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars)]
    return all(
        not s or (len(s) == 2 and s[0] in (1, tile[0]) and s[1] in (1, tile[1])) for s in shapes
    )


def _reason(jaxpr: Any, what: str) -> str:
    if any(eqn.primitive.name in ("gather", "dynamic_slice") for eqn in jaxpr.eqns):
        return (
            "a function of yours looks an array up by the score, or by the query's and the key's "
            "position together, and a kernel cannot index an array by position. For a table of "
            "relative positions pass attnjax.relative_bias, for an array over queries and keys "
            "attnjax.bias or attnjax.Dense; or implementation='blockwise'."
        )
    return (
        f"a function of yours does what a kernel cannot do on a tile ({what}). Write it "
        "elementwise in the score and the positions, declare its arrays (attnjax.score_mod, "
        "attnjax.Where), or use implementation='blockwise'."
    )
