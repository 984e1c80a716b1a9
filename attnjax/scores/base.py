"""score_mods: what happens to a score between the dot product and the softmax.

A score_mod is any function `fn(score, b, h, q_idx, k_idx) -> score`, or an object that declares the
arrays which it looks up by position. Scores arrive scaled, in float32, as tiles of any shape; the
index arrays broadcast against them and hold global positions. Arrays that a function closes over,
and arrays inside an object, get gradients.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from attnjax.numerics import widen
from attnjax.operands import Operand, declare, gather
from attnjax.typing import Index, ScoreFn


class ScoreMod:
    """Base of the score_mods that declare their arrays."""

    def operands(self, sizes: Mapping[str, int]) -> tuple[Operand, ...]:
        """Returns the arrays that are looked up by position, for axis sizes B, N, T and S."""
        return ()

    def apply(self, score: Array, index: Index, *tiles: Array) -> Array:
        """Changes one tile of scores.

        Args:
          score: float32, any shape.
          index: global positions that broadcast against it.
          *tiles: the parts of `operands()` that belong to the tile, floats at least as wide as
            the scores.

        Returns:
          The new scores, in the same shape.
        """
        raise NotImplementedError

    def __call__(self, score: Array, b: Array, h: Array, q_idx: Array, k_idx: Array) -> Array:
        """Changes scores at index arrays of any shape, looking arrays up one by one."""
        index = Index(b, h, q_idx, k_idx)
        fetch = gather(index)
        # No object but RelativeBias depends on T and S, and that one overrides this method.
        tiles = (widen(fetch(o), score.dtype) for o in self.operands({}))
        return self.apply(score, index, *tiles)


@typing.dataclass_transform(frozen_default=True, eq_default=False)
def pytree(*static: str) -> Callable[[type], type]:
    """Makes a score_mod class a frozen dataclass and a pytree, with the named fields static."""

    def register(cls: type) -> type:
        cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
        names = [f.name for f in dataclasses.fields(cls)]
        return jax.tree_util.register_dataclass(
            cls, data_fields=[n for n in names if n not in static], meta_fields=list(static)
        )

    return register


@pytree("fn")
class Declared(ScoreMod):
    """See `score_mod`."""

    per_head: Any
    per_query: Any
    per_key: Any
    fn: ScoreFn

    def operands(self, sizes: Mapping[str, int]) -> tuple[Operand, ...]:
        return tuple(
            declare(f"score_mod.{name}", leaf, axis)
            for name, axis in (("per_head", "N"), ("per_query", "T"), ("per_key", "S"))
            for leaf in jax.tree.leaves(getattr(self, name))
        )

    def apply(self, score: Array, index: Index, *tiles: Array) -> Array:
        remaining = iter(tiles)
        declared = [
            jax.tree.map(lambda _: next(remaining), x)
            for x in (self.per_head, self.per_query, self.per_key)
            if x is not None
        ]
        return self.fn(score, *index, *declared)


def score_mod(
    fn: ScoreFn, *, per_head: Any = None, per_query: Any = None, per_key: Any = None
) -> Declared:
    """Makes a score_mod of your own whose arrays are declared.

    A TPU kernel cannot index an array by position. Arrays declared here reach `fn` as the tiles
    that belong to its scores, and get gradients.

    Args:
      fn: `fn(score, b, h, q_idx, k_idx, *declared) -> score`. `declared` holds the tiles of
        `per_head`, `per_query` and `per_key`, in this order, each given only if it was passed, in
        the structure it was passed in; every tile broadcasts against `score`, and floats are at
        least as wide as the scores.
      per_head: array or pytree of arrays `[N]` or `[B, N]`.
      per_query: array or pytree of arrays `[T]`, `[B, T]` or `[B, N, T]`.
      per_key: array or pytree of arrays `[S]`, `[B, S]` or `[B, N, S]`.

    Returns:
      The score_mod.

    Raises:
      ValueError: if `fn` is not callable or an array has another rank.
    """
    if not callable(fn):
        raise ValueError(f"score_mod.fn: expected a function, got {type(fn).__name__}.")
    for name, value in (("per_head", per_head), ("per_query", per_query), ("per_key", per_key)):
        for leaf in jax.tree.leaves(value):
            if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
                raise ValueError(
                    f"score_mod.{name}: expected arrays, got {type(leaf).__name__}. "
                    "Numbers can simply be closed over."
                )
    result = Declared(per_head, per_query, per_key, fn)
    result.operands({})
    return result


def as_score_mods(value: Any) -> tuple[ScoreMod | ScoreFn, ...]:
    """Returns a score_mod argument as a tuple, to be applied from left to right.

    Raises:
      ValueError: if an entry is not callable.
    """
    mods = () if value is None else value if isinstance(value, tuple) else (value,)
    for mod in mods:
        if not callable(mod):
            hint = (
                " For an additive bias pass attnjax.bias(array)." if hasattr(mod, "shape") else ""
            )
            raise ValueError(
                "score_mod: expected a function fn(score, b, h, q_idx, k_idx) -> score, one of "
                f"attnjax's score_mods, or a tuple of them; got {type(mod).__name__}.{hint}"
            )
    return mods


def check_scores(new: Array, score: Array) -> Array:
    """Checks what a score_mod returned, and returns it in the dtype of the scores it was given.

    Raises:
      ValueError: if it is of another shape, or not float.
    """
    dtype = getattr(new, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        got = type(new).__name__ if dtype is None else f"dtype {dtype}"
        raise ValueError(f"score_mod: expected float scores as its result, got {got}.")
    # No broadcasting: a result such as score.sum() would pass, and differ from block to block.
    if new.shape != score.shape:
        raise ValueError(
            f"score_mod: expected a result of the shape of its scores, {score.shape}, "
            f"got {new.shape}. To ignore the scores, return jnp.broadcast_to(new, score.shape)."
        )
    return new.astype(score.dtype)


def check_floats(name: str, x: Any) -> Array:
    """Returns `x` if it is a float array, and raises a ValueError that names it if not."""
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        raise ValueError(f"{name}: expected a float array, got {type(x).__name__}.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name}: expected a float array, got dtype {x.dtype}.")
    return x


def positive_scalar(name: str, x: Any) -> Array:
    """Returns a positive number, or a float array `[]` of unknown sign, as an array.

    Raises:
      ValueError: if it is neither.
    """
    if isinstance(x, int | float | np.number) and not isinstance(x, bool):
        if not (np.isfinite(x) and x > 0):
            raise ValueError(f"{name}: expected a positive finite number, got {x!r}.")
        return jnp.asarray(x, jnp.float32)
    check_floats(name, x)
    if len(x.shape):
        raise ValueError(f"{name}: expected a scalar, got shape {tuple(x.shape)}.")
    return x
