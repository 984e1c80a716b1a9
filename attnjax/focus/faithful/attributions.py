"""Attributions to compare with: integrated gradients and leave-one-out."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Bool, Float

from attnjax.focus.faithful.curves import Score
from attnjax.focus.faithful.rows import check_lengths, checked_scores, inside_of


class EmbeddedScore(Protocol):
    """A score of embedded inputs, each number from its own example alone.

    Compiled once per function object and shape, as `Score` is.
    """

    def __call__(self, inputs: Any, embedded: Array, /) -> Array:
        """Returns scores `[B]`, given any pytree, and an array `[B, T, ...]`."""
        ...


class IntegratedGradients(NamedTuple):
    """Attributions, and how far they are from adding up.

    Attributes:
      attributions: what each position adds to the score.
      change: the score of the inputs less the score of the baseline.
      gap: the sum of the attributions less `change`. Exact integrals would leave none
        ("completeness"), so a large gap calls for more steps.
    """

    attributions: Float[Array, "B T"]
    change: Float[Array, "B"]
    gap: Float[Array, "B"]


def integrated_gradients(
    score: EmbeddedScore,
    inputs: Any,
    embedded: Float[Array, "B T ..."],
    baseline: Float[Array, "B T ..."] | float = 0.0,
    *,
    lengths: npt.ArrayLike | None = None,
    steps: int = 32,
) -> IntegratedGradients:
    """Integrates the gradient of the score along the line from a baseline to the inputs.

    The integral is a Gauss-Legendre sum, one step after the other: memory of one gradient.

    Source: Sundararajan et al., "Axiomatic Attribution for Deep Networks" (2017).

    Args:
      score: of embedded inputs.
      inputs: what else the score takes; parameters, say.
      embedded: the embedded inputs.
      baseline: what stands for an absent position, broadcastable to `embedded`.
      lengths: integers `[B]`, how many positions of each example there are, from the first; None
        is T for all. Positions beyond stay as they are, and get 0.
      steps: at how many points the gradient is taken.

    Returns:
      The attributions, in the score's units.

    Raises:
      ValueError: if a shape or a length is wrong, or there is no step.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}.")
    if jnp.ndim(embedded) < 2:
        raise ValueError(f"embedded: expected [B, T, ...], got shape {jnp.shape(embedded)}.")
    inside = inside_of(check_lengths(lengths, embedded.shape), embedded.shape[1])
    try:
        baseline = jnp.broadcast_to(jnp.asarray(baseline, embedded.dtype), embedded.shape)
    except ValueError as error:
        raise ValueError(
            f"baseline: expected what broadcasts to {embedded.shape}, got {jnp.shape(baseline)}."
        ) from error
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return IntegratedGradients(
        *_integrate(score, inputs, embedded, baseline, inside, (nodes + 1) / 2, weights / 2)
    )


@partial(jax.jit, static_argnames="score")
def _integrate(
    score: EmbeddedScore,
    inputs: Any,
    embedded: Array,
    baseline: Array,
    inside: Bool[Array, "B T"],
    nodes: Float[Array, "steps"],
    weights: Float[Array, "steps"],
) -> tuple[Array, Array, Array]:
    B, T = inside.shape
    baseline = jnp.where(inside.reshape(B, T, *[1] * (embedded.ndim - 2)), baseline, embedded)
    difference = embedded - baseline

    def scores(embedded: Array) -> Array:
        return checked_scores(score(inputs, embedded), B)

    def add(gradients: Array, point: tuple[Array, Array]) -> tuple[Array, None]:
        node, weight = (p.astype(embedded.dtype) for p in point)
        return gradients + weight * jax.grad(lambda e: jnp.sum(scores(e)))(
            baseline + node * difference
        ), None

    gradients, _ = jax.lax.scan(add, jnp.zeros_like(embedded), (nodes, weights))
    attributions = jnp.sum((gradients * difference).reshape(B, T, -1), axis=2)
    ends = jax.lax.map(scores, jnp.stack([baseline, embedded]))
    change = ends[1] - ends[0]
    return attributions, change, jnp.sum(attributions, axis=1) - change


def leave_one_out(
    score: Score,
    inputs: Any,
    shape: tuple[int, int],
    *,
    lengths: npt.ArrayLike | None = None,
) -> Float[Array, "B T"]:
    """What the score loses when one position alone is removed; exact, with T calls of the score.

    Args:
      score: as in `deletion_curve`.
      inputs: what the score takes.
      shape: B and T.
      lengths: integers `[B]`, how many positions of each example there are; None is T for all.

    Returns:
      The score of everything less the score without the position; 0 beyond the lengths.

    Raises:
      ValueError: if a length is wrong, or the score does not return one number per example.
    """
    return _left_out(score, inputs, inside_of(check_lengths(lengths, shape), shape[1]))


@partial(jax.jit, static_argnames="score")
def _left_out(score: Score, inputs: Any, inside: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    B, T = inside.shape

    def without(t: Array) -> Array:
        return checked_scores(score(inputs, inside & (jnp.arange(T) != t)), B)

    found = jax.lax.map(without, jnp.arange(T + 1))  # the last one is without nothing
    return jnp.where(inside, (found[T] - found[:T]).T, 0)
