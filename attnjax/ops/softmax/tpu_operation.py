"""The operation that the TPU kernels make up: arrays in, output, statistics and gradients out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.numerics import MASKED, widen
from attnjax.ops.derivatives import differentiable
from attnjax.ops.kernels import positional
from attnjax.ops.kernels.programs import Tile, TileProgram, lower_mask, lower_scores
from attnjax.ops.kernels.steps import POSITIONAL, Shape
from attnjax.ops.softmax import blockwise
from attnjax.ops.softmax.problem import Problem
from attnjax.ops.softmax.stats import AttentionStats, stats_of
from attnjax.ops.softmax.tiling import make_tiling
from attnjax.ops.softmax.tpu_backward import backward
from attnjax.ops.softmax.tpu_call import Arguments, Call, Pass, inputs_of
from attnjax.ops.softmax.tpu_forward import forward
from attnjax.ops.softmax.tpu_tiling import precision_of, steps_of
from attnjax.platform import platform
from attnjax.scores import ScoreMod

_NONLINEAR = (
    "A score_mod computes with an array that it captured before it indexes it, as in "
    "jnp.exp(table)[h], and second derivatives by such an array are not available on a TPU. Index "
    "first, as in jnp.exp(table[h]), compute the array outside of the score_mod, or use "
    "implementation='blockwise'."
)
_REFUSAL = (
    "A second reverse-mode derivative of attention is not available on a TPU. Use forward mode for "
    "the outer derivative (jax.jvp of jax.grad, jax.hessian), or implementation='reference'."
)


def compute(problem: Problem, tile: Tile, back: Tile) -> tuple[Array, AttentionStats | None]:
    """Computes attention in kernels.

    Args:
      problem: a call that `attnjax.ops.softmax.tpu.check` accepts; no axis may be empty.
      tile: the tiles of the forward pass.
      back: the tiles of the backward pass.

    Returns:
      The output `[B, T, N, D]` in the dtype of `v`, and the statistics if they are wanted.
    """
    dropout = problem.dropout
    passes: list[Pass] = []
    schedules, arrays = [], []
    for own, by in ((tile, "T"), (back, "T"), (back.turned(), "S")):
        scores = lower_scores(problem.score_mods, problem.scale, own, problem.origin)
        mask = lower_mask(positional.reordered(problem.mask), own, problem.origin)
        steps = steps_of(problem, own, by, apart=problem.stats and not passes)
        part = _positional(problem, own, steps.shape)
        passes.append(Pass(own, scores.bare(), mask.bare(), steps.shape, part))
        schedules.append(steps.words)
        arrays.append((scores.arrays, mask.arrays))
    call = Call(
        forward=passes[0],
        by_query=passes[1],
        by_key=passes[2],
        K=problem.sizes["K"],
        precision=precision_of(problem),
        stats=problem.stats,
        dropout=None if dropout is None else (dropout.rate, dropout.shared),
        one_sided=problem.mask.offsets()[1] <= 0 and problem.q.dtype == jnp.bfloat16,
        only_scaled=not problem.score_mods,
        interpret=platform().interpret,
    )
    run_plain, plain = blockwise.operation(problem, make_tiling(problem))
    declared = 1 + sum(
        len(m.operands(tile.sizes)) for m in problem.score_mods if isinstance(m, ScoreMod)
    )
    (score_arrays, mask_arrays), *_ = arrays
    given = _Given(plain, score_arrays[declared:], mask_arrays, *schedules)
    flat, structure = jax.tree.flatten(given)
    op = differentiable(
        functools.partial(_forward, call, structure, declared),
        functools.partial(_backward, call, structure, declared),
        num_smooth=3 if problem.stats else 2,
        refusal=_REFUSAL,
        plain=functools.partial(_plain, run_plain, structure),
        check_plain=functools.partial(_check_plain, structure, passes[0].scores.linear),
    )
    out, *rows = op(*flat)
    return out, stats_of(problem, *rows)


def _positional(problem: Problem, tile: Tile, shape: Shape) -> TileProgram | None:
    """Returns the program of the mask's part that decides on POSITIONAL blocks, if there are."""
    parts = positional.split(problem.mask)
    if parts is None or POSITIONAL not in shape.kinds:
        return None
    program = lower_mask(parts[0], tile, problem.origin).bare()
    assert len(program.operands) == len(parts[0].operands()), "it takes the first of all operands"
    return program


