"""score_mods: what happens to a score between the dot product and the softmax.

A score_mod is any function `fn(score, b, h, q_idx, k_idx) -> score`, or one of the objects made
here, which declare the arrays that they look up by position. Scores arrive scaled, in float32, as
tiles of any shape; the index arrays broadcast against them and hold global positions. Arrays that a
function closes over, and arrays inside an object, get gradients.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from attnjax.operands import Operand, declare, gather
from attnjax.typing import Index, ScoreFn

Activation = Literal["identity", "sigmoid", "tanh", "relu"]
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
}


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
          *tiles: the parts of `operands()` that belong to the tile.

        Returns:
          The new scores, in the same shape.
        """
        raise NotImplementedError

    def __call__(self, score: Array, b: Array, h: Array, q_idx: Array, k_idx: Array) -> Array:
        """Changes scores at index arrays of any shape, looking arrays up one by one."""
        index = Index(b, h, q_idx, k_idx)
        fetch = gather(index)
        # No object but RelativeBias depends on T and S, and that one overrides this method.
        return self.apply(score, index, *(fetch(o) for o in self.operands({})))


@typing.dataclass_transform(frozen_default=True, eq_default=False)
def _pytree(*static: str) -> Callable[[type], type]:
    def register(cls: type) -> type:
        cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
        names = [f.name for f in dataclasses.fields(cls)]
        return jax.tree_util.register_dataclass(
            cls, data_fields=[n for n in names if n not in static], meta_fields=list(static)
        )

    return register


@_pytree()
class Alibi(ScoreMod):
    """See `alibi`."""

    slopes: Array

    def operands(self, sizes: Mapping[str, int]) -> tuple[Operand, ...]:
        return (declare("alibi.slopes", self.slopes, "N"),)

    def apply(self, score: Array, index: Index, *tiles: Array) -> Array:
        return score - tiles[0] * jnp.abs(index.q - index.k).astype(score.dtype)


def alibi(slopes: int | Array) -> Alibi:
    """Subtracts `slope * |q_idx - k_idx|`, one slope per head.

    Source: Press et al., "Train Short, Test Long" (2022).

    Args:
      slopes: float array `[N]`, or the number of heads for the paper's slopes: a geometric
        sequence from `2 ** (-8 / N)`; if N is no power of two, every other slope of the next power
        follows those of the power below.

    Returns:
      The score_mod.

    Raises:
      ValueError: if `slopes` is neither a positive integer nor a float array `[N]`.
    """
    if isinstance(slopes, int | np.integer) and not isinstance(slopes, bool):
        if slopes < 1:
            raise ValueError(f"alibi.slopes: expected at least one head, got {slopes}.")
        power = 1 << (int(slopes).bit_length() - 1)
        first = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
        between = [2.0 ** (-4 * (2 * i + 1) / power) for i in range(slopes - power)]
        return Alibi(jnp.asarray(first + between, jnp.float32))
    slopes = _check_floats("alibi.slopes", slopes)
    declare("alibi.slopes", slopes, "N")
    return Alibi(slopes)


@_pytree()
class SoftCap(ScoreMod):
    """See `soft_cap`."""

    cap: Array

    def apply(self, score: Array, index: Index, *tiles: Array) -> Array:
        return self.cap * jnp.tanh(score / self.cap)


def soft_cap(cap: float | Array) -> SoftCap:
    """Bounds scores smoothly: `cap * tanh(score / cap)`.

    Source: Gemma Team, "Gemma 2" (2024).

    Args:
      cap: the bound, positive; a number or a float array `[]`.

    Returns:
      The score_mod.

    Raises:
      ValueError: if `cap` is a number that is not positive and finite, or not a scalar.
    """
    return SoftCap(_positive_scalar("soft_cap.cap", cap))


@_pytree()
class Temperature(ScoreMod):
    """See `temperature`."""

    value: Array

    def operands(self, sizes: Mapping[str, int]) -> tuple[Operand, ...]:
        return (declare("temperature", self.value, "N"),) if self.value.ndim else ()

    def apply(self, score: Array, index: Index, *tiles: Array) -> Array:
        return score / (tiles[0] if tiles else self.value)


