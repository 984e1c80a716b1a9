"""An attention call over the mesh in context: every device computes its part."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

from attnjax.ops.softmax import dispatch
from attnjax.ops.softmax.problem import Problem
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.ops.tuning import Table, active
from attnjax.platform import Platform, platform
from attnjax.sharding import heads
from attnjax.sharding.arrays import Pieces, take_apart
from attnjax.sharding.merging import Rows, rows_of, with_sinks
from attnjax.sharding.partition import Partition, Spread, spread
from attnjax.sharding.ring import Ring
from attnjax.sharding.zigzag import Order, choose_order

Result = tuple[Array, AttentionStats | None]


def attend(problem: Problem, partition: Partition, implementation: str | None = None) -> Result:
    """Computes a call over the mesh in context.

    Args:
      problem: the call, of global shapes.
      partition: the mesh axes.
      implementation: of each device's part, as in `attnjax.attention`.

    Returns:
      The output `[B, T, N, D]`, and the statistics if they are wanted.

    Raises:
      ValueError: if the partition does not fit the mesh or the call.
      NotImplementedError: if the named implementation can't compute a part.
    """
    sizes = problem.sizes
    found = spread(partition, sizes)
    if is_plain(sizes):
        return dispatch.attend(problem, implementation)
    order = order_of(problem, found)
    check_implementation(found, implementation)
    run = _compute if problem.user_functions else _cached
    result: Result = run(problem, found, order, implementation, platform(), active())
    return result


def is_plain(sizes: dict[str, int]) -> bool:
    """Returns whether a call is computed as if there were no mesh, having nothing to divide."""
    return not _free_axes() or 0 in (sizes[a] for a in "BTSN")


def order_of(problem: Problem, found: Spread) -> Order:
    """Returns in which order devices take positions."""
    devices = found.sizes[2]
    if not found.times:
        return Order(devices, 1)
    return choose_order(problem.mask, problem.sizes["T"], problem.sizes["S"], devices)


def check_implementation(found: Spread, implementation: str | None) -> None:
    """Refuses an implementation that cannot compute parts by keys.

    Raises:
      NotImplementedError: with the remedy.
    """
    if found.ring and implementation == "reference":
        raise NotImplementedError(
            "implementation='reference' can't compute the derivatives of a part of the keys, as a "
            "ring needs them. Use method='allgather' or 'ulysses', or implementation='blockwise'."
        )


def specs(pieces: Pieces, found: Spread, sizes: dict[str, int]) -> tuple[PartitionSpec, ...]:
    """Returns how each array of a call lies on the mesh when its computation begins."""
    by_letter: dict[str, tuple[str, ...]] = {
        "B": found.batch,
        "N": found.rows[0],
        "T": found.times,
        "S": (),
        "K": found.heads if heads.divides(sizes["K"], found.sizes[1]) else (),
    }
    whole = [PartitionSpec(*(by_letter.get(a) or None for a in axes)) for axes in pieces.axes]
    by_letter |= {"N": found.heads, "T": found.sequence, "S": found.sequence}
    own = [PartitionSpec(*(by_letter.get(a) or None for a in axes)) for axes in pieces.axes[:3]]
    return (*own, *whole[3:])


def _compute(
    problem: Problem,
    found: Spread,
    order: Order,
    implementation: str | None,
    platform: Platform,
    table: Table | None,
) -> Result:
    # The last two are arguments only so that no trace for others is reused.
    pieces, sizes = take_apart(problem), problem.sizes
    device = _Device(problem, pieces, found, order, implementation)
    row = PartitionSpec(found.batch or None, found.rows[0] or None, found.times or None)
    out = PartitionSpec(found.batch or None, found.sequence or None, found.heads or None, None)
    places = specs(pieces, found, sizes)
    run = jax.shard_map(
        device.plain,
        in_specs=places,
        out_specs=(out, (row,) * 5 if problem.stats else None),
        axis_names=_free_axes(),
        check_vma=False,
    )

    def placed(*arrays: Array) -> tuple[Array, tuple[Array, ...] | None]:
        if AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types:
            # Over explicit axes jax.shard_map takes only what lies there already.
            arrays = tuple(map(jax.reshard, arrays, places))
        result: tuple[Array, tuple[Array, ...] | None] = run(*arrays)
        return result

    # Outside jax.jit, shard_map would run, and compile, one operation after the other.
    out, stats = jax.jit(placed)(*pieces.arrays)
    return out, None if stats is None else AttentionStats(*stats)


def _free_axes() -> set[str]:
    """Returns all mesh axes that no `jax.shard_map` around the call has taken.

    Those that a partition does not name are taken, too, with the same work along them: kernels
    can't be divided by the compiler, which refuses them where it is left an axis, even of size 1.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name for name, kind in kinds if kind != AxisType.Manual}


