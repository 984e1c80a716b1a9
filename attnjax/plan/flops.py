"""Counts the floating-point operations of a traced function: matrix products, kernels included."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jax.extend import core


@dataclasses.dataclass
class Flops:
    """Floating-point operations of matrix products in one call of a function, on all devices.

    Attributes:
      kernels: those in Pallas kernels: grid steps times the products of a block.
      others: all others.
      notes: what was not known when it was counted.
    """

    kernels: int = 0
    others: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def total(self) -> int:
        """All of them."""
        return self.kernels + self.others


def count(jaxpr: Any) -> Flops:
    """Counts the operations of a jaxpr.

    What loops repeat is counted as often as it runs, what `jax.checkpoint` recomputes again, and of
    a branch the larger side. Inside `jax.shard_map` every device's operations are counted. What a
    device computes that another one computes too is not told apart outside of it: GSPMD decides
    that later.

    Args:
      jaxpr: a `ClosedJaxpr` or a `Jaxpr`.

    Returns:
      The counts.
    """
    found = Flops()
    _visit(getattr(jaxpr, "jaxpr", jaxpr), 1, found)
    return found


def _visit(jaxpr: Any, times: int, found: Flops) -> None:
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            found.others += times * _dot(equation)
        elif name == "conv_general_dilated":
            found.others += times * _convolution(equation)
        elif name == "pallas_call":
            found.kernels += times * _kernel(equation, found)
        elif name == "cond":
            _visit_largest(params["branches"], times, found)
        elif name == "while":
            _note(found, "a loop whose length is decided when it runs is counted once")
            _visit(params["body_jaxpr"].jaxpr, times, found)
        else:
            repeated = times * params["length"] if name == "scan" else times
            if name == "shard_map":
                mesh, manual = params["mesh"], params["newly_manual_axes"]
                repeated = times * math.prod(mesh.shape[axis] for axis in manual)
            for inner in _inner(params):
                _visit(inner, repeated, found)


def _visit_largest(branches: Any, times: int, found: Flops) -> None:
    counts = [count(branch) for branch in branches]
    largest = max(counts, key=lambda c: c.total)
    found.kernels += times * largest.kernels
    found.others += times * largest.others
    for note in largest.notes:
        _note(found, note)
    if any(c.kernels != largest.kernels for c in counts):
        _note(found, "kernels that a device may skip, by a branch, are counted as if it never did")


def _inner(params: dict[str, Any]) -> list[Any]:
    """Returns the jaxprs among an operation's parameters."""
    every = [
        x for value in params.values() for x in (value if isinstance(value, tuple) else (value,))
    ]
    # From jax 0.12 on the two are one class.
    found = [x for x in every if isinstance(x, core.ClosedJaxpr | core.Jaxpr)]
    return [getattr(x, "jaxpr", x) for x in found]


def _dot(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, result = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(result) * math.prod(left[n] for n in contracted)


def _convolution(equation: Any) -> int:
    kernel, result = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(result) * math.prod(kernel) // outputs


def _kernel(equation: Any, found: Flops) -> int:
    """Returns the operations of a Pallas kernel.

    A step of ours runs one of several bodies, by the kind of its block; they have the same
    products, and the largest is counted once.
    """
    mapping = equation.params["grid_mapping"]
    steps = math.prod(n for n in mapping.grid if isinstance(n, int))
    if any(not isinstance(n, int) for n in mapping.grid):
        # Ours list their steps in what comes first behind the grid's own bounds.
        steps *= equation.invars[mapping.num_dynamic_grid_bounds].aval.shape[-1]
        _note(found, "a kernel that decides when it runs which blocks to visit is counted for all")
    return steps * _block(equation.params["jaxpr"])


def _block(jaxpr: Any) -> int:
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total, alternatives = 0, [0]
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _dot(equation)
        elif name == "cond":
            alternatives += [_block(branch) for branch in params["branches"]]
        else:
            repeated = params["length"] if name == "scan" else 1
            total += repeated * sum(_block(inner) for inner in _inner(params))
    return total + max(alternatives)


def _note(found: Flops, note: str) -> None:
    if note not in found.notes:
        found.notes.append(note)
