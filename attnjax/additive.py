"""The public call of additive attention."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from attnjax.dropout import Dropout
from attnjax.masks import Mask, as_mask
from attnjax.ops.additive import dispatch
from attnjax.ops.additive.blockwise import with_scores
from attnjax.ops.additive.problem import AdditiveProblem
from attnjax.ops.softmax.plan import Plan
from attnjax.ops.softmax.problem import Problem
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.sharding import context, explaining
from attnjax.sharding.partition import Partition, check_partition
from attnjax.validate import make_problem, over_shapes


def additive_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K D"],
    w: Float[Array, "N H"],
    *,
    bias: Float[Array, "N H"] | None = None,
    mask: Mask | Array | None = None,
    score_mod: Any = None,
    sinks: Float[Array, "N"] | None = None,
    dropout: Dropout | None = None,
    precision: Any = None,
    partition: Partition | None = None,
    stats: bool = False,
    implementation: str | None = None,
) -> Array | tuple[Array, AttentionStats]:
    """Computes softmax attention with additive scores: `softmax(w . tanh(q + k + bias)) @ v`.

    Queries and keys are those after their projections, `Wq q` and `Wk k` of the paper. Everything
    but the score is as in `attnjax.attention`: float32 softmax, rows with nothing to attend to, NaN
    in masked keys, statistics. Never makes a T-by-S array, forward or backward, unless
    `implementation="reference"`.

    Source: Bahdanau et al., "Neural Machine Translation by Jointly Learning to Align and Translate"
    (2015), appendix A.1.2; here with several heads.

    Args:
      q: projected queries; H is the number of hidden units of a head.
      k: projected keys; N is a multiple of K, and query head `n` reads key head `n // (N // K)`.
      v: values.
      w: weight of each hidden unit.
      bias: added inside the tanh.
      mask: a `Mask`, or a bool array broadcastable to `[B, N, T, S]`, True = attend.
      score_mod: as in `attnjax.attention`, applied to the additive scores.
      sinks: learned logits that join the softmax denominator only.
      dropout: dropout on the weights.
      precision: precision of the product of weights and values.
      partition: `Partition`: axes of the mesh in context to spread the call over, as in
        `attnjax.attention`. Each device holds the projected keys of the whole sequence, also in a
        ring, where values alone travel.
      stats: also return `AttentionStats`.
      implementation: `blockwise`, `reference`, or None for `blockwise`.

    Returns:
      The output `[B, T, N, D]` in the dtype of `v`; with `stats=True`, a pair of it and
      `AttentionStats`.

    Raises:
      ValueError: if an argument is wrong, or a partition does not fit the mesh or the call.
      NotImplementedError: if the named implementation can't do what was asked.
    """
    problem = additive_problem(
        q=q,
        k=k,
        v=v,
        w=w,
        bias=bias,
        mask=mask,
        score_mod=score_mod,
        sinks=sinks,
        dropout=dropout,
        precision=precision,
        stats=stats,
    )
    if partition is None:
        out, statistics = dispatch.attend(problem, implementation)
    else:
        given = _over_devices(problem, implementation)
        out, statistics = context.attend(given, check_partition(partition), "blockwise")
    return out if statistics is None else (out, statistics)


def explain_additive(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K D"],
    w: Float[Array, "N H"],
    *,
    bias: Float[Array, "N H"] | None = None,
    mask: Mask | Array | None = None,
    score_mod: Any = None,
    sinks: Float[Array, "N"] | None = None,
    dropout: Dropout | None = None,
    precision: Any = None,
    partition: Partition | None = None,
    stats: bool = False,
    implementation: str | None = None,
) -> Plan:
    """Says how `additive_attention` would compute a call, and why so; runs nothing.

    Args:
      q: queries, an array or a `jax.ShapeDtypeStruct`; so are all other arrays.
      k: keys.
      v: values.
      w: as in `additive_attention`, and so are all others.
      bias: likewise.
      mask: likewise. The count of visited blocks needs the values of its arrays.
      score_mod: likewise.
      sinks: likewise.
      dropout: likewise.
      precision: likewise.
      partition: likewise.
      stats: likewise.
      implementation: likewise.

    Returns:
      The plan; a tanh counts as one floating-point operation.

    Raises:
      ValueError: if an argument is wrong, or a partition does not fit the mesh or the call.
      NotImplementedError: if the named implementation can't do what was asked.
    """
    arrays = {
        "q": q,
        "k": k,
        "v": v,
        "w": w,
        "bias": bias,
        "mask": mask,
        "score_mod": score_mod,
        "sinks": sinks,
        "dropout": dropout,
    }

    def plan(**given: Any) -> Plan:
        problem = additive_problem(**given, precision=precision, stats=stats)
        found = dispatch.explain(problem, as_mask(mask), implementation)
        if partition is None:
            return found
        spread = _over_devices(problem, implementation)
        plan = explaining.explain(spread, as_mask(mask), check_partition(partition), "blockwise")
        return dataclasses.replace(plan, reasons=found.reasons, cost=found.cost)

    return over_shapes(plan, arrays)


def _over_devices(problem: AdditiveProblem, implementation: str | None) -> Problem:
    """Returns what devices compute together: the loop over blocks with additive scores."""
    name = dispatch.name_of(problem, implementation)
    if name != "blockwise":
        raise NotImplementedError(
            f"implementation={name!r} can't be spread over a mesh. Use 'blockwise', or leave "
            "`partition` to None."
        )
    return with_scores(problem, shared_keys=False)


def additive_problem(w: Any, bias: Any, **given: Any) -> AdditiveProblem:
    """Validates a call.

    Args:
      w: weight of each hidden unit.
      bias: added inside the tanh, or None.
      **given: what else `attnjax.validate.make_problem` takes, but for the scale.

    Returns:
      The problem.

    Raises:
      ValueError: naming the argument, what was expected and what came.
    """
    softmax = make_problem(**given, scale=None)
    sizes = softmax.sizes
    for name, x in (("w", w), ("bias", bias)):
        if name == "w" or x is not None:
            _check_per_unit(name, x, sizes["N"], sizes["H"])
    return AdditiveProblem(softmax, w, bias)


def _check_per_unit(name: str, x: Any, N: int, H: int) -> None:
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise ValueError(f"{name}: expected a float array [N={N}, H={H}], got {type(x).__name__}.")
    if tuple(x.shape) != (N, H) or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{name}: expected a float array [N={N}, H={H}], got shape {tuple(x.shape)}, "
            f"dtype {x.dtype}."
        )
