"""Attention of new queries to a cache of keys and values."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from attnjax.api import ScoreMods
from attnjax.masks import Causal, Mask, as_mask
from attnjax.ops.decode import dispatch
from attnjax.ops.decode.layout import Contiguous, Paged
from attnjax.ops.decode.problem import DecodeProblem
from attnjax.scores import ScoreFn, ScoreMod, as_score_mods
from attnjax.typing import is_concrete
from attnjax.validate import check_precision, check_scale, check_sinks, check_stats, operands_of


def decode(
    q: Any,
    k: Any,
    v: Any,
    *,
    length: int | Int[Array, "*B"],
    layout: Contiguous | None = None,
    k_scale: Float[Array, "B S K"] | None = None,
    v_scale: Float[Array, "B S K"] | None = None,
    mask: Mask | Array | None = None,
    score_mod: ScoreMods | None = None,
    scale: float | Array | None = None,
    sinks: Float[Array, "N"] | None = None,
    precision: Any = None,
    stats: bool = False,
    implementation: str | None = None,
) -> Any:
    """Computes attention of the last positions of a sequence to all of it, from a cache.

    Gives the last T rows of `attnjax.attention` over the whole sequence. Reads keys and values
    once where they lie, if the heads have few queries; memory is `O(T * S)` for each head beside
    the cache. Made for inference: gradients are right, but computed without care for speed.

    Args:
      q: queries of the last T positions, `length - T` to `length - 1`.
      k: cache of keys, the new ones written: `[B, S, K, H]`, or pages `[P, page_size, K, H]`.
        Floats in the dtype of `q`, or eight bits with `k_scale`. What it holds beyond `length` has
        no effect, but NaNs and infinities take time.
      v: cache of values, `[B, S, K, D]` or `[P, page_size, K, D]`, likewise.
      length: positions in the cache, the new ones included: an integer, or an array `[]` or `[B]`.
      layout: where the cache keeps each position: `Contiguous()` (or None), `Ring()` or
        `Paged(table)`.
      k_scale: factor of each key, in the layout of `k` without its last axis; see `quantize_kv`.
      v_scale: factor of each value.
      mask: as in `attention`; None is `Causal()`. Its arrays along keys are as long as the capacity
        of the cache. Those along queries have an entry for each of the T queries, or are as long as
        the capacity too and looked up by position.
      score_mod: as in `attention`, its arrays likewise.
      scale: as in `attention`.
      sinks: as in `attention`.
      precision: as in `attention`.
      stats: also return `AttentionStats` of these rows.
      implementation: a name never falls back; None chooses. `xla` runs everywhere; `tpu` is a
        kernel that reads only the blocks of the cache that hold something and that the mask may
        allow. It reads them in place if heads are at least 128 wide.

    Returns:
      The output `[B, T, N, D]` in the dtype of `q`; with `stats=True`, a pair of it and
      `AttentionStats`. Where a traced length is below T or beyond the capacity, they are NaN.

    Raises:
      ValueError: if an argument is wrong, or if a ring is too short for the mask.
      NotImplementedError: if the named implementation can't do what was asked.
    """
    layout = Contiguous() if layout is None else layout
    if not isinstance(layout, Contiguous):
        raise ValueError(
            "layout: expected attnjax.Contiguous(), Ring() or Paged(table), "
            f"got {type(layout).__name__}."
        )
    q, k, v = (jnp.asarray(x) if isinstance(x, np.ndarray) else x for x in (q, k, v))
    _check_cache(q, k, v, layout)
    (B, T, N, H), capacity = q.shape, layout.capacity(k)
    for name, factors, cache in (("k", k_scale, k), ("v", v_scale, v)):
        _check_factors(name, factors, cache, q.dtype)
    mask = Causal() if mask is None else as_mask(mask)
    mods = as_score_mods(score_mod)
    _check_reach(layout, mask, mods, {"B": B, "N": N, "T": capacity, "S": capacity}, T)
    problem = DecodeProblem(
        q,
        k,
        v,
        k_scale,
        v_scale,
        _lengths(length, B, T, None if layout.endless else capacity),
        layout,
        mask,
        mods,
        check_scale(scale, H, jnp.promote_types(q.dtype, jnp.float32)),
        check_sinks(sinks, N),
        check_precision(precision),
        check_stats(stats),
    )
    out, statistics = dispatch.attend(problem, implementation)
    return out if statistics is None else (out, statistics)


def _check_cache(q: Any, k: Any, v: Any, layout: Contiguous) -> None:
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


def _check_factors(name: str, factors: Any, cache: Any, dtype: Any) -> None:
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


def _check_reach(
    layout: Contiguous,
    mask: Mask,
    mods: tuple[ScoreMod | ScoreFn, ...],
    sizes: dict[str, int],
    T: int,
) -> None:
    def check() -> None:
        for operand in operands_of(mask, mods, sizes):
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


def _lengths(length: Any, B: int, T: int, room: int | None) -> Array:
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
