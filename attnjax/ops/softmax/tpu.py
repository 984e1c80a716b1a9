"""Attention on a TPU in Pallas kernels: any mask and score_mod, block-sparse, with statistics."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.masks import Segments, walk
from attnjax.numerics import MASKED, widen
from attnjax.ops import tuning
from attnjax.ops.derivatives import differentiable
from attnjax.ops.kernels.programs import Part, Tile, lower_mask, lower_scores, part
from attnjax.ops.kernels.steps import Steps, make_steps
from attnjax.ops.kernels.tpu_parts import LANES, parts_of
from attnjax.ops.softmax import blockwise
from attnjax.ops.softmax.problem import Problem
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.ops.softmax.tiling import make_tiling
from attnjax.ops.softmax.tpu_backward import backward
from attnjax.ops.softmax.tpu_call import Arguments, Call, Pass, inputs_of
from attnjax.ops.softmax.tpu_forward import forward
from attnjax.ops.tiles import Tiling
from attnjax.platform import platform
from attnjax.scores import ScoreMod

_REFUSAL = (
    "A second reverse-mode derivative of attention is not available on a TPU. Use forward mode for "
    "the outer derivative (jax.jvp of jax.grad, jax.hessian), or implementation='reference'."
)

_NONLINEAR = (
    "A score_mod computes with an array that it captured before it indexes it, as in "
    "jnp.exp(table)[h], and second derivatives by such an array are not available on a TPU. Index "
    "first, as in jnp.exp(table[h]), compute the array outside of the score_mod, or use "
    "implementation='blockwise'."
)

# By static cycles on v5e and v6e, T=8192, H=128, bfloat16. Smaller blocks waste less where much of
# the mask is empty: with documents, whose number is not known here, and with narrow windows.
_BLOCK, _SPARSE_BLOCK = 1024, 512
_NARROW = 2048
_WIDEST = 256


def check(problem: Problem) -> None:
    """Refuses what these kernels can't compute.

    Raises:
      NotImplementedError: with the reason and the remedy.
    """
    here = platform()
    if here.name != "tpu":
        raise NotImplementedError(
            f"the TPU kernels need a TPU, and jax runs on the {here.name}. Run them where "
            "jax.default_backend() is 'tpu', or within `attnjax.emulate('tpu')`, which runs the "
            "same kernels in Pallas' interpreter: right numbers, slowly."
        )
    for name in ("q", "k", "v"):
        dtype = getattr(problem, name).dtype
        if dtype not in (jnp.float32, jnp.bfloat16):
            raise NotImplementedError(
                f"a TPU multiplies float32 and bfloat16 matrices, and {name} is of dtype {dtype}. "
                f"Pass {name}.astype('bfloat16'), or implementation='blockwise'."
            )
    size = problem.sizes
    for name, axis in (("q and k", "H"), ("v", "D")):
        if size[axis] > _WIDEST:
            raise NotImplementedError(
                f"a head of {name} is {size[axis]} wide, and a kernel's tiles hold at most "
                f"{_WIDEST}. Use more and narrower heads, or implementation='blockwise'."
            )
    _precision(problem)
    tile = tile_of(problem)
    parts_of(lower_scores(problem.score_mods, problem.scale, tile), tile)
    parts_of(lower_mask(problem.mask, tile), tile)
    if 0 not in (size[a] for a in "BTSN"):
        for by in "TS":
            _steps(problem, tile, by)


def _precision(problem: Problem) -> Any:
    asked = problem.matmul_precision
    names = {None: None, "default": jax.lax.Precision.DEFAULT, "highest": jax.lax.Precision.HIGHEST}
    names |= {"float32": jax.lax.Precision.HIGHEST, "bfloat16": jax.lax.Precision.DEFAULT}
    known = {jax.lax.Precision.DEFAULT, jax.lax.Precision.HIGHEST}
    if not isinstance(asked, str | None | jax.lax.Precision):
        asked = "another"
    found = names.get(asked, asked) if not isinstance(asked, jax.lax.Precision) else asked
    if found is not None and found not in known:
        raise NotImplementedError(
            f"precision={problem.precision!r}: a TPU kernel multiplies by default or in full "
            "float32. Pass precision=None, 'default' or 'highest', or implementation='blockwise'."
        )
    wide = jnp.float32 in (problem.q.dtype, problem.k.dtype, problem.v.dtype)
    # Products of bfloat16 numbers are exact in float32 as they are.
    return found if wide else None


def tile_of(problem: Problem, block_q: int | None = None, block_k: int | None = None) -> Tile:
    """Returns the tiles of a call: of the sizes given, or those that were measured to be best."""
    size, best, usual = problem.sizes, tuning.options("tpu", problem), _usual_block(problem)
    tile = Tile(
        size["B"],
        size["N"],
        size["T"],
        size["S"],
        _block(size["T"], best.get("block_q", usual)) if block_q is None else block_q,
        _block(size["S"], best.get("block_k", usual)) if block_k is None else block_k,
    )
    if None not in (block_q, block_k) or not _relative(problem, tile):
        return tile
    # Windows of relative positions line up where one block size is a multiple of the other.
    return dataclasses.replace(
        tile,
        block_q=_doubled(tile.block_q) if block_q is None else block_q,
        block_k=_doubled(tile.block_k) if block_k is None else block_k,
    )


def _relative(problem: Problem, tile: Tile) -> bool:
    mods = (m for m in problem.score_mods if isinstance(m, ScoreMod))
    return any(o.relative for m in mods for o in m.operands(tile.sizes))


def _doubled(block: int) -> int:
    """Returns the power of two times LANES that is not smaller than a block."""
    return LANES << (-(-block // LANES) - 1).bit_length()


def _usual_block(problem: Problem) -> int:
    lowest, highest = problem.mask.offsets()
    sparse = any(isinstance(leaf, Segments) for leaf in walk(problem.mask))
    return _SPARSE_BLOCK if sparse or highest - lowest < _NARROW else _BLOCK


def _block(length: int, block: int) -> int:
    return min(block, -(-max(length, 1) // LANES) * LANES)


def notes(problem: Problem) -> tuple[str, ...]:
    """Returns what to know of a call on the TPU kernels."""
    found = ["forward mode (jax.jvp, jax.jacfwd) is computed by blockwise"]
    tile = tile_of(problem)
    mods = (m for m in problem.score_mods if isinstance(m, ScoreMod))
    operands = [o for m in mods for o in m.operands(tile.sizes)]
    for operand in operands:
        if part(operand) is Part.TILE:
            size = 4 * tile.B * tile.N * tile.T * tile.S / 2**20
            found.append(
                f"the gradient of {operand.name}, if it is asked for, takes {size:.4g} MiB: it is "
                "made for every batch element and head before those that share it are added up"
            )
    return tuple(found)


def candidates(problem: Problem) -> list[dict[str, int]]:
    """Returns blocks of the forward pass that are worth measuring, the default first."""
    return _candidates(problem, "block_q", "block_k")


def candidates_backward(problem: Problem) -> list[dict[str, int]]:
    """Returns blocks of the backward pass that are worth measuring, the default first."""
    return _candidates(problem, "block_q_backward", "block_k_backward")


def _candidates(problem: Problem, *names: str) -> list[dict[str, int]]:
    size, usual = problem.sizes, _usual_block(problem)
    found = {
        (_block(size["T"], block_q), _block(size["S"], block_k)): None
        for block_q, block_k in ((usual, usual), *itertools.product((256, 512, 1024), repeat=2))
    }
    return [dict(zip(names, blocks, strict=True)) for blocks in found]


def tiling(problem: Problem) -> Tiling:
    """Returns the tiles of a call's forward pass, as schedules take them."""
    return _tiling(problem, tile_of(problem))


