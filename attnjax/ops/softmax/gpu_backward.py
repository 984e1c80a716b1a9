"""The backward kernels: one for queries, which visits keys, and one for keys, which visits queries.

Scores are computed again from the logsumexp. Nothing is added up in global memory, so the same
inputs give the same bits. Source: Dao, "FlashAttention-2" (2023).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from attnjax.ops.kernels import gpu_parts
from attnjax.ops.kernels import mosaic_gpu as mgpu
from attnjax.ops.softmax.gpu_call import (
    HEAD_BITS,
    LOWEST,
    Inputs,
    Pass,
    Refs,
    Tables,
    hide,
    take_turns,
)


@dataclasses.dataclass(frozen=True)
class Backward:
    """What is static in a kernel.

    Attributes:
      view: tiles and programs.
      slots: buffers in the ring.
      only_scaled: whether scores are scaled dot products and nothing else.
      interpret: whether to run in the interpreter.
      sums: `kv`, or `k` or `v` alone: which cotangents the kernel for keys computes.
    """

    view: Pass
    slots: int
    only_scaled: bool
    interpret: bool
    sums: str = "kv"


class RowTerms(NamedTuple):
    """What the backward pass knows of each query, in whole blocks.

    Attributes:
      d_out: cotangent of the output, times a power of two that keeps products in range.
      logsumexp: in base 2; plus infinity where a row is empty, so that its weights vanish.
      delta: what all scores of a row have in common, times the same.
      d_entropy: cotangent of the entropy, times the same, or None.
      factors: what the gradients of queries, keys and values are multiplied by.
    """

    d_out: Float[Array, "B T N D"]
    logsumexp: Float[Array, "B N T"]
    delta: Float[Array, "B N T"]
    d_entropy: Float[Array, "B N T"] | None
    factors: Float[Array, "3"]


def _start(
    call: Backward, inputs: Inputs, rows: RowTerms, tables: Tables
) -> tuple[list[Array], Any]:
    named = {
        "q": inputs.q,
        "k": inputs.k,
        "v": inputs.v,
        "d_out": rows.d_out,
        "logsumexp": rows.logsumexp,
        "delta": rows.delta,
        "d_entropy": rows.d_entropy,
        "factors": rows.factors,
        "numbers": jnp.arange(max(inputs.q.shape[1], inputs.k.shape[1]), dtype=jnp.int32),
        "order": tables.rows.order,
        "counts": tables.rows.counts,
        "scores": tables.scores,
        "masks": tables.masks,
    }
    return jax.tree.flatten(named)


def d_queries(call: Backward, inputs: Inputs, rows: RowTerms, tables: Tables) -> Array:
    """Computes the cotangent of the queries, `[B, T', N, H]`.

    Args:
      call: what is static.
      inputs: queries, keys and values.
      rows: what is known of each query.
      tables: schedule by query and operands.

    Returns:
      The cotangent, in the dtype of the queries.
    """
    (B, _, N, H), dtype = inputs.q.shape, inputs.q.dtype
    t, W, slots = call.view.tile, call.view.groups, call.slots
    flat, structure = _start(call, inputs, rows, tables)

    def body(*refs: Any, **scratch: Any) -> None:
        given = jax.tree.unflatten(structure, refs[: len(flat)])
        _queries_kernel(call, given, refs[-1], scratch)

    body.__name__ = "attnjax_d_queries"
    (dq,) = mgpu.call(
        body,
        flat,
        out=[jax.ShapeDtypeStruct(inputs.q.shape, dtype)],
        scratch={
            "q": mgpu.matrix(W, t.block_q, H, dtype=dtype),
            "d_out": mgpu.matrix(W, t.block_q, H, dtype=dtype),
            "k": mgpu.matrix(slots, t.block_k, H, dtype=dtype),
            "v": mgpu.matrix(slots, t.block_k, H, dtype=dtype),
            "staging": mgpu.matrix(W, t.block_q, t.block_k, dtype=dtype)
            if call.interpret
            else None,
            "own": mgpu.barriers(W, 2),
            "ready": mgpu.barriers(slots, 2),
            "used": mgpu.barriers(slots, W),
        },
        grid=(N, tables.rows.order.shape[1], B),
        threads=W + 1,
        interpret=call.interpret,
    )
    return dq


def _queries_kernel(call: Backward, refs: Refs, out: Any, scratch: Refs) -> None:
    view = call.view
    t, W, slots = view.tile, view.groups, jnp.int32(call.slots)
    h, row, b = (jax.lax.axis_index(a) for a in "xyz")
    row = refs["order"].shape[1] - 1 - row
    group = jax.lax.axis_index("wg")
    at, full, visited = take_turns(refs["order"], refs["counts"], b, row)
    N, K, H = refs["q"].shape[2], refs["k"].shape[2], refs["q"].shape[3]
    kv = h if N == K else jax.lax.div(h, jnp.int32(N // K))

    @pl.when(group < W)
    def _() -> None:
        mgpu.set_registers(240, more=True)
        first = (row * W + group) * t.block_q
        span = pl.ds(first, t.block_q)
        q, d_out = scratch["q"].at[group], scratch["d_out"].at[group]
        for name in ("q", "d_out"):
            mgpu.copy_gmem_to_smem(
                refs[name].at[b, span, h], scratch[name].at[group], scratch["own"].at[group]
            )
        logsumexp = mgpu.load(refs["logsumexp"].at[b, h, span], mgpu.ROWS)
        delta = mgpu.load(refs["delta"].at[b, h, span], mgpu.ROWS)
        d_entropy = None
        if refs["d_entropy"] is not None:
            d_entropy = mgpu.load(refs["d_entropy"].at[b, h, span], mgpu.ROWS)
        of_rows = logsumexp, d_entropy
        mgpu.barrier_wait(scratch["own"].at[group])

        def visit(n: Array, dq: Array, *, partial: bool) -> Array:
            slot = jax.lax.rem(n, slots)
            k, v = scratch["k"].at[slot], scratch["v"].at[slot]
            place = gpu_parts.Place(
                b, h, first, refs["order"][at, row, n] * t.block_k, refs["numbers"]
            )
            mgpu.barrier_wait(scratch["ready"].at[slot])
            dots = mgpu.product(q, mgpu.transposed(k))
            spread = [None if x is None else mgpu.across(x, t.shape, 0) for x in of_rows]
            tile = _weights(call, refs, place, dots, spread, partial=partial)
            slope = mgpu.product(d_out, mgpu.transposed(v)) - mgpu.across(delta, t.shape, 0)
            d_dots = tile.d_dots(slope)
            dq = mgpu.accumulate(dq, d_dots.astype(q.dtype), k, _staging(scratch, group))
            mgpu.barrier_arrive(scratch["used"].at[slot])
            return dq

        dq = mgpu.full((t.block_q, H), 0.0, mgpu.TILE)
        dq = jax.lax.fori_loop(0, full, lambda n, c: visit(n, c, partial=False), dq)
        dq = jax.lax.fori_loop(full, visited, lambda n, c: visit(n, c, partial=True), dq)
        _write(out.at[b, span, h], dq * refs["factors"][0], q)

    @pl.when(group == W)
    def _() -> None:
        mgpu.set_registers(24, more=False)

        def fetch(n: Array, slot: Array) -> None:
            keys = (b, pl.ds(refs["order"][at, row, n] * t.block_k, t.block_k), kv)
            for name in "kv":
                mgpu.copy_gmem_to_smem(
                    refs[name].at[keys], scratch[name].at[slot], scratch["ready"].at[slot]
                )

        _feed(call.slots, visited, fetch, scratch["used"])


def d_keys(call: Backward, inputs: Inputs, rows: RowTerms, tables: Tables) -> tuple[Array, Array]:
    """Computes the cotangents of the keys and of the values, `[B, S', K, H]`.

    Args:
      call: what is static.
      inputs: queries, keys and values.
      rows: what is known of each query.
      tables: schedule by key and operands.

    Returns:
      The cotangents, in the dtype of the keys.
    """
    if call.view.crowded:
        # Both sums and the scores of a score_mod do not fit into the registers.
        alone = (dataclasses.replace(call, sums=name) for name in "kv")
        (dk,), (dv,) = (_d_keys(one, inputs, rows, tables) for one in alone)
    else:
        dk, dv = _d_keys(call, inputs, rows, tables)
    return dk, dv


def _d_keys(call: Backward, inputs: Inputs, rows: RowTerms, tables: Tables) -> Sequence[Array]:
    (B, _, K, H), dtype = inputs.k.shape, inputs.k.dtype
    t, W, slots = call.view.tile, call.view.groups, call.slots
    flat, structure = _start(call, inputs, rows, tables)

    def body(*refs: Any, **scratch: Any) -> None:
        given = jax.tree.unflatten(structure, refs[: len(flat)])
        _keys_kernel(call, given, refs[len(flat) :], scratch)

    body.__name__ = "attnjax_d_keys"
    return mgpu.call(
        body,
        flat,
        out=[jax.ShapeDtypeStruct(inputs.k.shape, dtype)] * len(call.sums),
        scratch={
            "k": mgpu.matrix(W, t.block_k, H, dtype=dtype),
            "v": mgpu.matrix(W, t.block_k, H, dtype=dtype),
            "q": mgpu.matrix(slots, t.block_q, H, dtype=dtype),
            "d_out": mgpu.matrix(slots, t.block_q, H, dtype=dtype),
            "logsumexp": mgpu.vector(slots, t.block_q),
            "delta": mgpu.vector(slots, t.block_q),
            "d_entropy": None if rows.d_entropy is None else mgpu.vector(slots, t.block_q),
            "staging": mgpu.matrix(W, t.block_k, t.block_q, dtype=dtype)
            if call.interpret
            else None,
            "own": mgpu.barriers(W, 2),
            "ready": mgpu.barriers(slots, 4 if rows.d_entropy is None else 5),
            "used": mgpu.barriers(slots, W),
        },
        grid=(K, tables.rows.order.shape[1], B),
        threads=W + 1,
        interpret=call.interpret,
    )


def _keys_kernel(call: Backward, refs: Refs, out: Any, scratch: Refs) -> None:
    view = call.view
    t, W, slots = view.tile, view.groups, jnp.int32(call.slots)
    kv, row, b = (jax.lax.axis_index(a) for a in "xyz")
    group = jax.lax.axis_index("wg")
    at, full, visited = take_turns(refs["order"], refs["counts"], b, row)
    N, K, H = refs["q"].shape[2], refs["k"].shape[2], refs["q"].shape[3]
    heads = N // K

    @pl.when(group < W)
    def _() -> None:
        mgpu.set_registers(240, more=True)
        first = (row * W + group) * t.block_k
        span = pl.ds(first, t.block_k)
        k, v = scratch["k"].at[group], scratch["v"].at[group]
        for name in "kv":
            mgpu.copy_gmem_to_smem(
                refs[name].at[b, span, kv], scratch[name].at[group], scratch["own"].at[group]
            )
        mgpu.barrier_wait(scratch["own"].at[group])

        def visit(m: Array, carry: Any, *, partial: bool) -> Any:
            sums = dict(carry)
            slot = jax.lax.rem(m, slots)
            q, d_out = scratch["q"].at[slot], scratch["d_out"].at[slot]
            g, i = _turn(refs, at, row, m)
            place = gpu_parts.Place(b, kv * heads + g, i * t.block_q, first, refs["numbers"])
            mgpu.barrier_wait(scratch["ready"].at[slot])
            dots = mgpu.product(k, mgpu.transposed(q))
            of_rows = (scratch[name] for name in ("logsumexp", "d_entropy"))
            spread = [
                None if x is None else mgpu.across(mgpu.load(x.at[slot], mgpu.COLUMNS), t.shape, 1)
                for x in of_rows
            ]
            tile = _weights(call, refs, place, dots, spread, partial=partial)
            staging = _staging(scratch, group)
            if "v" in sums:
                weight = tile.weight.astype(k.dtype)
                if "k" in sums and call.only_scaled:
                    # A second copy, in float32, does not fit into the registers beside both sums.
                    tile = tile._replace(steep=weight.astype(jnp.float32))
                sums["v"] = mgpu.accumulate(sums["v"], weight, d_out, staging)
            if "k" in sums:
                slope = mgpu.product(v, mgpu.transposed(d_out))
                delta = mgpu.load(scratch["delta"].at[slot], mgpu.COLUMNS)
                d_dots = tile.d_dots(slope - mgpu.across(delta, t.shape, 1))
                sums["k"] = mgpu.accumulate(sums["k"], d_dots.astype(k.dtype), q, staging)
            mgpu.barrier_arrive(scratch["used"].at[slot])
            return sums

        zero = mgpu.full((t.block_k, H), 0.0, mgpu.TILE)
        sums = dict.fromkeys(call.sums, zero)
        sums = jax.lax.fori_loop(0, full, functools.partial(visit, partial=False), sums)
        sums = jax.lax.fori_loop(full, visited, functools.partial(visit, partial=True), sums)
        for ref, name in zip(out, call.sums, strict=True):
            factor = refs["factors"]["qkv".index(name)]
            _write(ref.at[b, span, kv], sums[name] * factor, scratch[name].at[group])

    @pl.when(group == W)
    def _() -> None:
        mgpu.set_registers(24, more=False)

        def fetch(m: Array, slot: Array) -> None:
            g, i = _turn(refs, at, row, m)
            h, span = kv * heads + g, pl.ds(i * t.block_q, t.block_q)
            ready = scratch["ready"].at[slot]
            for name in ("q", "d_out"):
                mgpu.copy_gmem_to_smem(refs[name].at[b, span, h], scratch[name].at[slot], ready)
            for name in ("logsumexp", "delta", "d_entropy"):
                if refs[name] is not None:
                    mgpu.copy_gmem_to_smem(refs[name].at[b, h, span], scratch[name].at[slot], ready)

        _feed(call.slots, visited, fetch, scratch["used"])


def _turn(refs: Refs, at: Array, row: Array, m: Array) -> tuple[Array, Array]:
    """Returns the head of the group and the block of queries of visit `m`."""
    word = refs["order"][at, row, m]
    return word >> HEAD_BITS, word & ((1 << HEAD_BITS) - 1)


class _Weights(NamedTuple):
    """Weights of a tile, 0 where the mask hides them.

    Attributes:
      weight: the weights.
      steep: the same, times the derivatives of the scores by the scaled dot products.
      surprise: the same, times the logarithms of the weights and the cotangents of the entropies;
        None if those are not wanted.
    """

    weight: Array
    steep: Array
    surprise: Array | None

    def d_dots(self, slope: Array) -> Array:
        """Returns the cotangent of the scaled dot products."""
        # Where the mask hides a score its weight is 0, and the slope is finite.
        product = self.steep * slope
        return product if self.surprise is None else product - self.surprise


def _weights(
    call: Backward,
    refs: Refs,
    place: gpu_parts.Place,
    dots: Array,
    of_rows: Sequence[Array | None],
    *,
    partial: bool,
) -> _Weights:
    """Computes the weights of a tile, given logsumexp and cotangents of entropy all over it."""
    logsumexp, d_entropy = of_rows
    assert logsumexp is not None, "it is kept by the forward pass"
    view, scale = call.view, refs["scores"][0][0, 0]
    one = jnp.float32(1)
    if call.only_scaled:
        score, factor = dots * (scale * mgpu.LOG2_E), None
    else:
        # Programs are elementwise, so their derivative is a factor. The dot products are scaled
        # before, so that gradients leave the scale out, which is put back at the end.
        score, factor = gpu_parts.run(
            view.pulled, (dots * scale, one), refs["scores"], view.tile, place, {0: one}
        )
        score *= mgpu.LOG2_E
    log_weight = score - logsumexp
    weight = jnp.exp2(log_weight)
    if partial:
        weight = hide(view, refs["masks"], place, weight, 0.0)
    steep = weight if factor is None else weight * factor
    if d_entropy is None:
        return _Weights(weight, steep, None)
    surprise = jnp.maximum(log_weight, LOWEST) * d_entropy
    return _Weights(weight, steep, steep * surprise)


def _staging(scratch: Refs, group: Array) -> Any:
    return None if scratch["staging"] is None else scratch["staging"].at[group]


def _write(out: Any, result: Array, buffer: Any) -> None:
    """Writes a result through a buffer in shared memory that is no longer needed."""
    buffer[...] = result.astype(buffer.dtype)
    mgpu.commit_smem()
    mgpu.copy_smem_to_gmem(buffer, out)
    mgpu.wait_smem_to_gmem(0)


def _feed(slots: int, count: Array, fetch: Any, used: Any) -> None:
    """Fetches what `count` visits need into a ring of buffers."""
    for n in range(slots):
        pl.when(n < count)(functools.partial(fetch, jnp.int32(n), jnp.int32(n)))

    def refill(n: Array, _: None) -> None:
        slot = jax.lax.rem(n, jnp.int32(slots))
        mgpu.barrier_wait(used.at[slot])
        fetch(n, slot)

    jax.lax.fori_loop(slots, count, refill, None)
