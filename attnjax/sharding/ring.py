"""Ring attention: keys and values travel from device to device, each computing what it holds.

Runs inside `jax.shard_map`. The backward pass sends keys and values around a second time, with
their cotangents, so nothing but a device's own share is kept. Transfers depend on nothing that the
same step computes, so they overlap.

Source: Liu et al., "Ring Attention with Blockwise Transformers for Near-Infinite Context" (2023).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.numerics import MASKED
from attnjax.ops.derivatives import differentiable
from attnjax.ops.softmax import dispatch
from attnjax.ops.softmax.problem import Known, Problem
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.sharding.arrays import Pieces
from attnjax.sharding.merging import Rows, merge, rows_of
from attnjax.sharding.zigzag import Order

_REFUSAL = (
    "A second reverse-mode derivative of ring attention is not available. Use forward mode for the "
    "outer derivative (jax.jvp of jax.grad), or method='allgather' with implementation='reference'."
)


@dataclasses.dataclass(frozen=True)
class Ring:
    """What is static in a ring.

    Attributes:
      pieces: how a call is made of arrays; its own arrays are not read.
      names: the mesh axes of the ring.
      order: which positions each device takes.
      T, S: lengths of the whole sequences.
      stats: whether statistics are wanted.
      implementation: as in `attnjax.attention`.
    """

    pieces: Pieces
    names: tuple[str, ...]
    order: Order
    T: int
    S: int
    stats: bool
    implementation: str | None

    @property
    def lengths(self) -> tuple[int, int]:
        """Queries and keys of one chunk."""
        total = self.order.devices * self.order.chunks
        return self.T // total, self.S // total

    def attend(self, arrays: Sequence[Array], first: tuple[Array, Array]) -> Rows:
        """Computes this device's queries over all keys, sinks aside.

        Args:
          arrays: of this device, in the ring's order; those along keys whole but for k and v.
          first: this device's first batch element and head.

        Returns:
          What the queries see.
        """
        op = differentiable(
            self._forward,
            self._backward,
            num_smooth=3 if self.stats else 2,
            refusal=_REFUSAL,
        )
        out, *numbers = op(*arrays, jnp.stack(first).astype(jnp.int32))
        return Rows(out, tuple(numbers))

    def _part(
        self,
        args: Sequence[Array],
        k: Array,
        v: Array,
        at: tuple[Array, Array, Array],
        known: Known | None,
    ) -> Problem:
        """Returns the call of one chunk of queries and one of the keys at hand.

        Args:
          args: as `attend` got them, and `first`.
          k: keys at hand.
          v: values at hand.
          at: the step, the chunk of queries and the chunk of keys.
          known: of all of this device's queries, or None.
        """
        *arrays, first = args
        step, a, b = at
        (tq, tk), me = self.lengths, jax.lax.axis_index(self.names)
        source = (me - step) % self.order.devices  # keys at hand have come `step` devices far
        q0, k0 = self.order.number(me, a) * tq, self.order.number(source, b) * tk
        cuts = {
            "T": (a * tq, tq),
            "S": (k0, tk),
            "R": (self.T - tq + k0 - q0, tq + tk - 1),
        }
        q, _, _, *others = arrays
        q, _, _, *others = self.pieces.part([q, k, v, *others], cuts)
        own = (_take(x, b * tk, tk, 1) for x in (k, v))
        problem = self.pieces.rebuild([q, *own, *others])
        origin = jnp.concatenate([first, jnp.stack([q0, k0]).astype(jnp.int32)])
        if known is not None:
            known = jax.tree.map(
                lambda x, axis: _take(x, a * tq, tq, axis),
                known,
                jax.tree.map(lambda x: 1 if x.ndim == 4 else 2, known),
            )
        return dataclasses.replace(problem, sinks=None, origin=origin, known=known)

    def _attend(self, problem: Problem) -> tuple[Array, AttentionStats]:
        out, found = dispatch.attend(problem, self.implementation)
        assert found is not None, "a part tells its logsumexp"
        return out, found

    def _next(self, x: Array) -> Array:
        count = self.order.devices
        return jax.lax.ppermute(x, self.names, [(d, (d + 1) % count) for d in range(count)])

    def _pairs(self, function: Any, state: Any) -> Any:
        """Runs `function(a, b, state)` for each chunk of queries and each of keys."""
        chunks = self.order.chunks
        if chunks == 1:
            return function(jnp.int32(0), jnp.int32(0), state)
        return jax.lax.fori_loop(
            0, chunks**2, lambda n, state: function(n // chunks, n % chunks, state), state
        )

    def _forward(self, args: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        q, k, v = args[:3]
        B, T, N = q.shape[:3]
        dtype = jnp.promote_types(jnp.result_type(q, k, v), jnp.float32)
        zero = jnp.zeros((B, N, T), jnp.float32)
        none = jnp.full_like(zero, MASKED)
        numbers = (none, zero, none, zero, zero) if self.stats else (none,)
        empty = Rows(jnp.zeros((B, T, N, v.shape[-1]), dtype), numbers)
        tq = self.lengths[0]

        def visit(step: Array, k: Array, v: Array, rows: Rows) -> Rows:
            def pair(a: Array, b: Array, rows: Rows) -> Rows:
                out, stats = self._attend(self._part(args, k, v, (step, a, b), None))
                old = rows.map(lambda x, axis: _take(x, a * tq, tq, axis))
                new = merge(old, rows_of(out, stats, stats=self.stats))
                return jax.tree.map(
                    lambda x, y, axis: _put(x, y.astype(x.dtype), a * tq, axis),
                    rows,
                    new,
                    rows.map(lambda _, axis: axis),  # type: ignore[arg-type, return-value]
                )

            return self._pairs(pair, rows)

        def step(n: Array, carry: tuple[Array, Array, Rows]) -> tuple[Array, Array, Rows]:
            k, v, rows = carry
            return self._next(k), self._next(v), visit(n, k, v, rows)

        *_, rows = jax.lax.fori_loop(0, self.order.devices, step, (k, v, empty))
        found = (rows.out.astype(v.dtype), *rows.numbers)
        return found, found[:3]

    def _backward(
        self,
        args: tuple[Array, ...],
        residuals: tuple[Array, ...],
        cotangents: tuple[Array | None, ...],
        wanted: tuple[bool, ...],
    ) -> tuple[Array | None, ...]:
        known = Known(*residuals, *(() if self.stats else (None,)))
        tq = self.lengths[0]
        d_out, d_lse, d_entropy = (*cotangents, None, None)[:3]
        d_out = jnp.zeros_like(residuals[0]) if d_out is None else d_out
        zero = jnp.zeros_like(residuals[1])
        d_rows = [zero if x is None else x for x in (d_lse, d_entropy)]
        places = [n for n, w in enumerate(wanted) if w]

        def contribution(step: Array, k: Array, v: Array, totals: list[Array]) -> list[Array]:
            def pair(a: Array, b: Array, totals: list[Array]) -> list[Array]:
                def part(*some: Array) -> tuple[Array, AttentionStats]:
                    given = list(args)
                    given[1], given[2] = k, v
                    for n, x in zip(places, some, strict=True):
                        given[n] = x
                    problem = self._part(given, given[1], given[2], (step, a, b), known)
                    return self._attend(problem)

                at_hand = {1: k, 2: v}
                _, pull = jax.vjp(part, *(at_hand.get(n, args[n]) for n in places))
                rows = [_take(x, a * tq, tq, 2) for x in d_rows]
                nothing = jnp.zeros_like(rows[0])
                grads = pull(
                    (
                        _take(d_out, a * tq, tq, 1),
                        AttentionStats(rows[0], nothing, rows[1], nothing, nothing),
                    )
                )
                return [t + g.astype(t.dtype) for t, g in zip(totals, grads, strict=True)]

            return self._pairs(pair, totals)

        def step(n: Array, carry: tuple[Array, Array, list[Array]]) -> Any:
            k, v, totals = carry
            # Cotangents of keys and values travel with them; what this step adds joins later, so
            # that the transfer waits for nothing.
            moved = travel(totals)
            begun = [
                jnp.zeros_like(t) if m in (1, 2) else t for m, t in zip(places, totals, strict=True)
            ]
            added = contribution(n, k, v, begun)
            totals = [
                t + x if m in (1, 2) else x for m, t, x in zip(places, moved, added, strict=True)
            ]
            return self._next(k), self._next(v), totals

        def travel(totals: list[Array]) -> list[Array]:
            return [
                self._next(t) if m in (1, 2) else t for m, t in zip(places, totals, strict=True)
            ]

        zeros = [
            jnp.zeros(args[n].shape, jnp.promote_types(args[n].dtype, jnp.float32)) for n in places
        ]
        *_, totals = jax.lax.fori_loop(0, self.order.devices, step, (args[1], args[2], zeros))
        # One step more, and they are home.
        found = dict(zip(places, travel(totals), strict=True))
        return tuple(found[n].astype(x.dtype) if n in found else None for n, x in enumerate(args))


_take, _put = jax.lax.dynamic_slice_in_dim, jax.lax.dynamic_update_slice_in_dim