def temperature(value: float | Array) -> Temperature:
    """Divides scores by a temperature: above 1 flattens the weights, below 1 sharpens them.

    Args:
      value: positive; a number, or a float array `[]` or `[N]`.

    Returns:
      The score_mod.

    Raises:
      ValueError: if `value` is a number that is not positive and finite, or has another shape.
    """
    if hasattr(value, "shape") and len(value.shape):
        value = _check_floats("temperature", value)
        declare("temperature", value, "N")
        return Temperature(value)
    return Temperature(_positive_scalar("temperature", value))


@_pytree()
class Bias(ScoreMod):
    """See `bias`."""

    array: Array

    def operands(self, sizes: Mapping[str, int]) -> tuple[Operand, ...]:
        return (Operand("bias", self.array, "BNTS"[4 - len(self.array.shape) :]),)

    def apply(self, score: Array, index: Index, *tiles: Array) -> Array:
        return score + tiles[0].astype(score.dtype)


def bias(array: Array) -> Bias:
    """Adds an array to the scores.

    Args:
      array: float, broadcastable to `[B, N, T, S]`; its rank may be lower, as in NumPy. It gets
        gradients of its own shape.

    Returns:
      The score_mod.

    Raises:
      ValueError: if it is not a float array of at most four dimensions.
    """
    _check_floats("bias", array)
    if len(array.shape) > 4:
        raise ValueError(
            "bias: expected at most 4 dimensions, broadcastable to [B, N, T, S], "
            f"got shape {tuple(array.shape)}."
        )
    return Bias(array)


@_pytree("kind", "bidirectional", "max_distance")
class RelativeBias(ScoreMod):
    """See `relative_bias`."""

    table: Array
    kind: str
    bidirectional: bool
    max_distance: int

    def bucket(self, distance: Array) -> Array:
        """Returns the table column for relative positions `k_idx - q_idx`."""
        columns = self.table.shape[1]
        if self.kind == "clipped":
            reach = columns // 2
            return jnp.clip(distance, -reach, reach) + reach
        return t5_bucket(
            distance,
            num_buckets=columns,
            bidirectional=self.bidirectional,
            max_distance=self.max_distance,
        )

    def operands(self, sizes: Mapping[str, int]) -> tuple[Operand, ...]:
        N, T, S = sizes["N"], sizes["T"], sizes["S"]
        if self.table.shape[0] not in (1, N):
            raise ValueError(
                f"relative_bias.table: expected shape [N={N}, C] (or 1 head for all), "
                f"got {tuple(self.table.shape)}."
            )
        by_distance = jnp.take(self.table, self.bucket(jnp.arange(1 - T, S)), axis=1)
        return (Operand("relative_bias.table", by_distance, "NR"),)

    def apply(self, score: Array, index: Index, *tiles: Array) -> Array:
        return score + tiles[0].astype(score.dtype)

    def __call__(self, score: Array, b: Array, h: Array, q_idx: Array, k_idx: Array) -> Array:
        return score + self.table[h, self.bucket(k_idx - q_idx)].astype(score.dtype)


def relative_bias(
    table: Array,
    *,
    kind: Literal["clipped", "t5"] = "clipped",
    bidirectional: bool = True,
    max_distance: int = 128,
) -> RelativeBias:
    """Adds a learned bias per head that depends on the relative position alone.

    Sources: Shaw et al., "Self-Attention with Relative Position Representations" (2018) for clipped
    distances; Raffel et al., "Exploring the Limits of Transfer Learning" (2020) for T5's buckets.

    Args:
      table: float `[N, C]`. For `clipped`, C is odd and column `c` serves `k_idx - q_idx =
        c - C // 2`, longer distances being clipped. For `t5`, C is the number of buckets.
      kind: how distances map to columns.
      bidirectional: for `t5`: half the buckets for keys after the query. If False, those share
        the bucket of distance 0.
      max_distance: for `t5`: distances from here on share the last bucket.

    Returns:
      The score_mod.

    Raises:
      ValueError: if the table's shape or the settings do not fit.
    """
    _check_floats("relative_bias.table", table)
    if len(table.shape) != 2:
        raise ValueError(f"relative_bias.table: expected shape [N, C], got {tuple(table.shape)}.")
    if kind not in ("clipped", "t5"):
        raise ValueError(f"relative_bias.kind: expected 'clipped' or 't5', got {kind!r}.")
    if kind == "clipped" and table.shape[1] % 2 == 0:
        raise ValueError(
            "relative_bias.table: expected an odd number of columns, one per distance from "
            f"-C//2 to C//2, got {table.shape[1]}. For T5 buckets pass kind='t5'."
        )
    exact = table.shape[1] // (4 if bidirectional else 2)
    if kind == "t5" and not 1 <= exact < max_distance:
        raise ValueError(
            f"relative_bias: expected 1 <= {exact} exact buckets < max_distance, got "
            f"{table.shape[1]} buckets and max_distance={max_distance}."
        )
    return RelativeBias(table, kind, bidirectional, max_distance)