def _tiling(problem: Problem, tile: Tile) -> Tiling:
    K = problem.sizes["K"]
    return Tiling(tile.B, tile.T, tile.S, tile.N, K, 1, tile.N, tile.block_q, tile.block_k)


def _steps(problem: Problem, tile: Tile, by: str, *, apart: bool = False) -> Steps:
    return make_steps(problem.mask, _tiling(problem, tile), by=by, apart=apart)


def attend(
    problem: Problem,
    *,
    block_q: int | None = None,
    block_k: int | None = None,
    block_q_backward: int | None = None,
    block_k_backward: int | None = None,
) -> tuple[Array, AttentionStats | None]:
    """Computes attention in kernels.

    Args:
      problem: the call; no axis may be empty.
      block_q: queries in a block; a multiple of 128 on a TPU. None takes what a table in use says,
        or 512; so do the others.
      block_k: keys in a block, likewise.
      block_q_backward: queries in a block of the backward pass; None takes `block_q`.
      block_k_backward: keys in a block of the backward pass; None takes `block_k`.

    Returns:
      The output `[B, T, N, D]` in the dtype of `v`, and the statistics if they are wanted.
    """
    tile, best = tile_of(problem, block_q, block_k), tuning.options("tpu", problem)
    if block_q_backward is None and block_q is None:
        block_q_backward = best.get("block_q_backward")
    if block_k_backward is None and block_k is None:
        block_k_backward = best.get("block_k_backward")
    back = tile_of(
        problem,
        block_q if block_q_backward is None else block_q_backward,
        block_k if block_k_backward is None else block_k_backward,
    )
    dropout = problem.dropout
    passes: list[Pass] = []
    schedules, arrays = [], []
    for own, by in ((tile, "T"), (back, "T"), (back.turned(), "S")):
        scores = lower_scores(problem.score_mods, problem.scale, own)
        mask = lower_mask(problem.mask, own)
        steps = _steps(problem, own, by, apart=problem.stats and not passes)
        passes.append(Pass(own, scores.bare(), mask.bare(), steps.shape))
        schedules.append(steps.words)
        arrays.append((scores.arrays, mask.arrays))
    call = Call(
        forward=passes[0],
        by_query=passes[1],
        by_key=passes[2],
        K=problem.sizes["K"],
        precision=_precision(problem),
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
        num_smooth=3 if problem.stats else 1,
        refusal=_REFUSAL,
        plain=functools.partial(_plain, run_plain, structure),
        check_plain=functools.partial(_check_plain, structure, passes[0].scores.linear),
    )
    out, *rows = op(*flat)
    if not problem.stats:
        return out, None
    logsumexp, entropy, max_logit, sink_mass, distance = rows
    return out, AttentionStats(logsumexp, max_logit, entropy, sink_mass, distance)


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
    )


def _forward(
    call: Call, structure: Any, declared: int, flat: tuple[Array, ...]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Computes outputs and statistics; the residuals are what the backward pass reuses."""
    arguments = _arguments(jax.tree.unflatten(structure, flat), declared)
    tile = call.forward.tile
    inputs = inputs_of(tile, arguments)
    out, rows = forward(call, arguments, inputs)
    # The flags of bad queries return here; an empty row saw nothing, its own NaN included.
    logsumexp = rows[:, :, 0, : tile.T]
    spoil = jnp.where(logsumexp == MASKED, 0, inputs.bad_rows)
    out = jnp.moveaxis(out[:, :, : tile.T] + spoil[..., None].astype(out.dtype), 1, 2)
    names = (0, 2, 1, 3, 4) if call.stats else (0,)
    numbers = tuple(rows[:, :, n, : tile.T] + spoil for n in names)
    if call.stats:
        return (out, *numbers), (out, *numbers[:2])
    return (out,), (out, *numbers)


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
