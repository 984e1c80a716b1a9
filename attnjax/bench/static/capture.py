"""Finds the Pallas kernels of a function, and what they are given in SMEM."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core


@dataclasses.dataclass(frozen=True)
class Call:
    """A Pallas kernel of a function.

    Attributes:
      name: the kernel's name, if it was given one.
      operands: shape of each input, as in `s32[16,16]`.
      scalars: contents of the leading inputs, those prefetched to SMEM.
      grid: the steps along each axis of its grid.
    """

    name: str | None
    operands: tuple[str, ...]
    scalars: tuple[np.ndarray, ...]
    grid: tuple[int, ...]


def calls(function: Callable[..., Any], *arguments: Any) -> list[Call]:
    """Returns the kernels of a function, with the scalars that they would get.

    All but the kernels is computed; kernels return zeros. So the arguments must hold whatever the
    block schedules depend on; all else may be zeros.

    Args:
      function: what to look into.
      *arguments: its arguments, arrays.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    found: list[Call] = []
    _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), found)
    return found


def _evaluate(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any], found: list[Call]) -> Any:
    values: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))
    for equation in jaxpr.eqns:
        operands = [read(x) for x in equation.invars]
        inner = _inner(equation)
        if equation.primitive.name == "pallas_call":
            found.append(_call(equation, operands))
            outputs = [np.zeros(x.aval.shape, x.aval.dtype) for x in equation.outvars]
        elif inner is not None:
            outputs = _evaluate(inner.jaxpr, inner.consts, operands, found)
        else:
            bound = equation.primitive.bind(*operands, **equation.params)
            outputs = bound if equation.primitive.multiple_results else [bound]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _inner(equation: Any) -> Any:
    """Returns the program of an operation that only calls one, or None."""
    if equation.primitive.name in ("scan", "while", "cond", "pallas_call"):
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if (inner := equation.params.get(name)) is not None:
            return inner if hasattr(inner, "consts") else core.ClosedJaxpr(inner, ())
    return None


def _call(equation: Any, operands: Sequence[Any]) -> Call:
    mapping = equation.params["grid_mapping"]
    start = mapping.num_dynamic_grid_bounds
    return Call(
        name=equation.params["name"],
        operands=tuple(_shape(x.aval) for x in equation.invars),
        scalars=tuple(np.asarray(x) for x in operands[: start + mapping.num_index_operands]),
        grid=tuple(n if isinstance(n, int) else -1 for n in mapping.grid),
    )


_SHORT = {"int": "s", "uint": "u", "float": "f", "bool": "pred", "bfloat": "bf"}


def _shape(aval: Any) -> str:
    name = np.dtype(aval.dtype).name
    kind = name.rstrip("0123456789")
    return f"{_SHORT.get(kind, kind)}{name[len(kind) :]}[{','.join(map(str, aval.shape))}]"
