"""The mask leaves that follow from positions, lengths and ids."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from attnjax.masks.algebra import Mask
from attnjax.masks.blocks import Bounds, Grid
from attnjax.operands import Operand, declare
from attnjax.typing import Index


class Causal(Mask):
    """A query sees the keys up to its own position: `q_idx + offset >= k_idx`.

    Args:
      offset: how far the queries' positions lie behind the keys'; an integer, or an integer array
        `[]` or `[B]`, which may be traced. `Causal(offset=S - T)` aligns the last query with the
        last key, as in decoding.
    """

    _fields = ("offset",)
    offset: int | Array

    def __init__(self, offset: int | Array = 0) -> None:
        self._set(offset=_number("Causal.offset", offset))

    def operands(self) -> tuple[Operand, ...]:
        return (_per_batch("Causal.offset", self.offset),)

    def allowed(self, index: Index, *tiles: Array) -> Array:
        return index.q + tiles[0] >= index.k

    def bounds(self, grid: Grid) -> Bounds:
        offset = grid.value(self.offset)
        return Bounds(grid.q_hi + offset >= grid.k_lo, grid.q_lo + offset >= grid.k_hi)

    def offsets(self) -> tuple[float, float]:
        return -math.inf, _known(self.offset)


class Window(Mask):
    """A query sees `left` keys before its own position and `right` after it.

    `q_idx - left <= k_idx <= q_idx + right`. None leaves that side open.

    Args:
      left: keys to the left, an integer, an integer array `[]` or `[B]`, or None.
      right: keys to the right, likewise.
    """

    _fields = ("left", "right")
    left: int | Array | None
    right: int | Array | None

    def __init__(self, left: int | Array | None, right: int | Array | None) -> None:
        self._set(
            left=None if left is None else _number("Window.left", left),
            right=None if right is None else _number("Window.right", right),
        )

    def operands(self) -> tuple[Operand, ...]:
        sides = (("Window.left", self.left), ("Window.right", self.right))
        return tuple(_per_batch(name, x) for name, x in sides if x is not None)

    def allowed(self, index: Index, *tiles: Array) -> Array:
        sides = iter(tiles)
        result = jnp.ones((), bool)
        if self.left is not None:
            result &= index.k >= index.q - next(sides)
        if self.right is not None:
            result &= index.k <= index.q + next(sides)
        return result

    def bounds(self, grid: Grid) -> Bounds:
        some = every = grid.true
        if self.left is not None:
            left = grid.value(self.left)
            some = some & (grid.k_hi >= grid.q_lo - left)
            every = every & (grid.k_lo >= grid.q_hi - left)
        if self.right is not None:
            right = grid.value(self.right)
            some = some & (grid.k_lo <= grid.q_hi + right)
            every = every & (grid.k_hi <= grid.q_lo + right)
        return Bounds(some, every)

    def offsets(self) -> tuple[float, float]:
        return -_known(self.left), _known(self.right)


class Prefix(Mask):
    """Every query sees the first `length` keys: `k_idx < length`.

    Args:
      length: an integer, or an integer array `[]` or `[B]`, which may be traced.
    """

    _fields = ("length",)
    length: int | Array

    def __init__(self, length: int | Array) -> None:
        self._set(length=_number("Prefix.length", length))

    def operands(self) -> tuple[Operand, ...]:
        return (_per_batch("Prefix.length", self.length),)

    def allowed(self, index: Index, *tiles: Array) -> Array:
        return index.k < tiles[0]

    def bounds(self, grid: Grid) -> Bounds:
        length = grid.value(self.length)
        return Bounds(grid.k_lo < length, grid.k_hi < length)


class Lengths(Mask):
    """Both positions lie inside their sequences: `q_idx < q` and `k_idx < kv`.

    Args:
      q: query lengths, an integer, an integer array `[]` or `[B]`, or None for all queries.
      kv: key lengths, likewise.
    """

    _fields = ("q", "kv")
    q: int | Array | None
    kv: int | Array | None

    def __init__(self, q: int | Array | None, kv: int | Array | None) -> None:
        self._set(
            q=None if q is None else _number("Lengths.q", q),
            kv=None if kv is None else _number("Lengths.kv", kv),
        )

    def operands(self) -> tuple[Operand, ...]:
        sides = (("Lengths.q", self.q), ("Lengths.kv", self.kv))
        return tuple(_per_batch(name, x) for name, x in sides if x is not None)

    def allowed(self, index: Index, *tiles: Array) -> Array:
        sides = iter(tiles)
        result = jnp.ones((), bool)
        if self.q is not None:
            result &= index.q < next(sides)
        if self.kv is not None:
            result &= index.k < next(sides)
        return result

    def bounds(self, grid: Grid) -> Bounds:
        some = every = grid.true
        if self.q is not None:
            q = grid.value(self.q)
            some, every = some & (grid.q_lo < q), every & (grid.q_hi < q)
        if self.kv is not None:
            kv = grid.value(self.kv)
            some, every = some & (grid.k_lo < kv), every & (grid.k_hi < kv)
        return Bounds(some, every)


class Segments(Mask):
    """A query sees the keys of its own segment: equal ids.

    Args:
      q_ids: integer ids of the queries, `[T]` or `[B, T]`; may be traced.
      kv_ids: integer ids of the keys, `[S]` or `[B, S]`; None takes `q_ids`.
    """

    _fields = ("q_ids", "kv_ids")
    q_ids: Array
    kv_ids: Array | None

    def __init__(self, q_ids: Array, kv_ids: Array | None = None) -> None:
        _ids("Segments.q_ids", q_ids, "T")
        if kv_ids is not None:
            _ids("Segments.kv_ids", kv_ids, "S")
        self._set(q_ids=q_ids, kv_ids=kv_ids)

    def operands(self) -> tuple[Operand, ...]:
        kv_ids = self.q_ids if self.kv_ids is None else self.kv_ids
        name = "Segments.q_ids (as kv_ids)" if self.kv_ids is None else "Segments.kv_ids"
        return (declare("Segments.q_ids", self.q_ids, "T"), declare(name, kv_ids, "S"))

    def allowed(self, index: Index, *tiles: Array) -> Array:
        return tiles[0] == tiles[1]

    def bounds(self, grid: Grid) -> Bounds:
        q, k = self.operands()
        q_min, q_max, k_min, k_max = grid.min(q), grid.max(q), grid.min(k), grid.max(k)
        some = (q_min <= k_max) & (k_min <= q_max)
        return Bounds(some, (q_min == k_max) & (k_min == q_max))


class Strided(Mask):
    """A query sees every `stride`-th key, counted from its own: `(q_idx - k_idx) % stride == 0`.

    Source: the strided pattern of Child et al., "Generating Long Sequences with Sparse
    Transformers" (2019).

    Args:
      stride: a positive integer.
    """

    _fields = ("stride",)
    stride: int

    def __init__(self, stride: int) -> None:
        if isinstance(stride, bool) or not isinstance(stride, int | np.integer) or stride < 1:
            raise ValueError(f"Strided.stride: expected a positive integer, got {stride!r}.")
        self._set(stride=int(stride))

    def allowed(self, index: Index, *tiles: Array) -> Array:
        return (index.q - index.k) % self.stride == 0

    def bounds(self, grid: Grid) -> Bounds:
        # q - k takes every value from lowest to highest, so a multiple of the stride is among them
        # exactly if the floors differ.
        lowest, highest = grid.q_lo - grid.k_hi, grid.q_hi - grid.k_lo
        some = highest // self.stride > (lowest - 1) // self.stride
        return Bounds(some, grid.true if self.stride == 1 else ~grid.true)


class Where(Mask):
    """Your own rule.

    Args:
      fn: `fn(b, h, q_idx, k_idx, *declared) -> bool`, pure jnp, elementwise on index arrays of any
        broadcastable shapes; positions are global. `declared` holds the tiles of `per_query`, then
        of `per_key`, each given only if it was passed, in the structure it was passed in.
      per_query: array or pytree of arrays `[T]`, `[B, T]` or `[B, N, T]` that `fn` needs. TPU
        kernels cannot index an array by position, so declare it here rather than close over it.
      per_key: array or pytree of arrays `[S]`, `[B, S]` or `[B, N, S]`, likewise.
      block_rule: `block_rule(q_lo, q_hi, k_lo, k_hi) -> (some, all)` on inclusive position bounds,
        bool arrays that say whether any, and whether every, position of a block is allowed.
        Without it every block counts as partial and is visited.
    """

    _fields = ("fn", "per_query", "per_key", "block_rule")
    fn: Callable[..., Array]
    per_query: Any
    per_key: Any
    block_rule: Callable[..., tuple[Array, Array]] | None

    def __init__(
        self,
        fn: Callable[..., Array],
        per_query: Any = None,
        per_key: Any = None,
        block_rule: Callable[..., tuple[Array, Array]] | None = None,
    ) -> None:
        if not callable(fn):
            raise ValueError(
                "Where.fn: expected a function fn(b, h, q_idx, k_idx, ...) -> bool, "
                f"got {type(fn).__name__}."
            )
        if block_rule is not None and not callable(block_rule):
            raise ValueError(
                "Where.block_rule: expected a function block_rule(q_lo, q_hi, k_lo, k_hi) -> "
                f"(some, all) or None, got {type(block_rule).__name__}."
            )
        self._set(fn=fn, per_query=per_query, per_key=per_key, block_rule=block_rule)
        self.operands()

    def operands(self) -> tuple[Operand, ...]:
        sides = (("Where.per_query", self.per_query, "T"), ("Where.per_key", self.per_key, "S"))
        return tuple(
            declare(name, leaf, axis) for name, x, axis in sides for leaf in jax.tree.leaves(x)
        )

    def allowed(self, index: Index, *tiles: Array) -> Array:
        remaining = iter(tiles)
        declared = [
            jax.tree.map(lambda _: next(remaining), x)
            for x in (self.per_query, self.per_key)
            if x is not None
        ]
        result: Any = self.fn(*index, *declared)
        if not isinstance(result, bool) and getattr(result, "dtype", None) != jnp.bool_:
            got = getattr(result, "dtype", type(result).__name__)
            raise ValueError(f"Where.fn: expected a bool result, got {got}.")
        shape, tile = jnp.shape(result), jnp.broadcast_shapes(*(i.shape for i in index))
        if len(shape) > len(tile) or any(
            n not in (1, m) for n, m in zip(shape[::-1], tile[::-1], strict=False)
        ):
            raise ValueError(
                f"Where.fn: expected a result that broadcasts to its index arrays' shape {tile}, "
                f"got shape {shape}. Compute it elementwise from b, h, q_idx and k_idx."
            )
        return jnp.asarray(result)

    def bounds(self, grid: Grid) -> Bounds:
        if self.block_rule is None:
            return Bounds(grid.true, ~grid.true)
        some, every = self.block_rule(grid.q_lo, grid.q_hi, grid.k_lo, grid.k_hi)
        return Bounds(grid.xp.asarray(some, bool), grid.xp.asarray(every, bool))


def _ids(name: str, ids: Any, axis: str) -> None:
    _integers(name, ids)
    if len(ids.shape) not in (1, 2):
        raise ValueError(f"{name}: expected shape [{axis}] or [B, {axis}], got {tuple(ids.shape)}.")


def _integers(name: str, x: Any) -> None:
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        raise ValueError(f"{name}: expected an integer array, got {type(x).__name__}.")
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"{name}: expected an integer array, got dtype {x.dtype}.")
    if isinstance(x, np.ndarray) and x.size and x.dtype.itemsize >= 4:
        # JAX would wrap them to 32 bits, and unequal ids would become equal.
        for extreme in (int(x.min()), int(x.max())):
            if not -(2**31) <= extreme < 2**31:
                raise ValueError(f"{name}: expected values that fit into int32, got {extreme}.")


def _number(name: str, x: Any) -> Any:
    """Checks an integer, or an integer array `[]` or `[B]`."""
    if isinstance(x, int | np.integer) and not isinstance(x, bool):
        # Positions are int32: a larger number would wrap where it is added to one.
        if abs(int(x)) > 2**30:
            raise ValueError(
                f"{name}: expected an integer within +-2**30, got {x}. "
                "To leave a side open, pass None where it is allowed, or leave the mask away."
            )
        return int(x)
    if isinstance(x, bool) or not hasattr(x, "dtype"):
        raise ValueError(f"{name}: expected an integer or an integer array, got {x!r}.")
    _integers(name, x)
    if len(x.shape) > 1:
        raise ValueError(f"{name}: expected shape [] or [B], got {tuple(x.shape)}.")
    return x


def _known(x: int | Array | None) -> float:
    return x if isinstance(x, int) else math.inf


def _per_batch(name: str, x: int | Array) -> Operand:
    array = jnp.asarray(x, jnp.int32) if isinstance(x, int) else x
    return Operand(name, array, "B" if len(array.shape) else "")
