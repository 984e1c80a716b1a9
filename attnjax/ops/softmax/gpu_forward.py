"""The forward kernel: a block of queries, over the blocks of keys that its row visits.

Warp-specialised: the last warpgroup fetches keys and values by TMA into a ring of buffers, the
others compute, each on 64 queries of its own. Exponents are in base 2. Sources: Dao,
"FlashAttention-2" (2023); Shah et al., "FlashAttention-3" (2024).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from attnjax.numerics import MASKED
from attnjax.ops.kernels import gpu_parts
from attnjax.ops.kernels import mosaic_gpu as mgpu
from attnjax.ops.kernels.programs import Tile
from attnjax.ops.softmax.gpu_call import (
    LOWEST,
    Inputs,
    Pass,
    Refs,
    Tables,
    hide,
    spoiled_blocks,
    take_turns,
)


@dataclasses.dataclass(frozen=True)
class Forward:
    """What is static in the kernel.

    Attributes:
      view: tiles and programs.
      slots: buffers in the ring.
      only_scaled: whether scores are scaled dot products and nothing else.
      sinks: whether there are sinks.
      stats: whether statistics are wanted.
      interpret: whether to run in the interpreter.
    """

    view: Pass
    slots: int
    only_scaled: bool
    sinks: bool
    stats: bool
    interpret: bool

    @property
    def numbers(self) -> int:
        """How many numbers the kernel returns for each row."""
        return 5 if self.stats else 1


def forward(
    call: Forward, inputs: Inputs, tables: Tables, sinks: Array | None
) -> tuple[Array, Array]:
    """Runs the kernel.

    Args:
      call: what is static.
      inputs: queries, keys and values.
      tables: schedule and operands.
      sinks: `[N]`, or None.

    Returns:
      The output `[B, T', N, D]`, with the padding of the inputs, and numbers of each row `[B, N, n,
      T']`: the logsumexp; with statistics also entropy, max_logit, sink_mass and distance.
    """
    view = call.view
    (B, T, N, H), dtype = inputs.q.shape, inputs.q.dtype
    t, W, slots = view.tile, view.groups, call.slots
    rows = tables.rows.order.shape[1]
    named = {
        "q": inputs.q,
        "k": inputs.k,
        "v": inputs.v,
        "bad_rows": inputs.bad_rows,
        "bad_keys": inputs.bad_keys,
        "bad_blocks": spoiled_blocks(inputs.bad_keys, t.block_k),
        "numbers": jnp.arange(max(inputs.q.shape[1], inputs.k.shape[1]), dtype=jnp.int32),
        "order": tables.rows.order,
        "counts": tables.rows.counts,
        "sinks": None if sinks is None else sinks.astype(jnp.float32),
        "scores": tables.scores,
        "masks": tables.masks,
    }
    flat, structure = jax.tree.flatten(named)

    def body(*refs: Any, **scratch: Any) -> None:
        given = jax.tree.unflatten(structure, refs[: len(flat)])
        _kernel(call, given, refs[len(flat) :], scratch)

    body.__name__ = "attnjax_forward"
    out, numbers = mgpu.call(
        body,
        flat,
        out=(
            jax.ShapeDtypeStruct(inputs.q.shape, dtype),
            jax.ShapeDtypeStruct((B, N, call.numbers, T), jnp.float32),
        ),
        scratch={
            "q": mgpu.matrix(W, t.block_q, H, dtype=dtype),
            "k": mgpu.matrix(slots, t.block_k, H, dtype=dtype),
            "v": mgpu.matrix(slots, t.block_k, H, dtype=dtype),
            "numbers": mgpu.vector(W, call.numbers, t.block_q),
            "first": mgpu.vector(W, t.block_q) if call.stats else None,
            "staging": mgpu.matrix(W, t.block_q, t.block_k, dtype=dtype)
            if call.interpret
            else None,
            "q_ready": mgpu.barriers(W),
            "ready": mgpu.barriers(slots, 2),
            "used": mgpu.barriers(slots, W),
        },
        grid=(N, rows, B),
        threads=W + 1,
        interpret=call.interpret,
    )
    return out, numbers


def _kernel(call: Forward, refs: Refs, out: Any, scratch: Refs) -> None:
    view = call.view
    h, row, b = (jax.lax.axis_index(a) for a in "xyz")
    # Later rows of a causal mask are longer: they start first, so that none is left for the end.
    row = refs["order"].shape[1] - 1 - row
    group = jax.lax.axis_index("wg")
    at, full, visited = take_turns(refs["order"], refs["counts"], b, row)
    N, K = refs["q"].shape[2], refs["k"].shape[2]
    kv = h if N == K else jax.lax.div(h, jnp.int32(N // K))

    @pl.when(group < view.groups)
    def _() -> None:
        mgpu.set_registers(240, more=True)
        _compute(call, refs, out, scratch, (b, h, kv, row, group), at, full, visited)

    @pl.when(group == view.groups)
    def _() -> None:
        mgpu.set_registers(24, more=False)

        def fetch(n: Array, slot: Array) -> None:
            start = refs["order"][at, row, n] * view.tile.block_k
            keys = (b, pl.ds(start, view.tile.block_k), kv)
            for name in "kv":
                mgpu.copy_gmem_to_smem(
                    refs[name].at[keys], scratch[name].at[slot], scratch["ready"].at[slot]
                )

        for n in range(call.slots):
            pl.when(n < visited)(functools.partial(fetch, jnp.int32(n), jnp.int32(n)))

        def refill(n: Array, _: None) -> None:
            slot = jax.lax.rem(n, jnp.int32(call.slots))
            mgpu.barrier_wait(scratch["used"].at[slot])
            fetch(n, slot)

        jax.lax.fori_loop(call.slots, visited, refill, None)


def _compute(
    call: Forward,
    refs: Refs,
    out: Any,
    scratch: Refs,
    where: tuple[Array, ...],
    at: Array,
    full: Array,
    visited: Array,
) -> None:
    view = call.view
    t, H = view.tile, refs["q"].shape[-1]
    b, h, kv, row, group = where
    first = (row * view.groups + group) * t.block_q
    queries = (b, pl.ds(first, t.block_q), h)
    q = scratch["q"].at[group]
    staging = scratch["staging"] if scratch["staging"] is None else scratch["staging"].at[group]
    mgpu.copy_gmem_to_smem(refs["q"].at[queries], q, scratch["q_ready"].at[group])
    mgpu.barrier_wait(scratch["q_ready"].at[group])
    exponent = refs["scores"][0][0, 0] * mgpu.LOG2_E if call.only_scaled else None

    if call.stats:
        scratch["first"].at[group][...] = mgpu.full((t.block_q,), MASKED, mgpu.ROWS)

    def visit(n: Array, carry: Any, *, partial: bool) -> Any:
        acc, largest, total, *sums = carry
        slot = jax.lax.rem(n, jnp.int32(call.slots))
        j = refs["order"][at, row, n]
        place = gpu_parts.Place(b, h, first, j * t.block_k, refs["numbers"])
        mgpu.barrier_wait(scratch["ready"].at[slot])
        score = mgpu.product(q, mgpu.transposed(scratch["k"].at[slot]))
        if exponent is None:
            (score,) = gpu_parts.run(view.scores, (score,), refs["scores"], t, place)
            score *= mgpu.LOG2_E
        elif partial:
            score = score * exponent
        if partial:
            keys = refs["bad_keys"].at[b, kv, pl.ds(j * t.block_k, t.block_k)]
            score += mgpu.across(mgpu.load(keys, mgpu.COLUMNS), t.shape, 1)
            score = hide(view, refs["masks"], place, score, MASKED)
        top = score.max(axis=1)
        if exponent is not None and not partial:
            # The dot products are scaled within the exponent, where it costs nothing.
            top *= exponent
            score = score * exponent
        new = jnp.maximum(largest, top)
        shift = jnp.where(new == MASKED, 0.0, new)
        shrink = jnp.exp2(largest - shift)
        if call.stats:

            @pl.when(j == 0)
            def _() -> None:
                keys = gpu_parts.positions("S", t, place)
                scratch["first"].at[group][...] = jnp.where(keys == 0, score, MASKED).max(axis=1)

        log_weight = score - mgpu.across(shift, t.shape, 0)
        weight = jnp.exp2(log_weight)
        part = weight.sum(axis=1)
        if call.stats:
            score_sum, distance = sums
            moved = jnp.maximum(largest - shift, LOWEST)
            surprise = (weight * jnp.maximum(log_weight, LOWEST)).sum(axis=1)
            score_sum = (score_sum + total * moved) * shrink + surprise
            reach = _reach(weight, part, place, t, partial=partial)
            sums = [score_sum, distance * shrink + reach]
        total = total * shrink + part
        if not partial:
            # Every row sees every key of the block, so one bad key spoils them all.
            total += refs["bad_blocks"][b, kv, j]
        acc = acc * mgpu.across(shrink, (t.block_q, H), 0)
        acc = mgpu.accumulate(acc, weight.astype(q.dtype), scratch["v"].at[slot], staging)
        mgpu.barrier_arrive(scratch["used"].at[slot])
        return (acc, new, total, *sums)

    nothing = mgpu.full((t.block_q,), 0.0, mgpu.ROWS)
    carry = (
        mgpu.full((t.block_q, H), 0.0, mgpu.TILE),
        mgpu.full((t.block_q,), MASKED, mgpu.ROWS),
        *(nothing,) * (3 if call.stats else 1),
    )
    carry = jax.lax.fori_loop(0, full, functools.partial(visit, partial=False), carry)
    carry = jax.lax.fori_loop(full, visited, functools.partial(visit, partial=True), carry)
    acc, largest, total, *sums = carry
    empty = largest == MASKED
    shift = jnp.where(empty, 0.0, largest)
    if call.sinks:
        sink = refs["sinks"][h] * mgpu.LOG2_E
        higher = jnp.maximum(shift, jnp.broadcast_to(sink, shift.shape))
        shrink = jnp.exp2(shift - higher)
        weight = jnp.exp2(sink - higher)
        if call.stats:
            score_sum, distance = sums
            score_sum = (score_sum + total * jnp.maximum(shift - higher, LOWEST)) * shrink
            score_sum += weight * jnp.maximum(sink - higher, LOWEST)
            sums = [score_sum, distance * shrink]
        total = total * shrink + weight
        acc = acc * mgpu.across(shrink, acc.shape, 0)
        shift = higher
    # The flags of bad queries return here; an empty row saw nothing, its own NaN included.
    bad = mgpu.load(refs["bad_rows"].at[b, h, pl.ds(first, t.block_q)], mgpu.ROWS)
    total = jnp.where(empty, 1.0, total + bad)
    share = jnp.where(empty, 0.0, 1.0 / total)
    q[...] = (acc * mgpu.across(share, acc.shape, 0)).astype(q.dtype)
    log_total = jnp.log(total)
    numbers = [jnp.where(empty, MASKED, shift / mgpu.LOG2_E + log_total)]
    if call.stats:
        score_sum, distance = sums
        entropy = jnp.where(empty, 0.0, log_total - score_sum * share / mgpu.LOG2_E)
        # The largest score may have missed a NaN that the total has met.
        spoil = jnp.where(empty, 0.0, total * 0.0)
        mass = jnp.exp2(mgpu.load(scratch["first"].at[group], mgpu.ROWS) - shift) * share
        numbers += [entropy, largest / mgpu.LOG2_E + spoil, mass, distance * share]
    for n, x in enumerate(numbers):
        scratch["numbers"].at[group, n][...] = x
    mgpu.commit_smem()
    mgpu.copy_smem_to_gmem(q, out[0].at[queries])
    for n in range(len(numbers)):
        mgpu.copy_smem_to_gmem(
            scratch["numbers"].at[group, n], out[1].at[b, h, n, pl.ds(first, t.block_q)]
        )
    mgpu.wait_smem_to_gmem(0)


def _reach(weight: Array, total: Array, place: gpu_parts.Place, t: Tile, *, partial: bool) -> Array:
    """Returns a tile's sums of `weight * |q_idx - k_idx|`.

    In a FULL block all keys lie on one side of all queries. Their distances count from the end that
    is nearer to the queries, so that small ones keep their digits.
    """
    if partial:
        apart = gpu_parts.positions("T", t, place) - gpu_parts.positions("S", t, place)
        return (weight * jnp.abs(apart).astype(jnp.float32)).sum(axis=1)
    before = place.q > place.k
    last = t.block_k - 1
    beyond = mgpu.load(place.numbers.at[jax.ds(0, t.block_k)], mgpu.COLUMNS)
    # A choice by a scalar, which Mosaic GPU cannot make between arrays.
    beyond += before.astype(jnp.int32) * (last - 2 * beyond)
    nearest = jnp.where(before, place.k + last, place.k)
    rows = mgpu.load(place.numbers.at[jax.ds(place.q, t.block_q)], mgpu.ROWS)
    moment = (weight * mgpu.across(beyond.astype(jnp.float32), t.shape, 1)).sum(axis=1)
    return total * jnp.abs(rows - nearest).astype(jnp.float32) + moment
