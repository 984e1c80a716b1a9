"""The public call: validate, then compute or explain."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Float

from attnjax.dropout import Dropout
from attnjax.masks import Mask, as_mask
from attnjax.ops.softmax import dispatch
from attnjax.ops.softmax.plan import Plan
from attnjax.scores import ScoreFn, ScoreMod
from attnjax.sharding import context, explaining
from attnjax.sharding.partition import Partition, check_partition
from attnjax.validate import make_problem, over_shapes

ScoreMods = ScoreMod | ScoreFn | tuple[ScoreMod | ScoreFn, ...]


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K D"],
    *,
    mask: Mask | Array | None = None,
    score_mod: ScoreMods | None = None,
    scale: float | Array | None = None,
    sinks: Float[Array, "N"] | None = None,
    dropout: Dropout | None = None,
    precision: Any = None,
    partition: Partition | None = None,
    stats: bool = False,
    implementation: str | None = None,
) -> Any:
    """Computes exact softmax attention: `softmax(score_mod(scale * q.k), where=mask) @ v`.

    Never makes a T-by-S array, forward or backward, unless `implementation="reference"`.

    The softmax runs in float32 (float64 for float64 inputs). A query with nothing to attend to
    gets output 0 and sends back no gradient. NaN or infinity in a masked key or value reaches
    neither outputs nor gradients.

    Args:
      q: queries.
      k: keys; N is a multiple of K, and query head `n` reads key head `n // (N // K)`.
      v: values.
      mask: a `Mask`, or a bool array broadcastable to `[B, N, T, S]`, True = attend.
      score_mod: `fn(score, b, h, q_idx, k_idx) -> score`, or a tuple of them, applied from left to
        right to scaled float32 scores.
      scale: factor of the dot products; None is `1 / sqrt(H)`.
      sinks: learned logits that join the softmax denominator only.
      dropout: dropout on the weights.
      precision: precision of the matrix products, as in `jax.lax.dot_general`. None computes
        float32 inputs in full float32, also where JAX's own default would not.
      partition: `Partition`: axes of the mesh in context to spread the call over; None leaves it to
        `jax.jit`, which cannot divide kernels.
      stats: also return `AttentionStats`.
      implementation: a name never falls back; None chooses. `explain` tells which and why.

    Returns:
      The output `[B, T, N, D]` in the dtype of `v`; with `stats=True`, a pair of it and
      `AttentionStats`.

    Raises:
      ValueError: if an argument is wrong, or a partition does not fit the mesh or the call.
      NotImplementedError: if the named implementation can't do what was asked.
    """
    problem = make_problem(
        q,
        k,
        v,
        mask=mask,
        score_mod=score_mod,
        scale=scale,
        sinks=sinks,
        dropout=dropout,
        precision=precision,
        stats=stats,
    )
    if partition is None:
        out, statistics = dispatch.attend(problem, implementation)
    else:
        out, statistics = context.attend(problem, check_partition(partition), implementation)
    return out if statistics is None else (out, statistics)


def explain(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K D"],
    *,
    mask: Mask | Array | None = None,
    score_mod: ScoreMods | None = None,
    scale: float | Array | None = None,
    sinks: Float[Array, "N"] | None = None,
    dropout: Dropout | None = None,
    precision: Any = None,
    partition: Partition | None = None,
    stats: bool = False,
    implementation: str | None = None,
) -> Plan:
    """Says how `attention` would compute a call, and why so; runs nothing.

    Args:
      q: queries, an array or a `jax.ShapeDtypeStruct`; so are all other arrays.
      k: keys.
      v: values.
      mask: as in `attention`. The count of visited blocks needs the values of its arrays.
      score_mod: as in `attention`.
      scale: as in `attention`.
      sinks: as in `attention`.
      dropout: as in `attention`.
      precision: as in `attention`.
      partition: as in `attention`.
      stats: as in `attention`.
      implementation: as in `attention`.

    Returns:
      The plan: the implementation, why each other one was not chosen, the blocks visited of how
      many, FLOPs, bytes and temporaries.

    Raises:
      ValueError: if an argument is wrong, or a partition does not fit the mesh or the call.
      NotImplementedError: if the named implementation can't do what was asked.
    """
    arguments = {
        "q": q,
        "k": k,
        "v": v,
        "mask": mask,
        "score_mod": score_mod,
        "scale": scale,
        "sinks": sinks,
        "dropout": dropout,
    }

    def plan(**given: Any) -> Plan:
        problem = make_problem(**given, precision=precision, stats=stats)
        if partition is None:
            return dispatch.explain(problem, as_mask(mask), implementation)
        return explaining.explain(
            problem, as_mask(mask), check_partition(partition), implementation
        )

    return over_shapes(plan, arguments)
