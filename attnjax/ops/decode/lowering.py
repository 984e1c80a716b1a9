"""Masks and score_mods of a decoding call, as programs on `[B, N, T, S]`.

Queries and keys stand at positions of the whole sequence. An array along the queries either has an
entry for each of them, or one for each position of the cache, of which theirs are looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from attnjax.masks import evaluate
from attnjax.numerics import accumulation_dtype, widen
from attnjax.operands import AXES, Operand
from attnjax.ops.decode.layout import Contiguous
from attnjax.ops.decode.problem import DecodeProblem
from attnjax.ops.lowering import Program
from attnjax.scores import ScoreMod, check_scores
from attnjax.typing import Index


class Places(NamedTuple):
    """Where queries and slots stand in the sequence.

    Attributes:
      q: position of each query.
      k: position that each slot holds, or -1.
      in_order: whether slot `s` holds position `s`, if any.
    """

    q: Int[Array, "b T"]
    k: Int[Array, "b S"]
    in_order: bool

    def over(self, B: int, N: int) -> Index:
        """Returns the positions of all scores, broadcastable against `[B, N, T, S]`."""
        return Index(
            jnp.arange(B, dtype=jnp.int32).reshape(-1, 1, 1, 1),
            jnp.arange(N, dtype=jnp.int32).reshape(1, -1, 1, 1),
            self.q[:, None, :, None],
            self.k[:, None, None, :],
        )


def places(layout: Contiguous, length: Array, T: int, capacity: int) -> Places:
    """Returns where the last T queries and the slots of caches of some lengths stand."""
    return Places(
        length[:, None] - T + jnp.arange(T, dtype=jnp.int32),
        layout.positions(capacity, length),
        not layout.endless,
    )


def tile(operand: Operand, at: Places) -> Array:
    """Returns what belongs to the call's queries and slots, as `[B|1, N|1, T|1, S|1]`."""
    array = jnp.asarray(operand.array)
    T, S = at.q.shape[1], at.k.shape[1]
    if operand.relative and operand.size("R") > 1:
        table = array.reshape(operand.size("B"), operand.size("N"), -1)
        zero = S - 1  # where the entry of k_idx == q_idx is
        if at.in_order:
            return _each(table, zero - at.q, lambda row, start: _windows(row, start, S))
        distance = at.k[:, None, :] - at.q[:, :, None]
        return _each(table, zero + distance, lambda row, n: jnp.take(row, n, -1, mode="clip"))
    if operand.relative:
        return array.reshape(operand.size("B"), operand.size("N"), 1, 1)
    array = array.reshape([operand.size(a) for a in AXES])
    if array.shape[2] in (1, T):
        return array
    return _each(array, at.q, lambda rows, n: jnp.take(rows, n, 1, mode="clip"))


def tiles(program: Program, at: Places) -> tuple[Array, ...]:
    """Returns what a program takes beside scores and index."""
    return (*(tile(o, at) for o in program.operands), *program.constants)


def _windows(row: Array, starts: Array, size: int) -> Array:
    """Cuts `[N, R]` to `[N, T, size]`, where the t-th window starts at `starts[t]`."""

    def window(start: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(row, start, size, axis=-1)

    return jax.vmap(window, out_axes=1)(starts)


def _each(array: Array, at: Array, cut: Callable[[Array, Array], Array]) -> Array:
    """Cuts each example's part out of `[B|1, ...]`, at positions `[B|1, ...]`."""
    if at.shape[0] == 1:
        return jax.vmap(lambda x: cut(x, at[0]))(array)
    if array.shape[0] == 1:
        return jax.vmap(lambda n: cut(array[0], n))(at)
    return jax.vmap(cut)(array, at)


def lower_scores(problem: DecodeProblem) -> Program:
    """Lowers the score_mods to `(scaled dot products, index, tiles) -> scores`.

    Raises:
      ValueError: if a score_mod returns scores of another shape, or no floats.
    """
    dtype, sizes = accumulation_dtype(problem.q.dtype), problem.sizes
    mods = problem.score_mods

    def function(score: Array, index: Index, parts: Iterator[Array]) -> Array:
        for mod in mods:
            if isinstance(mod, ScoreMod):
                some = (widen(next(parts), dtype) for _ in mod.operands(sizes))
                new = mod.apply(score, index, *some)
            else:
                new = mod(score, *index)
            score = check_scores(new, score)
        return score

    operands = tuple(o for m in mods if isinstance(m, ScoreMod) for o in m.operands(sizes))
    B, T, N, _ = problem.q.shape
    return _lower(problem, function, operands, jax.ShapeDtypeStruct((B, N, T, sizes["S"]), dtype))


def lower_mask(problem: DecodeProblem) -> Program:
    """Lowers the mask to `(index, tiles) -> bool`, broadcastable against the scores."""

    def function(index: Index, parts: Iterator[Array]) -> Array:
        return evaluate(problem.mask, index, lambda _: next(parts))

    return _lower(problem, function, problem.mask.operands())


def _lower(
    problem: DecodeProblem,
    function: Callable[..., Array],
    operands: tuple[Operand, ...],
    *given: jax.ShapeDtypeStruct,
) -> Program:
    count = len(given) + 4

    def flat(*args: Array) -> Array:
        index = Index(*args[len(given) : count])
        return function(*args[: len(given)], index, iter(args[count:]))

    (B, T, N, _), S = problem.q.shape, problem.sizes["S"]

    def somewhere() -> Places:
        return places(problem.layout, problem.length, T, S)

    at = jax.eval_shape(lambda: tuple(somewhere().over(B, N)))
    tiles = [jax.eval_shape(lambda o=o: tile(o, somewhere())) for o in operands]
    closed = jax.make_jaxpr(flat)(*given, *at, *tiles)
    return Program(closed.jaxpr, operands, tuple(jnp.asarray(c) for c in closed.consts), None)