def t5_bucket(
    distance: Array, *, num_buckets: int, bidirectional: bool, max_distance: int
) -> Array:
    """Returns T5's bucket of relative positions: exact when near, logarithmic when far.

    Source: Raffel et al. (2020), section 2.1.

    Args:
      distance: integer `k_idx - q_idx`, any shape.
      num_buckets: number of buckets.
      bidirectional: half the buckets for keys after the query.
      max_distance: distances from here on share the last bucket.

    Returns:
      int32 buckets in `[0, num_buckets)`, of the same shape.
    """
    offset = jnp.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        offset = jnp.where(distance > 0, num_buckets, 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = num_buckets // 2
    far = jnp.maximum(distance, exact).astype(jnp.float32)
    steps = (num_buckets - exact) * jnp.log(far / exact) / np.log(max_distance / exact)
    far_bucket = jnp.minimum(exact + steps.astype(jnp.int32), num_buckets - 1)
    return (offset + jnp.where(distance < exact, distance, far_bucket)).astype(jnp.int32)


@_pytree("activation")
class Activated(ScoreMod):
    """See `activated`."""

    per_key: Array | None
    bias: Array | None
    activation: str

    def operands(self, sizes: Mapping[str, int]) -> tuple[Operand, ...]:
        found = []
        if self.per_key is not None:
            found.append(declare("activated.per_key", self.per_key, "S"))
        if self.bias is not None and len(self.bias.shape):
            found.append(declare("activated.bias", self.bias, "N"))
        return tuple(found)

    def apply(self, score: Array, index: Index, *tiles: Array) -> Array:
        for tile in tiles:
            score = score + tile.astype(score.dtype)
        if self.bias is not None and not len(self.bias.shape):
            score = score + self.bias.astype(score.dtype)
        return _ACTIVATIONS[self.activation](score)


def activated(
    activation: Activation = "sigmoid",
    *,
    per_key: Array | None = None,
    bias: float | Array | None = None,
) -> Activated:
    """Passes scores through an activation: `sigma(score + per_key + bias)`.

    With `per_key = h @ v` this is the general score `softmax(sigma(q.k + v.h + b_a))`. Pass
    `scale=1.0` to `attention` for an unscaled dot product.

    Args:
      activation: `identity`, `sigmoid`, `tanh` or `relu`.
      per_key: float array `[S]`, `[B, S]` or `[B, N, S]`, added to the scores of each key.
      bias: a number, or a float array `[]`, `[N]` or `[B, N]`.

    Returns:
      The score_mod.

    Raises:
      ValueError: for an unknown activation or an array of another shape.
    """
    if activation not in _ACTIVATIONS:
        known = ", ".join(sorted(_ACTIVATIONS))
        raise ValueError(f"activated.activation: expected one of {known}; got {activation!r}.")
    if per_key is not None:
        _check_floats("activated.per_key", per_key)
    if isinstance(bias, int | float):
        bias = jnp.asarray(bias, jnp.float32)
    if bias is not None:
        _check_floats("activated.bias", bias)
    result = Activated(per_key, bias, activation)
    result.operands({})
    return result


@_pytree("fn")
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
        the structure it was passed in; every tile broadcasts against `score`.
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


def _check_floats(name: str, x: Any) -> Array:
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        raise ValueError(f"{name}: expected a float array, got {type(x).__name__}.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name}: expected a float array, got dtype {x.dtype}.")
    return x


def _positive_scalar(name: str, x: Any) -> Array:
    if isinstance(x, int | float | np.number) and not isinstance(x, bool):
        if not (np.isfinite(x) and x > 0):
            raise ValueError(f"{name}: expected a positive finite number, got {x!r}.")
        return jnp.asarray(x, jnp.float32)
    _check_floats(name, x)
    if len(x.shape):
        raise ValueError(f"{name}: expected a scalar, got shape {tuple(x.shape)}.")
    return x
