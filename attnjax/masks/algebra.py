"""Masks as values: leaves, `& | ~`, and the two questions every implementation asks of them.

A mask answers for single positions (`Mask.at`) and for blocks of positions (`Mask.blocks`), and
never holds an array over T times S unless it was given one. It is a pytree: its arrays may be
traced, its structure and its Python numbers are static.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from attnjax.masks.blocks import Bounds, Grid, classify
from attnjax.operands import Fetch, Operand, gather
from attnjax.typing import Index, is_concrete


class Mask:
    """Base of all masks. True means: this query may attend to this key.

    Combine with `&`, `|` and `~`. A bool array on either side is taken as `Dense`.
    """

    _fields: ClassVar[tuple[str, ...]] = ()
    # Without this, `numpy_array & mask` would broadcast the operator over the array's elements.
    __array_priority__ = 1000
    __array_ufunc__ = None
    _dynamic: tuple[str, ...]

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_pytree_with_keys(
            cls, cls._flatten_with_keys, cls._unflatten, cls._flatten
        )

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)
        dynamic = tuple(n for n in self._fields if _is_dynamic(values[n]))
        object.__setattr__(self, "_dynamic", dynamic)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable; make a new mask instead.")

    def _flatten(self) -> tuple[tuple[Any, ...], Any]:
        static = tuple((n, getattr(self, n)) for n in self._fields if n not in self._dynamic)
        return tuple(getattr(self, n) for n in self._dynamic), (self._dynamic, static)

    def _flatten_with_keys(self) -> tuple[tuple[Any, ...], Any]:
        children, aux = self._flatten()
        keys = (jax.tree_util.GetAttrKey(n) for n in self._dynamic)
        return tuple(zip(keys, children, strict=True)), aux

    @classmethod
    def _unflatten(cls, aux: Any, children: Any) -> Mask:
        # No validation: JAX passes placeholders through here.
        self = object.__new__(cls)
        dynamic, static = aux
        for name, value in (*static, *zip(dynamic, children, strict=True)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_dynamic", dynamic)
        return self

    def __and__(self, other: Mask | Array) -> Mask:
        return And(self, as_mask(other))

    def __rand__(self, other: Array) -> Mask:
        return And(as_mask(other), self)

    def __or__(self, other: Mask | Array) -> Mask:
        return Or(self, as_mask(other))

    def __ror__(self, other: Array) -> Mask:
        return Or(as_mask(other), self)

    def __invert__(self) -> Mask:
        return Not(self)

    def __bool__(self) -> bool:
        raise ValueError(
            f"The truth of the mask {self!r} is not defined. Combine masks with &, | and ~ "
            "instead of `and`, `or` and `not`."
        )

    def __repr__(self) -> str:
        shown = (f"{n}={_show(getattr(self, n))}" for n in self._fields)
        return f"{type(self).__name__}({', '.join(shown)})"

    def operands(self) -> tuple[Operand, ...]:
        """Returns the arrays that this mask looks up by position, in order of evaluation."""
        return ()

    def allowed(self, index: Index, *tiles: Array) -> Array:
        """Evaluates this mask on one tile.

        Args:
          index: global positions that broadcast against each other.
          *tiles: the parts of `operands()` that belong to the tile.

        Returns:
          A bool array of the index's broadcast shape, or one that broadcasts to it.
        """
        raise NotImplementedError

    def bounds(self, grid: Grid) -> Bounds:
        """Bounds this mask on every block of a grid: is any position allowed, are all."""
        raise NotImplementedError

    def offsets(self) -> tuple[float, float]:
        """Bounds `k_idx - q_idx` of every pair that this mask may allow, by its Python numbers.

        Returns:
          The lowest and the highest, infinite where there is no bound or it is not known.
        """
        return -math.inf, math.inf

    def at(self, b: Array, h: Array, q_idx: Array, k_idx: Array) -> Array:
        """Evaluates the mask elementwise.

        Args:
          b: batch indices, integers.
          h: query head indices, integers.
          q_idx: query positions, integers.
          k_idx: key positions, integers; all four broadcast against each other.

        Returns:
          A bool array of their broadcast shape.
        """
        index = Index(*(jnp.asarray(i) for i in (b, h, q_idx, k_idx)))
        shape = jnp.broadcast_shapes(*(i.shape for i in index))
        return jnp.broadcast_to(evaluate(self, index, gather(index)), shape)

    def blocks(self, T: int, S: int, block_q: int = 512, block_k: int = 512) -> Array:
        """Classifies every block of queries and keys, in time and memory O(blocks).

        The answer is sound: a block that holds an allowed position is never called EMPTY, one that
        holds a forbidden position never FULL. Concrete masks are classified on the host by NumPy,
        traced ones inside the trace.

        Args:
          T: number of queries.
          S: number of keys.
          block_q: queries in a block.
          block_k: keys in a block.

        Returns:
          int8 `[B|1, N|1, ceil(T / block_q), ceil(S / block_k)]` of EMPTY, PARTIAL and FULL.
        """
        for name, value in (("T", T), ("S", S), ("block_q", block_q), ("block_k", block_k)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a positive integer, got {value!r}.")
        return classify(self, Grid(T, S, block_q, block_k, host=is_concrete(*self.leaves())))

    def leaves(self) -> list[Any]:
        """Returns the arrays inside this mask."""
        return jax.tree.leaves(self)


def evaluate(mask: Mask, index: Index, fetch: Fetch) -> Array:
    """Evaluates a mask on a tile, fetching its operands in the order of `Mask.operands`."""
    match mask:
        case And():
            return evaluate(mask.left, index, fetch) & evaluate(mask.right, index, fetch)
        case Or():
            return evaluate(mask.left, index, fetch) | evaluate(mask.right, index, fetch)
        case Not():
            return ~evaluate(mask.inner, index, fetch)
    return mask.allowed(index, *(fetch(o) for o in mask.operands()))


def as_mask(value: Mask | Array | None) -> Mask:
    """Returns `value` as a mask: None is `Full()`, a bool array is `Dense`.

    Raises:
      ValueError: if it is neither, for example a float array.
    """
    if value is None:
        return Full()
    return value if isinstance(value, Mask) else Dense(value)


def walk(mask: Mask) -> Iterator[Mask]:
    """Yields the leaves of a mask expression from left to right."""
    children = [getattr(mask, n) for n in mask._fields if isinstance(getattr(mask, n), Mask)]
    if not children:
        yield mask
    for child in children:
        yield from walk(child)


class _Binary(Mask):
    _fields = ("left", "right")
    left: Mask
    right: Mask
    _symbol: ClassVar[str]
    _combine: ClassVar[Callable[[Any, Any], Any]]

    def __init__(self, left: Mask, right: Mask) -> None:
        self._set(left=left, right=right)

    def __repr__(self) -> str:
        return f"({self.left!r} {self._symbol} {self.right!r})"

    def operands(self) -> tuple[Operand, ...]:
        return self.left.operands() + self.right.operands()

    def bounds(self, grid: Grid) -> Bounds:
        left, right, combine = self.left.bounds(grid), self.right.bounds(grid), type(self)._combine
        return Bounds(combine(left.some, right.some), combine(left.all, right.all))


class And(_Binary):
    """Both masks allow it. Written `left & right`."""

    _symbol = "&"
    _combine = operator.and_

    def offsets(self) -> tuple[float, float]:
        left, right = self.left.offsets(), self.right.offsets()
        return max(left[0], right[0]), min(left[1], right[1])


class Or(_Binary):
    """Either mask allows it. Written `left | right`."""

    _symbol = "|"
    _combine = operator.or_

    def offsets(self) -> tuple[float, float]:
        left, right = self.left.offsets(), self.right.offsets()
        return min(left[0], right[0]), max(left[1], right[1])


class Not(Mask):
    """The mask forbids it. Written `~mask`."""

    _fields = ("inner",)
    inner: Mask

    def __init__(self, inner: Mask) -> None:
        self._set(inner=inner)

    def __repr__(self) -> str:
        return f"~{self.inner!r}"

    def operands(self) -> tuple[Operand, ...]:
        return self.inner.operands()

    def bounds(self, grid: Grid) -> Bounds:
        inner = self.inner.bounds(grid)
        return Bounds(~inner.all, ~inner.some)


class Full(Mask):
    """Every query attends to every key."""

    def __init__(self) -> None:
        self._set()

    def allowed(self, index: Index, *tiles: Array) -> Array:
        return jnp.ones((), bool)

    def bounds(self, grid: Grid) -> Bounds:
        return Bounds(grid.true, grid.true)


class Dense(Mask):
    """A bool array, True = attend.

    Args:
      array: bool, broadcastable to `[B, N, T, S]`; its rank may be lower, as in NumPy.

    Raises:
      ValueError: if the array is not bool or has more than four dimensions.
    """

    _fields = ("array",)
    array: Array

    def __init__(self, array: Array) -> None:
        if not hasattr(array, "dtype") or not hasattr(array, "shape"):
            raise ValueError(
                "mask: expected a Mask or a bool array broadcastable to [B, N, T, S], "
                f"got {type(array).__name__}."
            )
        if array.dtype != jnp.bool_:
            raise ValueError(
                f"mask: expected a bool array (True = attend), got dtype {array.dtype}. "
                "For a 0/1 mask pass `mask.astype(bool)`; for an additive bias pass "
                "`score_mod=attnjax.bias(array)`."
            )
        if len(array.shape) > 4:
            raise ValueError(
                "mask: expected at most 4 dimensions, broadcastable to [B, N, T, S], "
                f"got shape {tuple(array.shape)}."
            )
        self._set(array=array)

    def operands(self) -> tuple[Operand, ...]:
        return (Operand("mask", self.array, "BNTS"[4 - len(self.array.shape) :]),)

    def allowed(self, index: Index, *tiles: Array) -> Array:
        return tiles[0]

    def bounds(self, grid: Grid) -> Bounds:
        (array,) = self.operands()
        return Bounds(grid.max(array), grid.min(array))


def _is_dynamic(value: object) -> bool:
    if isinstance(value, Mask | jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        return True
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(hasattr(x, "dtype") for x in leaves)


def _show(value: object) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    return getattr(value, "__qualname__", repr(value))
