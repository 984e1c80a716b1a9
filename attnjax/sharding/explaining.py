"""Says how a call would be computed over the mesh in context, and what devices would send."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from attnjax.masks import Mask
from attnjax.ops.softmax import dispatch
from attnjax.ops.softmax.cost import count_blocks
from attnjax.ops.softmax.plan import Plan
from attnjax.ops.softmax.problem import Problem
from attnjax.sharding import heads
from attnjax.sharding.arrays import take_apart
from attnjax.sharding.context import check_implementation, is_plain, order_of
from attnjax.sharding.partition import Partition, Spread, spread
from attnjax.sharding.zigzag import Order, has_unknown, loads


def explain(
    problem: Problem, mask: Mask, partition: Partition, implementation: str | None = None
) -> Plan:
    """Says how a call would be computed.

    Args:
      problem: the call, of global shapes; it may hold tracers.
      mask: the caller's mask, with its arrays as far as they are known.
      partition: the mesh axes.
      implementation: of each device's part.

    Returns:
      The plan: implementation, reasons and tiles of one device's part, the cost of the whole call.

    Raises:
      ValueError: if the partition does not fit the mesh or the call.
      NotImplementedError: if the named implementation can't compute a part.
    """
    sizes = problem.sizes
    found = spread(partition, sizes)
    if is_plain(sizes):
        return dispatch.explain(problem, mask, implementation)
    order = order_of(dataclasses.replace(problem, mask=mask), found)
    check_implementation(found, implementation)
    plan = dispatch.explain(_part(problem, found, order), mask, implementation)
    chosen = dispatch.IMPLEMENTATIONS[plan.implementation]
    cost = chosen.cost(problem, count_blocks(mask, chosen.tiling(problem)))
    notes = (*plan.notes, *_notes(problem, mask, found, order))
    return dataclasses.replace(plan, cost=cost, notes=notes)


def _part(problem: Problem, found: Spread, order: Order) -> Problem:
    """Returns the call of one device's part, or of one of its parts."""
    size, (batch, _, devices), (_, rows) = problem.sizes, found.sizes, found.rows
    tq = size["T"] // (devices * order.chunks) if found.times else size["T"]
    tk = -(-size["S"] // (2 * devices)) if found.ring else size["S"]
    pieces = take_apart(problem)
    windows = {
        "B": (0, size["B"] // batch),
        "N": (0, size["N"] // rows),
        "K": (0, heads.count(size["N"], size["K"], rows)),
        "T": (0, tq),
        "S": (0, tk),
        "R": (0, tq + tk - 1),
    }
    part = pieces.rebuild(pieces.part(pieces.arrays, windows))
    placed = found.times or part.dropout is not None or part.user_functions
    return dataclasses.replace(part, origin=jnp.zeros(4, jnp.int32) if placed else None)


def _notes(problem: Problem, mask: Mask, found: Spread, order: Order) -> tuple[str, ...]:
    size, (batch, rows, devices) = problem.sizes, found.sizes
    lines = [
        "a device's part is computed so; FLOPs and bytes are of the whole call, which "
        f"{batch * rows * devices} devices share"
    ]
    mesh = jax.sharding.get_abstract_mesh()
    idle = [f"{a}={n}" for a, n in mesh.shape.items() if n > 1 and a not in found.axes]
    if idle:
        lines.append(f"the same work is repeated along {', '.join(idle)}, which is not named")
    if not found.sequence:
        return tuple(lines)
    where = " x ".join(found.sequence)
    local = size["B"] // batch * size["T"] // devices * size["N"] // rows
    keys = size["B"] // batch * size["S"] // devices * max(1, size["K"] // rows)
    width = problem.q.dtype.itemsize
    both = keys * (size["H"] + size["D"])
    if found.ring:
        load = loads(mask, size["T"], size["S"], order).sum(axis=1)
        known = ", as far as the mask is known while tracing" if has_unknown(mask) else ""
        lines.append(
            f"ring over {where}, queries in {order.name} order: the busiest of {devices} devices "
            f"visits {load.max() / max(load.mean(), 1e-9):.2f} times the mean of blocks{known}"
        )
        forward: float = (devices + 1) * both * width
        backward = forward + (devices + 0.5) * both * max(width, 4)
    elif found.method == "allgather":
        lines.append(f"keys and values are collected from {devices} devices over {where}")
        forward = (devices - 1) * both * width
        backward = 2 * forward
    else:
        own = heads.count(size["N"], size["K"], rows * devices) * devices
        lines.append(f"sequence is exchanged for heads over {where}")
        copied = both // max(1, size["K"] // rows) * own
        forward = (devices - 1) / devices * (local * (size["H"] + size["D"]) + copied) * width
        backward = 2 * forward
    lines.append(
        f"a device sends about {forward / 2**20:.4g} MiB forward and {backward / 2**20:.4g} MiB "
        "backward"
    )
    return tuple(lines)
