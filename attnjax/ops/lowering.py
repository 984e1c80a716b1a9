"""Masks and score_mods as programs on tiles: traced once, with every captured array an argument.

A derivative rule may not close over tracers and a kernel may not close over arrays, so a score_mod
or mask is traced on one tile; the arrays that it captured become the program's constants.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array

from attnjax.masks import Mask, evaluate
from attnjax.numerics import widen
from attnjax.operands import Operand
from attnjax.ops.tiles import Origin, Tiling
from attnjax.scores import ScoreFn, ScoreMod, check_scores
from attnjax.typing import Index


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of one tile, without arrays of its own.

    Attributes:
      jaxpr: the function of the tile's inputs, its index and the parts of its operands, with its
        constants left open.
      operands: the arrays that it looks up by position.
      constants: the arrays that it captured.
      dtype: narrower floats among the parts of operands are widened to it, so that cotangents of
        tiles are not rounded before they are added up; None leaves them.
    """

    jaxpr: Any
    operands: tuple[Operand, ...]
    constants: tuple[Array, ...]
    dtype: jnp.dtype | None

    @property
    def arrays(self) -> tuple[Array, ...]:
        """All its arrays, in the order in which `with_arrays` takes them back."""
        return (*(jnp.asarray(o.array) for o in self.operands), *self.constants)

    def bare(self) -> Program:
        """Returns the program with shapes in the place of its arrays."""
        operands = tuple(dataclasses.replace(o, array=_shape_of(o.array)) for o in self.operands)
        return dataclasses.replace(self, operands=operands, constants=())

    def with_arrays(self, arrays: Sequence[Array]) -> Program:
        """Returns the same program over other arrays of the same shapes."""
        count = len(self.operands)
        operands = tuple(
            dataclasses.replace(o, array=x)
            for o, x in zip(self.operands, arrays[:count], strict=True)
        )
        return dataclasses.replace(self, operands=operands, constants=tuple(arrays[count:]))

    def inputs(self, tiling: Tiling, at: Origin) -> tuple[Array, ...]:
        """Returns what a tile needs of `arrays`: parts of the operands, and the constants whole."""
        parts = (_cut(o, tiling, at, self.dtype) for o in self.operands)
        return (*parts, *self.constants)

    def add(
        self,
        totals: Sequence[Array | None],
        parts: Sequence[Array | None],
        tiling: Tiling,
        at: Origin,
    ) -> tuple[Array | None, ...]:
        """Adds cotangents of a tile's `inputs` to totals shaped like `arrays`; None stays None."""
        count = len(self.operands)
        return tuple(
            None
            if total is None or part is None
            else tiling.add(total, part, self.operands[n], at)
            if n < count
            else total + part
            for n, (total, part) in enumerate(zip(totals, parts, strict=True))
        )

    def __call__(self, *tile: Array, inputs: Sequence[Array]) -> Array:
        """Runs on a tile, with what `inputs` returned for it."""
        count = len(self.operands)
        closed = ClosedJaxpr(self.jaxpr, list(inputs[count:]))
        (result,) = jaxpr_as_fun(closed)(*tile, *inputs[:count])
        return result


def _cut(operand: Operand, tiling: Tiling, at: Origin, dtype: jnp.dtype | None) -> Array:
    part = tiling.cut(operand, at)
    return part if dtype is None else widen(part, dtype)


def _shape_of(array: Array) -> Any:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def lower_scores(
    mods: tuple[ScoreMod | ScoreFn, ...], scale: Array, tiling: Tiling, dtype: jnp.dtype
) -> Program:
    """Lowers the scale and the score_mods to a program `(dot products, index) -> scores`.

    The scale is the first of the program's inputs.

    Args:
      mods: applied from left to right.
      scale: factor of the dot products.
      tiling: the tiles.
      dtype: the dtype of scores.

    Returns:
      The program.

    Raises:
      ValueError: if a score_mod returns scores of another shape, or no floats.
    """
    sizes = {"B": tiling.B, "T": tiling.T, "S": tiling.S, "N": tiling.N}
    operands = (
        Operand("scale", scale.astype(dtype), ""),
        *(o for m in mods if isinstance(m, ScoreMod) for o in m.operands(sizes)),
    )

    def function(dots: Array, index: Index, parts: Iterator[Array]) -> Array:
        score = dots * next(parts)
        for mod in mods:
            if isinstance(mod, ScoreMod):
                new = mod.apply(score, index, *(next(parts) for _ in mod.operands(sizes)))
            else:
                new = mod(score, *index)
            score = check_scores(new, score)
        return score

    dots = jax.ShapeDtypeStruct(tiling.score_shape, dtype)
    return _lower(function, operands, tiling, (dots,), dtype)


def lower_mask(mask: Mask, tiling: Tiling) -> Program:
    """Lowers a mask to a program `index -> bool` that broadcasts against a tile of scores."""

    def function(index: Index, parts: Iterator[Array]) -> Array:
        return evaluate(mask, index, lambda _: next(parts))

    return _lower(function, mask.operands(), tiling, (), None)


def _lower(
    function: Callable[..., Array],
    operands: tuple[Operand, ...],
    tiling: Tiling,
    tile: tuple[jax.ShapeDtypeStruct, ...],
    dtype: jnp.dtype | None,
) -> Program:
    def flat(*args: Array) -> Array:
        inputs, positions = args[: len(tile)], Index(*args[len(tile) : len(tile) + 4])
        parts = (tiling.spread(o, x) for o, x in zip(operands, args[len(tile) + 4 :], strict=True))
        return function(*inputs, positions, parts)

    first = Origin(*(jnp.zeros((), jnp.int32),) * 4)
    index = jax.eval_shape(lambda: tiling.index(first))
    cuts = [jax.eval_shape(lambda o=o: _cut(o, tiling, first, dtype)) for o in operands]
    closed = jax.make_jaxpr(flat)(*tile, *index, *cuts)
    return Program(closed.jaxpr, operands, tuple(jnp.asarray(c) for c in closed.consts), dtype)
