"""A decoding call taken apart: its arrays, and its program without them.

A derivative rule may not close over tracers, so every array of a call becomes an argument.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from attnjax.ops.decode.layout import Contiguous
from attnjax.ops.decode.lowering import lower_mask, lower_scores
from attnjax.ops.decode.problem import DecodeProblem
from attnjax.ops.lowering import Program


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Arguments:
    """All arrays of a call.

    Attributes:
      q, k, v, k_scale, v_scale, length, layout, scale, sinks: as in `DecodeProblem`.
      scores: arrays of the score_mods.
      mask: arrays of the mask.
    """

    q: Array
    k: Array
    v: Array
    k_scale: Array | None
    v_scale: Array | None
    length: Array
    layout: Contiguous
    scale: Array
    sinks: Array | None
    scores: tuple[Array, ...]
    mask: tuple[Array, ...]


@dataclasses.dataclass(frozen=True)
class Call:
    """A call with its arrays.

    Attributes:
      arguments: its arrays.
      scores: the score_mods.
      mask: the mask.
      precision: matmul precision, or None.
      stats: whether statistics are wanted.
    """

    arguments: Arguments
    scores: Program
    mask: Program
    precision: Any
    stats: bool


@dataclasses.dataclass(frozen=True)
class Plain:
    """A call without its arrays.

    Attributes:
      scores: the score_mods, without arrays.
      mask: the mask, without arrays.
      precision: matmul precision, or None.
      stats: whether statistics are wanted.
      structure: of the `Arguments` that were flattened.
    """

    scores: Program
    mask: Program
    precision: Any
    stats: bool
    structure: Any

    def bind(self, flat: Sequence[Array]) -> Call:
        """Returns the call over some arrays."""
        arguments: Arguments = jax.tree.unflatten(self.structure, flat)
        return Call(
            arguments,
            self.scores.with_arrays(arguments.scores),
            self.mask.with_arrays(arguments.mask),
            self.precision,
            self.stats,
        )


def prepare(problem: DecodeProblem) -> tuple[Plain, list[Array]]:
    """Takes a call apart.

    Args:
      problem: the call.

    Returns:
      The call without its arrays, and those, flat.

    Raises:
      ValueError: if a score_mod returns scores of another shape, or no floats.
    """
    scores, mask = lower_scores(problem), lower_mask(problem)
    arguments = Arguments(
        problem.q,
        problem.k,
        problem.v,
        problem.k_scale,
        problem.v_scale,
        problem.length,
        problem.layout,
        problem.scale,
        problem.sinks,
        scores.arrays,
        mask.arrays,
    )
    flat, structure = jax.tree.flatten(arguments)
    return Plain(scores.bare(), mask.bare(), problem.precision, problem.stats, structure), flat


def derived(
    fast: Callable[..., tuple[Array, ...]], smooth: Callable[..., tuple[Array, ...]]
) -> Callable[..., tuple[Array, ...]]:
    """Gives an operation the derivatives of another form of it.

    Args:
      fast: `fast(*flat) -> outputs`, whose own derivatives are wrong or missing.
      smooth: the same in plain JAX, which JAX can differentiate.

    Returns:
      `fast`, with the derivatives of `smooth`.
    """

    @jax.custom_jvp
    def op(*flat: Array) -> tuple[Array, ...]:
        return fast(*flat)

    def rule(primals: Sequence[Array], tangents: Sequence[Any]) -> tuple:
        moving = [n for n, t in enumerate(tangents) if not isinstance(t, SymbolicZero)]

        def some(*values: Array) -> tuple[Array, ...]:
            flat = list(primals)
            for n, x in zip(moving, values, strict=True):
                flat[n] = x
            return smooth(*flat)

        moved = tuple(tangents[n] for n in moving)
        _, changes = jax.jvp(some, tuple(primals[n] for n in moving), moved)
        return fast(*primals), changes

    op.defjvp(rule, symbolic_zeros=True)
    return op
