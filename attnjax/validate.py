"""Turns the arguments of the public call into a `Problem`, or says what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.dropout import Dropout
from attnjax.masks import Mask, as_mask
from attnjax.numerics import accumulation_dtype
from attnjax.operands import Operand
from attnjax.ops.softmax.problem import Problem
from attnjax.scores import ScoreFn, ScoreMod, as_score_mods
from attnjax.typing import is_array

Result = TypeVar("Result")


def make_problem(
    q: Any,
    k: Any,
    v: Any,
    *,
    mask: Any,
    score_mod: Any,
    scale: Any,
    sinks: Any,
    dropout: Any,
    precision: Any,
    stats: bool,
) -> Problem:
    """Validates a call.

    Args:
      q: queries, as in `attnjax.attention`; so are all others.
      k: keys.
      v: values.
      mask: a Mask, a bool array or None.
      score_mod: a score_mod, a tuple of them or None.
      scale: a number, a float array `[]` or None.
      sinks: a float array `[N]` or None.
      dropout: a `Dropout` or None.
      precision: what `jax.lax.dot_general` accepts.
      stats: a bool.

    Returns:
      The problem.

    Raises:
      ValueError: naming the argument, what was expected and what came.
    """
    q, k, v = (jnp.asarray(x) if isinstance(x, np.ndarray) else x for x in (q, k, v))
    _check_arrays(q, k, v)
    (B, T, N, H), S = q.shape, k.shape[1]
    sizes = {"B": B, "T": T, "S": S, "N": N}

    mask = as_mask(mask)
    mods = as_score_mods(score_mod)
    for operand in operands_of(mask, mods, sizes):
        operand.check(sizes)
    sinks = check_sinks(sinks, N)
    if dropout is not None:
        if not isinstance(dropout, Dropout):
            raise ValueError(
                "dropout: expected attnjax.Dropout(rate, key) or None, "
                f"got {type(dropout).__name__}."
            )
        if dropout.rate == 0:
            dropout = None
        else:
            jax.eval_shape(dropout.words)
    return Problem(
        q,
        k,
        v,
        mask,
        mods,
        check_scale(scale, H, accumulation_dtype(q.dtype)),
        sinks,
        dropout,
        check_precision(precision),
        check_stats(stats),
    )


def over_shapes(function: Callable[..., Result], arguments: Mapping[str, Any]) -> Result:
    """Calls a function of some arguments with tracers in the place of their arrays.

    Args:
      function: of keyword arguments; it may return anything.
      arguments: pytrees of arrays, of `jax.ShapeDtypeStruct`s, which do as well, and of other
        values, which stay as they are.

    Returns:
      What the function returned; nothing was computed.
    """
    leaves, structure = jax.tree.flatten(dict(arguments))
    arrays = [x for x in leaves if is_array(x)]
    results = []

    def trace(arrays: list[Any]) -> None:
        given = iter(arrays)
        filled = [next(given) if is_array(x) else x for x in leaves]
        results.append(function(**jax.tree.unflatten(structure, filled)))

    jax.eval_shape(trace, arrays)
    return results[0]


def _check_arrays(q: Any, k: Any, v: Any) -> None:
    layouts = {"q": "[B, T, N, H]", "k": "[B, S, K, H]", "v": "[B, S, K, D]"}
    for (name, layout), x in zip(layouts.items(), (q, k, v), strict=True):
        if not hasattr(x, "shape") or not hasattr(x, "dtype"):
            raise ValueError(f"{name}: expected a float array {layout}, got {type(x).__name__}.")
        if len(x.shape) != 4:
            raise ValueError(f"{name}: expected an array {layout}, got shape {tuple(x.shape)}.")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name}: expected a float array {layout}, got dtype {x.dtype}.")
    (B, _, N, H), (_, S, K, _) = q.shape, k.shape
    for name, got, want, other in (
        ("k", k.shape[0], B, "batch size B of q"),
        ("v", v.shape[0], B, "batch size B of q"),
        ("k", k.shape[3], H, "head width H of q"),
        ("v", v.shape[1], S, "length S of k"),
        ("v", v.shape[2], K, "number of heads K of k"),
    ):
        if got != want:
            shapes = ", ".join(f"{n} {tuple(x.shape)}" for n, x in (("q", q), ("k", k), ("v", v)))
            raise ValueError(f"{name}: expected {want}, the {other}, got {got}; shapes: {shapes}.")
    if (K == 0) != (N == 0) or (K and N % K):
        raise ValueError(
            f"q: expected a number of heads N that is a multiple of k's K={K}, got N={N}."
        )
    for name, letter, x in (("q", "H", q), ("v", "D", v)):
        if x.shape[3] == 0:
            raise ValueError(
                f"{name}: expected a head width {letter} of at least 1, got shape {tuple(x.shape)}."
            )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"q, k, v: expected one dtype, got {q.dtype}, {k.dtype}, {v.dtype}. "
            "Cast them to the dtype that you want the products computed in."
        )


def operands_of(
    mask: Mask, mods: tuple[ScoreMod | ScoreFn, ...], sizes: Mapping[str, int]
) -> Iterator[Operand]:
    """Yields the arrays that a mask and score_mods look up by position."""
    yield from mask.operands()
    for mod in mods:
        if isinstance(mod, ScoreMod):
            yield from mod.operands(sizes)


def check_sinks(sinks: Any, N: int) -> Any:
    """Returns the sinks of N heads, None or a float array `[N]`, or raises ValueError."""
    if sinks is None:
        return None
    if not hasattr(sinks, "shape") or not hasattr(sinks, "dtype"):
        raise ValueError(f"sinks: expected a float array [N={N}], got {type(sinks).__name__}.")
    if tuple(sinks.shape) != (N,) or not jnp.issubdtype(sinks.dtype, jnp.floating):
        raise ValueError(
            f"sinks: expected a float array [N={N}], got shape {tuple(sinks.shape)}, "
            f"dtype {sinks.dtype}."
        )
    return sinks


def check_stats(stats: Any) -> bool:
    """Returns whether statistics are wanted, or raises ValueError."""
    if not isinstance(stats, bool | np.bool_):
        raise ValueError(f"stats: expected True or False, got {stats!r}.")
    return bool(stats)


def check_scale(scale: Any, H: int, dtype: jnp.dtype) -> Any:
    """Returns the factor of dot products as a scalar array, or raises ValueError."""
    if scale is None:
        return jnp.asarray(1 / math.sqrt(H), dtype)
    if isinstance(scale, int | float | np.number) and not isinstance(scale, bool):
        if not math.isfinite(scale):
            raise ValueError(f"scale: expected a finite number, got {scale!r}.")
        return jnp.asarray(scale, dtype)
    if not hasattr(scale, "dtype") or not jnp.issubdtype(scale.dtype, jnp.floating):
        raise ValueError(f"scale: expected a number, a float scalar array or None, got {scale!r}.")
    if tuple(scale.shape):
        raise ValueError(
            f"scale: expected a scalar, got shape {tuple(scale.shape)}. For a factor per head use "
            "score_mod=attnjax.temperature(1 / factors)."
        )
    return scale


def check_precision(precision: Any) -> Any:
    """Returns a matmul precision or None, or raises ValueError."""
    try:
        return jax.lax.Precision(precision) if precision is not None else None
    except (ValueError, TypeError) as error:
        known = ", ".join(repr(p.name.lower()) for p in jax.lax.Precision)
        raise ValueError(
            f"precision: expected None or one of {known}, or a jax.lax.Precision; "
            f"got {precision!r}."
        ) from error
