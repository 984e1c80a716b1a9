"""Attention weights that are described, not stored: what every map is made of."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attnjax.additive import additive_problem
from attnjax.api import ScoreMods
from attnjax.masks import Mask
from attnjax.ops.additive import dispatch as additive
from attnjax.ops.additive.blockwise import BLOCK, with_scores
from attnjax.ops.softmax import dispatch
from attnjax.ops.softmax.problem import Problem
from attnjax.scores.base import check_floats
from attnjax.typing import is_array
from attnjax.validate import make_problem


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights `[B, N, T, S]` of one attention call, of which any tile can be recomputed.

    Made by `weights` or `additive_weights`; `by_values` and `by_gradient` multiply them.

    Attributes:
      problem: the call, with values of width 1 that are all 0.
      logsumexp: of each row, a learned sink included.
      per_key: a factor for each key, or None.
      values: with `d_out`: the values that the gradient runs through, or None.
      d_out: gradient of a loss by the output of the heads, or None.
      positive: whether negative gradients count as 0.
      block: most queries and keys in a tile.
    """

    problem: Problem
    logsumexp: Float[Array, "B N T"]
    per_key: Float[Array, "B N S"] | None = None
    values: Float[Array, "B S K D"] | None = None
    d_out: Float[Array, "B T N D"] | None = None
    positive: bool = dataclasses.field(default=False, metadata={"static": True})
    block: int = dataclasses.field(default=512, metadata={"static": True})

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of the axes B, T, S, N, K and H."""
        return {a: n for a, n in self.problem.sizes.items() if a != "D"}

    @property
    def plain(self) -> bool:
        """Whether these are the weights themselves, multiplied by nothing."""
        return self.per_key is None and self.d_out is None


def weights(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    *,
    mask: Mask | Array | None = None,
    score_mod: ScoreMods | None = None,
    scale: float | Array | None = None,
    sinks: Float[Array, "N"] | None = None,
    precision: Any = None,
    logsumexp: Float[Array, "B N T"] | None = None,
) -> Weights:
    """Describes the weights of a call of `attnjax.attention`, those before dropout.

    Example, where a long sequence looks, by maps of which none is T by S:

        found = maps.weights(q, k, mask=attnjax.Causal(), logsumexp=stats.logsumexp)
        picture = maps.pooled(found, 256, 256)
        edges = maps.top_edges(found, 16)

    Args:
      q: queries, those that attention was given: with their norms and rotations.
      k: keys, likewise.
      mask: as in the call, and so are the next four.
      score_mod: likewise.
      scale: likewise.
      sinks: likewise.
      precision: likewise.
      logsumexp: `AttentionStats.logsumexp` of that call; None computes it, by one more pass of
        attention. From another call, or other arguments, it would give wrong weights.

    Returns:
      The weights. Gradients stop at everything that is made of them.

    Raises:
      ValueError: if an argument is wrong, or an axis is empty.
    """
    problem = make_problem(
        q,
        k,
        k,
        mask=mask,
        score_mod=score_mod,
        scale=scale,
        sinks=sinks,
        dropout=None,
        precision=precision,
        stats=False,
    )
    problem = dataclasses.replace(problem, v=_no_values(problem.k))
    _check_axes(problem)
    if logsumexp is None:
        # As a part of a larger call, for which nothing but the logsumexp is computed beside it.
        part = dataclasses.replace(problem, origin=jnp.zeros(4, jnp.int32))
        _, stats = dispatch.attend(part)
        assert stats is not None
        logsumexp = stats.logsumexp
    return Weights(problem, _check_rows("logsumexp", logsumexp, problem))


def additive_weights(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    w: Float[Array, "N H"],
    *,
    bias: Float[Array, "N H"] | None = None,
    mask: Mask | Array | None = None,
    score_mod: ScoreMods | None = None,
    sinks: Float[Array, "N"] | None = None,
    logsumexp: Float[Array, "B N T"] | None = None,
) -> Weights:
    """Describes the weights of a call of `attnjax.additive_attention`, those before dropout.

    Args:
      q: projected queries.
      k: projected keys.
      w: weight of each hidden unit.
      bias: added inside the tanh.
      mask: as in the call, and so are the next two.
      score_mod: likewise.
      sinks: likewise.
      logsumexp: as in `weights`.

    Returns:
      The weights.

    Raises:
      ValueError: if an argument is wrong, or an axis is empty.
    """
    problem = additive_problem(
        q=q,
        k=k,
        v=k,
        w=w,
        bias=bias,
        mask=mask,
        score_mod=score_mod,
        sinks=sinks,
        dropout=None,
        precision=None,
        stats=True,
    )
    call = dataclasses.replace(problem.softmax, v=_no_values(problem.softmax.k))
    problem = dataclasses.replace(problem, softmax=call)
    _check_axes(call)
    if logsumexp is None:
        _, stats = additive.attend(problem)
        assert stats is not None
        logsumexp = stats.logsumexp
    scored = dataclasses.replace(with_scores(problem), stats=False)
    return Weights(scored, _check_rows("logsumexp", logsumexp, call), block=BLOCK)


def by_values(
    found: Weights, v: Float[Array, "B S K D"], out: Float[Array, "N D O"] | None = None
) -> Weights:
    """Multiplies weights by how long the vectors are that they weigh.

    A key with a large weight and a value of almost 0 contributes almost nothing. Source: Kobayashi
    et al., "Attention is Not Only a Weight: Analyzing Transformers with Vector Norms" (2020).

    Args:
      found: the weights.
      v: the values of the call.
      out: kernel of the output projection: then the norms are those of `v @ out`, what a key adds
        to the residual stream; None takes those of the values.

    Returns:
      The weights times the norms.

    Raises:
      ValueError: if a shape does not fit.
    """
    size = found.sizes
    B, S, N, K = (size[a] for a in "BSNK")
    v = _check_values(v, found).astype(found.problem.accumulation_dtype)
    v = jnp.repeat(v, N // K, axis=2)
    if out is not None:
        out = jnp.asarray(check_floats("out", out))
        if out.ndim != 3 or out.shape[:2] != (N, v.shape[-1]):
            raise ValueError(
                f"out: expected a kernel [N={N}, D={v.shape[-1]}, O], got shape {tuple(out.shape)}."
            )
        # As long as `v @ out`, but no wider than v.
        triangle = jnp.linalg.qr(jnp.swapaxes(out.astype(v.dtype), 1, 2), mode="r")
        v = jnp.einsum("bsnd,nrd->bsnr", v, triangle, precision="highest")
    norms = jnp.swapaxes(jnp.linalg.norm(v, axis=-1), 1, 2)
    assert norms.shape == (B, N, S)
    return dataclasses.replace(found, per_key=_times(found.per_key, norms))


def by_gradient(
    found: Weights,
    v: Float[Array, "B S K D"],
    d_out: Float[Array, "B T N D"],
    *,
    positive: bool = False,
) -> Weights:
    """Multiplies weights by the gradient of a loss by them: `weight * (d_out . v)`.

    The gradient is that by the weights as they enter the sum of values, the softmax aside. Sources:
    Barkan et al., "Grad-SAM: Explaining Transformers via Gradient Self-Attention Maps" (2021);
    Chefer et al., "Generic Attention-model Explainability" (2021). Both count positive gradients
    only.

    Args:
      found: the weights.
      v: the values of the call.
      d_out: gradient of the loss, or of any score, by the output `[B, T, N, D]` of the call.
      positive: whether negative gradients count as 0.

    Returns:
      The weights times their gradients.

    Raises:
      ValueError: if a shape does not fit, or the weights have their gradient already.
    """
    if found.d_out is not None:
        raise ValueError("found: expected weights without gradients, got those of by_gradient.")
    v, (B, T, N) = _check_values(v, found), (found.sizes[a] for a in "BTN")
    d_out = jnp.asarray(check_floats("d_out", d_out))
    if d_out.shape != (B, T, N, v.shape[-1]):
        raise ValueError(
            f"d_out: expected shape {(B, T, N, v.shape[-1])}, that of the output of attention, "
            f"got {tuple(d_out.shape)}."
        )
    return dataclasses.replace(found, values=v, d_out=d_out, positive=positive)


def fixed(x: Any) -> Any:
    """Returns a pytree through whose arrays no gradient flows; other leaves may be functions."""
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if is_array(x) else x, x)


def _times(left: Array | None, right: Array) -> Array:
    return right if left is None else left * right


def _no_values(k: Array) -> Array:
    return jnp.zeros((*k.shape[:3], 1), k.dtype)


def _check_axes(problem: Problem) -> None:
    empty = [a for a, n in problem.sizes.items() if n == 0]
    if empty:
        raise ValueError(
            f"q, k: expected at least one entry along every axis, got none along {empty[0]}; "
            "there is nothing to look at."
        )


def _check_rows(name: str, x: Array, problem: Problem) -> Array:
    want = tuple(problem.sizes[a] for a in "BNT")
    if tuple(check_floats(name, x).shape) != want:
        raise ValueError(f"{name}: expected shape [B, N, T] = {want}, got {tuple(x.shape)}.")
    return jnp.asarray(x)


def _check_values(v: Array, found: Weights) -> Array:
    want = tuple(found.sizes[a] for a in "BSK")
    v = jnp.asarray(check_floats("v", v))
    if v.ndim != 4 or v.shape[:3] != want:
        raise ValueError(f"v: expected shape [B, S, K, D] with {want}, got {tuple(v.shape)}.")
    return v