class _Given(NamedTuple):
    """What the operation is given.

    Attributes:
      plain: what blockwise takes for the same call; forward mode goes through that.
      captured: arrays and numbers that score_mods captured, as far as kernels look them up.
      mask: arrays of the mask's programs.
      by_query, back_by_query, by_key: words of the schedules.
    """

    plain: blockwise.Arguments
    captured: tuple[Array, ...]
    mask: tuple[Array, ...]
    by_query: Array
    back_by_query: Array
    by_key: Array


def _plain(
    run: Callable[..., tuple[Array, ...]], structure: Any, flat: tuple[Array, ...]
) -> tuple[Array, ...]:
    """Computes the same in plain JAX."""
    return run(*jax.tree.unflatten(structure, flat).plain)


def _check_plain(structure: Any, linear: bool, wanted: tuple[bool, ...]) -> None:
    """Refuses where plain JAX and kernels would both count how a lookup bends."""
    if not linear and any(jax.tree.unflatten(structure, wanted).captured):
        raise NotImplementedError(_NONLINEAR)


def _arguments(given: _Given, declared: int) -> Arguments:
    """Returns what the kernels compute with; the first `declared` arrays of scores are plain's."""
    q, k, v, sinks, scores, _, words, *_ = given.plain
    return Arguments(
        q,
        k,
        v,
        None if sinks is None else sinks.reshape(-1),
        (*(widen(x, jnp.dtype(jnp.float32)) for x in scores[:declared]), *given.captured),
        given.mask,
        words,
        *given[3:],
        given.plain.origin,
    )


def _forward(
    call: Call, structure: Any, declared: int, flat: tuple[Array, ...]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Computes outputs and statistics; the residuals are what the backward pass reuses."""
    given: _Given = jax.tree.unflatten(structure, flat)
    if (known := given.plain.known) is not None:
        return known.results()
    arguments = _arguments(given, declared)
    tile = call.forward.tile
    inputs = inputs_of(tile, arguments)
    out, rows = forward(call, arguments, inputs)
    # The flags of bad queries return here; an empty row saw nothing, its own NaN included.
    logsumexp = rows[:, :, 0, : tile.T]
    spoil = jnp.where(logsumexp == MASKED, 0, inputs.bad_rows)
    out = jnp.moveaxis(out[:, :, : tile.T] + spoil[..., None].astype(out.dtype), 1, 2)
    names = (0, 2, 1, 3, 4) if call.stats else (0,)
    numbers = tuple(rows[:, :, n, : tile.T] + spoil for n in names)
    return (out, *numbers), (out, *numbers[:2])


def _backward(
    call: Call,
    structure: Any,
    declared: int,
    flat: tuple[Array, ...],
    residuals: tuple[Array, ...],
    cotangents: tuple[Array | None, ...],
    wanted: tuple[bool, ...],
) -> tuple[Array | None, ...]:
    """Computes the cotangents of everything that is wanted."""
    given: _Given = jax.tree.unflatten(structure, flat)
    want: _Given = jax.tree.unflatten(structure, wanted)
    arguments, wants = _arguments(given, declared), want.plain
    inputs = inputs_of(call.by_query.tile, arguments)
    grads = backward(
        call,
        arguments,
        inputs,
        (jnp.moveaxis(residuals[0], 2, 1), *residuals[1:]),
        tuple(
            jnp.moveaxis(c, 2, 1) if n == 0 and c is not None else c
            for n, c in enumerate(cotangents)
        ),
        arguments._replace(
            q=wants.q, k=wants.k, v=wants.v, scores=(*wants.scores[:declared], *want.captured)
        ),
    )
    # In the order of the flattened arguments; masks, dropout and schedules have no derivative.
    # What a score_mod captured gets its cotangent where kernels look it up, not in plain's copy.
    copies = [jnp.zeros_like(x) for x in given.plain.scores[declared:]]
    sinks = [] if grads.sinks is None else [grads.sinks.reshape(call.K, call.groups)]
    found: list[Array | None] = [
        grads.q,
        grads.k,
        grads.v,
        *sinks,
        *grads.scores[:declared],
        *copies,
    ]
    others = len(jax.tree.leaves(given.plain)) - len(found)
    nothing: list[Array | None] = [None]
    found += [*nothing * others, *grads.scores[declared:]]
    found += nothing * (len(flat) - len(found))
    return tuple(
        g.astype(x.dtype) if w and g is not None else None
        for g, x, w in zip(found, flat, wanted, strict=True)
    )
