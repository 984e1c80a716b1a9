"""The public call of additive attention."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from attnjax.dropout import Dropout
from attnjax.masks import Mask
from attnjax.ops.additive import dispatch
from attnjax.ops.additive.problem import AdditiveProblem
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.validate import make_problem


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
      stats: also return `AttentionStats`.
      implementation: `blockwise`, `reference`, or None for `blockwise`.

    Returns:
      The output `[B, T, N, D]` in the dtype of `v`; with `stats=True`, a pair of it and
      `AttentionStats`.

    Raises:
      ValueError: if an argument is wrong.
    """
    softmax = make_problem(
        q,
        k,
        v,
        mask=mask,
        score_mod=score_mod,
        scale=None,
        sinks=sinks,
        dropout=dropout,
        precision=precision,
        stats=stats,
    )
    sizes = softmax.sizes
    for name, x in (("w", w), ("bias", bias)):
        if name == "w" or x is not None:
            _check_per_unit(name, x, sizes["N"], sizes["H"])
    out, statistics = dispatch.attend(AdditiveProblem(softmax, w, bias), implementation)
    return out if statistics is None else (out, statistics)


def _check_per_unit(name: str, x: Any, N: int, H: int) -> None:
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise ValueError(f"{name}: expected a float array [N={N}, H={H}], got {type(x).__name__}.")
    if tuple(x.shape) != (N, H) or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{name}: expected a float array [N={N}, H={H}], got shape {tuple(x.shape)}, "
            f"dtype {x.dtype}."
        )
