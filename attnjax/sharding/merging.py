"""Putting together what parts of the keys gave, by their shares of the softmax denominator."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.numerics import MASKED, finite_max
from attnjax.ops.softmax.stats import AttentionStats


class Rows(NamedTuple):
    """The result of some queries over some of the keys.

    Attributes:
      out: the output `[B, T, N, D]`, at least float32.
      numbers: arrays `[B, N, T]`: logsumexp; with statistics also entropy, max_logit, sink_mass and
        distance.
    """

    out: Array
    numbers: tuple[Array, ...]

    @property
    def stats(self) -> AttentionStats | None:
        """The statistics, if there are any."""
        if len(self.numbers) == 1:
            return None
        logsumexp, entropy, *others = self.numbers
        max_logit, sink_mass, distance = map(jax.lax.stop_gradient, others)
        return AttentionStats(logsumexp, max_logit, entropy, sink_mass, distance)

    def map(self, function: Callable[[Array, int], Array]) -> Rows:
        """Applies a function of an array and its axis T to all."""
        return Rows(function(self.out, 1), tuple(function(x, 2) for x in self.numbers))


def rows_of(out: Array, found: AttentionStats, *, stats: bool) -> Rows:
    """Returns what one part gave; without `stats` only logsumexp is taken over."""
    out = out.astype(jnp.promote_types(out.dtype, jnp.float32))
    others = (found.entropy, found.max_logit, found.sink_mass, found.distance)
    return Rows(out, (found.logsumexp, *(others if stats else ())))


def merge(left: Rows, right: Rows) -> Rows:
    """Returns the result over the keys of both, which must not overlap."""
    one, other = left.numbers[0], right.numbers[0]
    largest = jnp.maximum(one, other)
    shift, empty = finite_max(largest), largest == MASKED
    total = jnp.exp(one - shift) + jnp.exp(other - shift)
    whole = jnp.where(empty, MASKED, jnp.log(jnp.where(empty, 1, total)) + shift)
    shares = _share(one, whole), _share(other, whole)
    out = _over_rows(shares[0]) * left.out + _over_rows(shares[1]) * right.out

    def mean(x: Array, y: Array) -> Array:
        return shares[0] * x + shares[1] * y

    if len(left.numbers) == 1:
        return Rows(out, (whole,))
    entropy, highest, first, distance = zip(left.numbers[1:], right.numbers[1:], strict=True)
    surprise = mean(_surprise(one, whole), _surprise(other, whole))
    numbers = (mean(*entropy) + surprise, jnp.maximum(*highest), mean(*first), mean(*distance))
    return Rows(out, (whole, *numbers))


def with_sinks(rows: Rows, sinks: Array) -> Rows:
    """Returns the result with learned logits `[N]` in the denominator.

    Rows without a visible key stay as they are.
    """
    keys, *others = rows.numbers
    empty = keys == MASKED
    sink = jnp.broadcast_to(sinks.astype(keys.dtype)[:, None], keys.shape)
    whole = jnp.where(empty, MASKED, jnp.logaddexp(jnp.where(empty, 0, keys), sink))
    share = _share(keys, whole)
    out = _over_rows(share) * rows.out
    if not others:
        return Rows(out, (whole,))
    entropy, max_logit, first, distance = others
    sink = jnp.where(empty, MASKED, sink)
    surprise = share * _surprise(keys, whole) + _share(sink, whole) * _surprise(sink, whole)
    numbers = (share * entropy + surprise, max_logit, share * first, share * distance)
    return Rows(out, (whole, *numbers))


def _share(part: Array, whole: Array) -> Array:
    """Returns `exp(part - whole)`, 0 for a part without any key."""
    return jnp.where(part == MASKED, 0, jnp.exp(-_surprise(part, whole)))


def _surprise(part: Array, whole: Array) -> Array:
    """Returns `whole - part`, 0 for a part without any key."""
    absent = part == MASKED
    return jnp.where(absent, 0, jnp.where(absent, 0, whole) - jnp.where(absent, 0, part))


def _over_rows(x: Array) -> Array:
    """Turns `[B, N, T]` into `[B, T, N, 1]`."""
    return jnp.swapaxes(x, 1, 2)[..., None]
