"""What telemetry keeps of each head, from the statistics of a call: sums that many calls share."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attnjax.focus.counts import allowed_keys
from attnjax.nn.watching import Seen

SKETCH = 8
"""Width of the random sketch of the weights, from which heads are compared."""
_SUMS = (
    "rows",
    "wide_rows",
    "entropy",
    "share",
    "keys",
    "logsumexp_sq",
    "sink_mass",
    "distance",
    "output_sq",
    "positions",
)
_MAX = len(_SUMS)
COLUMNS = len(_SUMS) + 1
"""Numbers kept per head, before one for each head that it is compared with."""


class HeadStats(NamedTuple):
    """How the heads of one attention module look, float32 `[N]` each, or `[L, N]` of L layers.

    Means are over the queries that have something to attend to. NaN stands for a mean over nothing.

    Attributes:
      entropy: mean entropy of the weights in nats.
      share: mean of the entropy over its maximum for the mask, the log of the number of keys that
        the query may see, a learned sink included; over the queries that may see two or more.
      keys: mean effective number of keys, `exp(entropy)`.
      max_logit: the largest score of all.
      logsumexp_sq: mean of the squared logsumexp.
      sink_mass: mean weight on key 0.
      distance: mean distance from query to key under the weights, in positions.
      output: root mean square, over positions, of the vector that the head adds to the residual
        stream; of a module without an output projection, of the head's own.
      duplicate: how far the weights are from those of the head of the module that is nearest:
        `|a - b|^2 / (|a|^2 + |b|^2)`, numerator and denominator summed over queries, from 0 for
        the same to 1 for nothing in common. Estimated from a random sketch of the weights (Johnson
        and Lindenstrauss, 1984), without bias and exactly 0 for heads that are the same. NaN for a
        module with a single head.
    """

    entropy: Float[Array, "*L N"]
    share: Float[Array, "*L N"]
    keys: Float[Array, "*L N"]
    max_logit: Float[Array, "*L N"]
    logsumexp_sq: Float[Array, "*L N"]
    sink_mass: Float[Array, "*L N"]
    distance: Float[Array, "*L N"]
    output: Float[Array, "*L N"]
    duplicate: Float[Array, "*L N"]


def empty(num_heads: int) -> Float[Array, "N C+N"]:
    """Returns the record of no call."""
    return jnp.zeros((num_heads, COLUMNS + num_heads)).at[:, _MAX].set(-jnp.inf)


def merged(records: Float[Array, "P *L N C+N"]) -> Float[Array, "*L N C+N"]:
    """Returns the record of all calls, from the records of parts of them."""
    largest = jnp.max(records[..., _MAX], axis=0)
    return jnp.sum(records, axis=0).at[..., _MAX].set(largest)


def record(seen: Seen) -> Float[Array, "N C+N"]:
    """Returns the record of one call.

    Its queries and keys go through attention once more, with a sketch in the place of the values:
    the same random signs for every head, so that heads with the same weights give the same.
    """
    (B, T, N, _), (_, S, K, _) = seen.q.shape, seen.k.shape
    signs = jax.random.rademacher(jax.random.key(0), (S, SKETCH), seen.q.dtype)
    values = jnp.broadcast_to(signs[None, :, None], (B, S, K, SKETCH))
    sketch, stats = seen.attend(seen.q, seen.k, values)
    count = allowed_keys(seen.mask, B=B, T=T, S=S, N=N)
    used = jnp.broadcast_to(count > 0, (B, N, T))
    count += seen.sinks
    wide = used & (count > 1)
    share = stats.entropy / jnp.log(jnp.where(count > 1, count, 2).astype(jnp.float32))

    def total(x: Array, where: Array) -> Array:
        return jnp.sum(jnp.where(where, x, 0), axis=(0, 2), dtype=jnp.float32)

    one = jnp.ones(())
    sums = {
        "rows": total(one, used),
        "wide_rows": total(one, wide),
        "entropy": total(stats.entropy, used),
        "share": total(share, wide),
        "keys": total(jnp.exp(stats.entropy), used),
        "logsumexp_sq": total(jnp.where(used, stats.logsumexp, 0) ** 2, used),
        "sink_mass": total(stats.sink_mass, used),
        "distance": total(stats.distance, used),
        "output_sq": _output_sq(seen),
        "positions": jnp.full(N, float(B * T)),
    }
    columns = [sums[name] for name in _SUMS]
    largest = jnp.max(stats.max_logit, axis=(0, 2), initial=-jnp.inf)
    flat = jnp.moveaxis(sketch.astype(jnp.float32), 2, 0).reshape(N, -1)
    return jnp.concatenate([jnp.stack([*columns, largest], axis=1), _gram(flat)], axis=1)


def _gram(flat: Float[Array, "N X"]) -> Float[Array, "N N"]:
    return jnp.matmul(flat, flat.T, precision="highest") / SKETCH


def _output_sq(seen: Seen) -> Float[Array, "N"]:
    """Returns the sum over positions of the squared norm of what each head adds."""
    out = seen.out.astype(jnp.float32)
    if seen.kernel is None:
        return jnp.sum(out**2, axis=(0, 1, 3))
    kernel = seen.kernel.astype(jnp.float32)
    # |o W|^2 summed over positions is the product of two small matrices of each head.
    products = jnp.einsum("ndo,neo->nde", kernel, kernel)
    moments = jnp.einsum("btnd,btne->nde", out, out)
    return jnp.sum(products * moments, axis=(1, 2))


def summary(kept: Float[Array, "*L N C+N"]) -> HeadStats:
    """Returns what a record says of the heads."""
    column = {name: kept[..., place] for place, name in enumerate(_SUMS)}

    def mean(name: str, over: str = "rows") -> Array:
        count = column[over]
        return jnp.where(count > 0, column[name] / jnp.maximum(count, 1), jnp.nan)

    gram = kept[..., COLUMNS:]
    norms = jnp.diagonal(gram, axis1=-2, axis2=-1)
    both = norms[..., :, None] + norms[..., None, :]
    apart = 1 - 2 * gram / jnp.where(both > 0, both, 1)
    itself = jnp.eye(gram.shape[-1], dtype=bool)
    nearest = jnp.min(jnp.where(itself, jnp.inf, jnp.where(both > 0, apart, 0)), axis=-1)
    return HeadStats(
        entropy=mean("entropy"),
        share=mean("share", "wide_rows"),
        keys=mean("keys"),
        max_logit=kept[..., _MAX],
        logsumexp_sq=mean("logsumexp_sq"),
        sink_mass=mean("sink_mass"),
        distance=mean("distance"),
        output=jnp.sqrt(mean("output_sq", "positions")),
        duplicate=jnp.where(jnp.isfinite(nearest), jnp.clip(nearest, 0, 1), jnp.nan),
    )