_cached = jax.jit(
    _compute, static_argnames=("found", "order", "implementation", "platform", "table")
)


@dataclasses.dataclass(frozen=True)
class _Device:
    """What one device does; `problem` is read for what is static in it only."""

    problem: Problem
    pieces: Pieces
    found: Spread
    order: Order
    implementation: str | None

    def plain(self, *arrays: Array) -> tuple[Array, tuple[Array, ...] | None]:
        """Computes the same as `attend`, the statistics as a plain tuple."""
        out, stats = self.attend(*arrays)
        return out, None if stats is None else tuple(stats)

    def attend(self, *arrays: Array) -> Result:
        """Computes this device's part of the call from its parts of the arrays."""
        size, found = self.problem.sizes, self.found
        q, k, v, *others = arrays
        if found.exchanged:
            q = heads.to_heads(q, found)
            k, v = (heads.keys_to_heads(x, found, size["N"], size["K"]) for x in (k, v))
            out, stats = self._whole([q, k, v, *others])
            return heads.to_sequence(out, found), stats
        k, v = (heads.choose_keys(x, found, size["N"], size["K"]) for x in (k, v))
        if not found.sequence:
            return self._whole([q, k, v, *others])
        own = [
            self.order.scatter(x, axes.index("T"), found.sequence) if "T" in axes else x
            for x, axes in zip((q, k, v, *others), self.pieces.axes, strict=True)
        ]
        rows = self._ring(own) if found.ring else self._allgather(own)
        moved = rows.map(lambda x, axis: self.order.gather(x, axis, found.sequence))
        return moved.out.astype(v.dtype), moved.stats

    def _first(self) -> tuple[Array, Array]:
        """Returns this device's first batch element and query head."""
        size, found = self.problem.sizes, self.found
        batch = (found.batch, found.sizes[0])
        b, h = (
            jax.lax.axis_index(axes) * (size[letter] // count) if axes else jnp.int32(0)
            for letter, (axes, count) in (("B", batch), ("N", found.rows))
        )
        return b, h

    def _whole(self, arrays: Sequence[Array]) -> Result:
        """Computes over whole sequences, for this device's batch elements and heads."""
        problem = self.pieces.rebuild(arrays)
        if problem.dropout is not None or problem.user_functions:
            # Nothing else sees which batch elements and heads these are.
            origin = jnp.stack([*self._first(), jnp.int32(0), jnp.int32(0)])
            problem = dataclasses.replace(problem, origin=origin)
        out, stats = dispatch.attend(problem, self.implementation)
        return out, stats if self.problem.stats else None

    def _allgather(self, arrays: list[Array]) -> Rows:
        """Computes this device's queries over the keys of all devices."""
        size, order = self.problem.sizes, self.order
        names, T, S = self.found.sequence, size["T"], size["S"]
        tq, me = T // (order.devices * order.chunks), jax.lax.axis_index(names)
        arrays[1:3] = (jax.lax.all_gather(x, names, axis=1, tiled=True) for x in arrays[1:3])
        found = []
        for a in range(order.chunks):
            q0 = order.number(me, a) * tq
            windows = {"T": (jnp.int32(a * tq), tq), "R": (T - tq - q0, tq + S - 1)}
            origin = jnp.stack([*self._first(), q0, jnp.int32(0)])
            problem = dataclasses.replace(
                self.pieces.rebuild(self.pieces.part(arrays, windows)), origin=origin
            )
            out, stats = dispatch.attend(problem, self.implementation)
            assert stats is not None, "a part tells its logsumexp"
            found.append((out, stats))
        parts = [rows_of(*one, stats=self.problem.stats) for one in found]
        out = jnp.concatenate([part.out for part in parts], axis=1)
        numbers = zip(*(part.numbers for part in parts), strict=True)
        return Rows(out, tuple(jnp.concatenate(x, axis=2) for x in numbers))

    def _ring(self, arrays: list[Array]) -> Rows:
        """Computes this device's queries while keys and values travel."""
        size, names = self.problem.sizes, self.found.sequence
        arrays[1:3] = (self.order.scatter(x, 1, names) for x in arrays[1:3])
        axes = tuple(
            a.replace("S", ".") if n in (1, 2) else a for n, a in enumerate(self.pieces.axes)
        )
        ring = Ring(
            dataclasses.replace(self.pieces, axes=axes),
            names,
            self.order,
            size["T"],
            size["S"],
            self.problem.stats,
            self.implementation,
        )
        rows = ring.attend(arrays, self._first())
        sinks = self.pieces.rebuild(arrays).sinks
        if sinks is None:
            return rows
        return with_sinks(rows, sinks)
