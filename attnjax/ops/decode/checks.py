"""Checks of what a decoding call is given; all raise ValueError."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from attnjax.masks import Mask
from attnjax.ops.decode.layout import Contiguous, Paged
from attnjax.scores import ScoreFn, ScoreMod
from attnjax.typing import is_concrete


def check_cache(q: Any, k: Any, v: Any, layout: Contiguous) -> None:
    """Checks the shapes of queries and caches, and the table of a paged one."""
    outer = "P, page_size" if isinstance(layout, Paged) else "B, S"
    wanted = {"q": "[B, T, N, H]", "k": f"[{outer}, K, H]", "v": f"[{outer}, K, D]"}
    for (name, want), x in zip(wanted.items(), (q, k, v), strict=True):
        if not hasattr(x, "shape") or not hasattr(x, "dtype"):
            raise ValueError(f"{name}: expected an array {want}, got {type(x).__name__}.")
        if len(x.shape) != 4 or 0 in x.shape:
            raise ValueError(
                f"{name}: expected an array {want} without an empty axis, got {tuple(x.shape)}."
            )
    if not jnp.issubdtype(q.dtype, jnp.floating) or q.dtype.itemsize == 1:
        raise ValueError(f"q: expected floats of 16 bits or more, got dtype {q.dtype}.")
    shapes = f"shapes: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v: expected {k.shape[:3]} before its last axis, as in k; {shapes}.")
    if k.shape[3] != q.shape[3]:
        raise ValueError(f"k: expected the head width H={q.shape[3]} of q; {shapes}.")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"q: expected a number of heads that is a multiple of k's; {shapes}.")
    if not isinstance(layout, Paged):
        if k.shape[0] != q.shape[0]:
            raise ValueError(f"k: expected the batch size B={q.shape[0]} of q; {shapes}.")
        return
    table = layout.table
    if not hasattr(table, "dtype") or not jnp.issubdtype(table.dtype, jnp.integer):
        raise ValueError("Paged.table: expected an integer array [B, M].")
    if len(table.shape) != 2 or table.shape[0] != q.shape[0] or not table.shape[1]:
        raise ValueError(
            f"Paged.table: expected shape [B={q.shape[0]}, M], got {tuple(table.shape)}."
        )


def check_factors(name: str, factors: Any, cache: Any, dtype: Any) -> None:
    """Checks the dtype of a cache, and the factors of one in eight bits."""
    if factors is None:
        if cache.dtype != dtype:
            raise ValueError(
                f"{name}: expected the dtype of q, {dtype}, got {cache.dtype}. An eight-bit cache "
                f"needs {name}_scale, as attnjax.quantize_kv gives it."
            )
        return
    if not hasattr(factors, "dtype") or not jnp.issubdtype(factors.dtype, jnp.floating):
        raise ValueError(f"{name}_scale: expected a float array or None, got {factors!r}.")
    if tuple(factors.shape) != tuple(cache.shape[:3]):
        raise ValueError(
            f"{name}_scale: expected shape {tuple(cache.shape[:3])}, that of {name} without its "
            f"last axis, got {tuple(factors.shape)}."
        )
    if cache.dtype.itemsize != 1:
        raise ValueError(
            f"{name}_scale: expected {name} in eight bits, got dtype {cache.dtype}. Pass no "
            f"{name}_scale, or quantise {name}."
        )


def check_reach(
    layout: Contiguous,
    mask: Mask,
    mods: tuple[ScoreMod | ScoreFn, ...],
    sizes: dict[str, int],
    T: int,
) -> None:
    """Checks arrays along positions, and that a ring reaches back as far as the mask."""

    def check() -> None:
        found = [o for m in mods if isinstance(m, ScoreMod) for o in m.operands(sizes)]
        for operand in (*mask.operands(), *found):
            own = operand.size("T") == T > 1  # an entry for each query at hand
            along = operand.size("S") > 1 or (operand.size("T") > 1 and not own)
            if layout.endless and along:
                raise ValueError(
                    f"{operand.name}: expected no array along positions, which have no end in a "
                    f"ring, got shape {tuple(operand.array.shape)}. Use another layout."
                )
            operand.check({**sizes, "T": T} if own else sizes)

    jax.eval_shape(check)
    capacity = sizes["S"]
    lowest, _ = mask.offsets()
    if capacity < T:
        raise ValueError(f"q: expected at most the cache's {capacity} positions, got T={T}.")
    if layout.endless and lowest < T - capacity:
        raise ValueError(
            f"mask: expected one that reaches back at most {capacity - T} positions, for a ring of "
            f"{capacity} slots and T={T} queries, such as Causal() & Window({capacity - T}, 0); "
            f"got {mask!r}."
        )


def lengths_of(length: Any, B: int, T: int, room: int | None) -> Array:
    """Returns lengths as an int32 array `[1]` or `[B]`."""
    array = np.asarray(length) if isinstance(length, int | np.integer) else length
    if (
        isinstance(length, bool)
        or not hasattr(array, "dtype")
        or not jnp.issubdtype(array.dtype, jnp.integer)
        or tuple(array.shape) not in ((), (B,))
    ):
        got = getattr(length, "shape", length)
        raise ValueError(f"length: expected an integer or an integer array [B={B}], got {got!r}.")
    if is_concrete(array):
        known = np.asarray(array)
        if np.any(known < T) or (room is not None and np.any(known > room)):
            most = "" if room is None else f" and at most the capacity {room}"
            raise ValueError(f"length: expected at least T={T}{most}, got {length}.")
    return jnp.atleast_1d(jnp.asarray(array, jnp.int32))
