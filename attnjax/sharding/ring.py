"""Ring attention: keys and values travel from device to device, each computing what it holds.

Runs inside `jax.shard_map`. A device's keys are two halves that take turns: while one is computed
with, the other is on its way, so that transfers overlap and need the memory of a half. The backward
pass sends them around once more, with their cotangents, so nothing but a device's share is kept.

Source: Liu et al., "Ring Attention with Blockwise Transformers for Near-Infinite Context" (2023).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.numerics import MASKED
from attnjax.ops.derivatives import differentiable
from attnjax.ops.softmax import dispatch
from attnjax.ops.softmax.problem import Known
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.sharding.arrays import Pieces
from attnjax.sharding.merging import Rows, merge, rows_of
from attnjax.sharding.zigzag import Order

_REFUSAL = (
    "A second reverse-mode derivative of ring attention is not available. Use forward mode for the "
    "outer derivative (jax.jvp of jax.grad), or method='allgather' with implementation='reference'."
)

# More at once would need more memory for nothing: kernels take blocks of about a thousand.
_MOST_QUERIES = 1024

_take, _put = jax.lax.dynamic_slice_in_dim, jax.lax.dynamic_update_slice_in_dim


class _Place(NamedTuple):
    """Which part of the call it is.

    Attributes:
      windows: start and length along T, S and R in this device's arrays.
      positions: its first query and key in the whole sequences.
    """

    windows: dict[str, tuple[Array, int]]
    positions: Array


class _Half(NamedTuple):
    """Half of some device's keys, as it travels.

    Attributes:
      k, v: keys and values `[B, s, K, H]`.
      dk, dv: their cotangents so far; None in the forward pass, or if they are not wanted.
    """

    k: Array
    v: Array
    dk: Array | None = None
    dv: Array | None = None


@dataclasses.dataclass(frozen=True)
class Ring:
    """What is static in a ring.

    Attributes:
      pieces: how a call is made of arrays; its own arrays are not read, and none of k and v is cut
        along S.
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

    def attend(self, arrays: Sequence[Array], first: tuple[Array, Array]) -> Rows:
        """Computes this device's queries over all keys, sinks aside.

        Args:
          arrays: of this device, in the ring's order; those along keys whole but for k and v.
          first: this device's first batch element and head.

        Returns:
          What the queries see.
        """
        op = differentiable(
            self._forward, self._backward, num_smooth=3 if self.stats else 2, refusal=_REFUSAL
        )
        out, *numbers = op(*arrays, jnp.stack(first).astype(jnp.int32))
        return Rows(out, tuple(numbers))

    @property
    def _shares(self) -> int:
        """How many times the queries of one chunk are divided."""
        chunk = self.T // (self.order.devices * self.order.chunks)
        few = (n for n in range(1, chunk + 1) if chunk % n == 0 and chunk // n <= _MOST_QUERIES)
        return next(few, 1)

    @property
    def _queries(self) -> int:
        """Queries that are computed together."""
        return self.T // (self.order.devices * self.order.chunks * self._shares)

    @property
    def _sizes(self) -> tuple[int, int]:
        """Keys of the two halves."""
        own = self.S // self.order.devices
        return own - own // 2, own // 2

    def _place(self, step: Array, a: Array, half: int) -> _Place:
        """Returns which part some queries and half of the keys at hand are.

        Args:
          step: how many devices far the keys have come.
          a: which queries, those that are computed together being one.
          half: which half of the keys.
        """
        tq, sk = self._queries, self._sizes[half]
        me = jax.lax.axis_index(self.names)
        source = (me - step) % self.order.devices
        chunk, rest = a // self._shares, a % self._shares
        q0 = (self.order.number(me, chunk) * self._shares + rest) * tq
        if self.order.chunks == 2:
            k0 = self.order.number(source, half) * sk
        else:
            k0 = source * sum(self._sizes) + half * self._sizes[0]
        windows = {"T": (a * tq, tq), "S": (k0, sk), "R": (self.T - tq + k0 - q0, tq + sk - 1)}
        return _Place(windows, jnp.stack([q0, k0]).astype(jnp.int32))

    def _attend(
        self, arrays: Sequence[Array], first: Array, place: _Place, known: Known | None = None
    ) -> tuple[Array, AttentionStats]:
        """Computes a part; `known` is of its queries."""
        problem = dataclasses.replace(
            self.pieces.rebuild(arrays),
            sinks=None,
            origin=jnp.concatenate([first, place.positions]),
            known=known,
        )
        out, found = dispatch.attend(problem, self.implementation)
        assert found is not None, "a part tells its logsumexp"
        return out, found

    def _send(self, half: Any, by: int = 1) -> Any:
        count = self.order.devices
        pairs = [(d, (d + by) % count) for d in range(count)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.names, pairs), half)

    def _travel(
        self, halves: list[_Half], state: Any, visit: Callable[[Array, int, _Half, Any], Any]
    ) -> tuple[list[_Half], Any]:
        """Takes both halves of the keys past all devices.

        Args:
          halves: this device's own.
          state: what is carried along.
          visit: `visit(step, number, half, state) -> (half, state)` computes with one half.

        Returns:
          The halves, back home, and the state.
        """

        def step(n: Array, carry: tuple[_Half, _Half, Any]) -> tuple[_Half, _Half, Any]:
            first, second, state = carry
            # Neither transfer waits for what is computed beside it. Both end together, for a GPU's
            # compiler would end a transfer where it begins.
            second = self._send(second)
            first, state = visit(n, 0, first, state)
            first, second, state = jax.lax.optimization_barrier((first, second, state))
            moved = self._send(first)
            second, state = visit(n, 1, second, state)
            result: tuple[_Half, _Half, Any] = jax.lax.optimization_barrier((moved, second, state))
            return result

        first, second = halves
        # The second half is sent before it is used.
        carry = (first, self._send(second, by=-1), state)
        first, second, state = jax.lax.fori_loop(0, self.order.devices, step, carry)
        return [first, self._send(second)], state

    def _chunks(self, function: Callable[[Array, Any], Any], state: Any) -> Any:
        """Runs `function(a, state)` for all queries, those that are computed together at once."""
        count = self.order.chunks * self._shares
        if count == 1:
            return function(jnp.int32(0), state)
        return jax.lax.fori_loop(0, count, function, state)

    def _forward(self, args: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        *arrays, first = args
        q, k, v, *others = arrays
        B, T, N = q.shape[:3]
        dtype = jnp.promote_types(jnp.result_type(q, k, v), jnp.float32)
        zero = jnp.zeros((B, N, T), jnp.float32)
        none = jnp.full_like(zero, MASKED)
        numbers = (none, zero, none, zero, zero) if self.stats else (none,)
        rows = Rows(jnp.zeros((B, T, N, v.shape[-1]), dtype), numbers)
        tq = self._queries

        def visit(step: Array, number: int, half: _Half, rows: Rows) -> tuple[_Half, Rows]:
            def one(a: Array, rows: Rows) -> Rows:
                place = self._place(step, a, number)
                part = self.pieces.part([q, half.k, half.v, *others], place.windows)
                new = rows_of(*self._attend(part, first, place), stats=self.stats)
                merged = merge(rows.map(lambda x, axis: _take(x, a * tq, tq, axis)), new)
                put = [
                    _put(x, y.astype(x.dtype), a * tq, axis)
                    for x, y, axis in zip(
                        jax.tree.leaves(rows), jax.tree.leaves(merged), axes, strict=True
                    )
                ]
                return jax.tree.unflatten(jax.tree.structure(rows), put)

            return half, self._chunks(one, rows) if self._sizes[number] else rows

        axes = (1, *(2 for _ in numbers))
        _, rows = self._travel(self._halves(k, v), rows, visit)
        found = (rows.out.astype(v.dtype), *rows.numbers)
        return found, found[:3]

    def _halves(self, *arrays: Array) -> list[_Half]:
        """Splits a device's keys, values and, if given, their cotangents."""
        cut = [jnp.split(x, [self._sizes[0]], axis=1) for x in arrays]
        return [_Half(*(x[n] for x in cut)) for n in range(2)]

    def _backward(
        self,
        args: tuple[Array, ...],
        residuals: tuple[Array, ...],
        cotangents: tuple[Array | None, ...],
        wanted: tuple[bool, ...],
    ) -> tuple[Array | None, ...]:
        *arrays, first = args
        q, k, v, *others = arrays
        known = Known(*residuals, *(() if self.stats else (None,)))
        tq = self._queries
        d_out, d_logsumexp, d_entropy = (*cotangents, None, None)[:3]
        d_out = jnp.zeros_like(residuals[0]) if d_out is None else d_out
        zero = jnp.zeros_like(residuals[1])
        d_rows = [zero if x is None else x for x in (d_logsumexp, d_entropy)]
        # Keys and values get cotangents in any case: they travel in pairs.
        places = [n for n, w in enumerate(wanted[:-1]) if w or n in (1, 2)]

        def zeros(x: Array) -> Array:
            return jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))

        def visit(step: Array, number: int, half: _Half, totals: list) -> tuple[_Half, list]:
            if not self._sizes[number]:
                return half, totals

            def one(a: Array, carry: tuple[Array, Array, list]) -> tuple[Array, Array, list]:
                dk, dv, totals = carry
                place = self._place(step, a, number)
                part = self.pieces.part([q, half.k, half.v, *others], place.windows)
                here = jax.tree.map(lambda x: _take(x, a * tq, tq, 1 if x.ndim == 4 else 2), known)

                def attend(*some: Array) -> tuple[Array, AttentionStats]:
                    given = dict(enumerate(part)) | dict(zip(places, some, strict=True))
                    return self._attend([*given.values()], first, place, here)

                _, pull = jax.vjp(attend, *(part[n] for n in places))
                d_lse, d_ent = (_take(x, a * tq, tq, 2) for x in d_rows)
                nothing = jnp.zeros_like(d_lse)
                grads = dict(
                    zip(
                        places,
                        pull(
                            (
                                _take(d_out, a * tq, tq, 1),
                                AttentionStats(d_lse, nothing, d_ent, nothing, nothing),
                            )
                        ),
                        strict=True,
                    )
                )
                dk, dv = (d + grads.pop(n).astype(d.dtype) for n, d in ((1, dk), (2, dv)))
                return dk, dv, self.pieces.add(totals, grads, place.windows)

            dk, dv, totals = self._chunks(one, (half.dk, half.dv, totals))
            return half._replace(dk=dk, dv=dv), totals

        begun = [
            zeros(x) if n in places and n not in (1, 2) else None for n, x in enumerate(arrays)
        ]
        halves, totals = self._travel(self._halves(k, v, zeros(k), zeros(v)), begun, visit)
        for n, name in ((1, "dk"), (2, "dv")):
            totals[n] = jnp.concatenate([getattr(half, name) for half in halves], axis=1)
        return tuple(
            g.astype(x.dtype) if w and g is not None else None
            for g, x, w in zip((*totals, None), args, wanted, strict=True)
        )
