"""Deletion and insertion: how the score falls, or rises, when an explanation is taken at its word.

Positions are removed, or brought back, in the order of an explanation. If it is true, removing what
it puts first hurts the score most. The baseline is the same in an order drawn at random.

Sources: Samek et al., "Evaluating the Visualization of What a Deep Neural Network Has Learned"
(2017); Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models"
(2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Bool, Float

from attnjax.focus.faithful.rows import check_rows, checked_scores, inside_of


class Score(Protocol):
    """What an explanation explains: one number per example, given which positions remain.

    What removing means is the score's own affair: masking out, another token, a mean embedding. It
    is compiled once per function object and shape, so define it once, and pass parameters in the
    inputs, or they become constants of the program.
    """

    def __call__(self, inputs: Any, keep: Array, /) -> Array:
        """Returns scores `[B]`, given any pytree, and bool `[B, T]`, True = remains."""
        ...


SHARES = tuple(n / 10 for n in range(11))
"""The shares of the positions after which a curve has a point, if nothing else is said."""


class Curve(NamedTuple):
    """The score against the share of the positions that were removed, or brought back.

    Attributes:
      shares: `[K]`, increasing, from 0 to 1.
      scores: `[B, K]`.
    """

    shares: Float[np.ndarray, "K"]
    scores: Float[np.ndarray, "B K"]

    @property
    def area(self) -> Float[np.ndarray, "B"]:
        """The area under each curve by the trapezoid rule: the mean score over the shares."""
        return np.trapezoid(self.scores, self.shares, axis=1)


def deletion_curve(
    score: Score,
    inputs: Any,
    attributions: npt.ArrayLike,
    *,
    lengths: npt.ArrayLike | None = None,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> Curve:
    """Removes positions, those with the largest attributions first.

    Args:
      score: what the explanation explains.
      inputs: what the score takes.
      attributions: `[B, T]`, finite inside the lengths. Positions with equal attributions go in an
        order drawn at random.
      lengths: integers `[B]`, how many positions of each example there are, from the first; None
        is T for all. Positions beyond are never kept.
      shares: increasing, the first 0, the last 1. Of L positions the share s is s * L rounded
        (half up) positions.
      seed: for the order of equal attributions.

    Returns:
      The curve. A low area speaks for the explanation.

    Raises:
      ValueError: if a shape, a length or a share is wrong, or an attribution is not finite.
    """
    rank, lengths = _ranks(attributions, lengths, seed)
    return _curve(score, inputs, rank, _counts(shares, lengths), lengths, shares)


def insertion_curve(
    score: Score,
    inputs: Any,
    attributions: npt.ArrayLike,
    *,
    lengths: npt.ArrayLike | None = None,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> Curve:
    """Starts with nothing and brings positions back, those with the largest attributions first.

    Args:
      score: what the explanation explains.
      inputs: what the score takes.
      attributions: as in `deletion_curve`.
      lengths: as in `deletion_curve`.
      shares: as in `deletion_curve`, of the positions that are back.
      seed: for the order of equal attributions.

    Returns:
      The curve. A high area speaks for the explanation.

    Raises:
      ValueError: as `deletion_curve`.
    """
    rank, lengths = _ranks(attributions, lengths, seed)
    # To keep the first c of L is to remove L - c from the other end, by the same program.
    backwards = np.where(rank < lengths[:, None], lengths[:, None] - 1 - rank, rank)
    counts = lengths - _counts(shares, lengths)
    return _curve(score, inputs, backwards, counts, lengths, shares)


class RandomCurves(NamedTuple):
    """Curves of orders drawn at random.

    Attributes:
      deletion: the mean over the orders.
      insertion: the mean over the orders.
    """

    deletion: Curve
    insertion: Curve


def random_curves(
    score: Score,
    inputs: Any,
    shape: tuple[int, int],
    *,
    lengths: npt.ArrayLike | None = None,
    shares: Sequence[float] = SHARES,
    orders: int = 8,
    seed: int = 0,
) -> RandomCurves:
    """Removes, and brings back, positions in orders drawn at random: the baseline of both curves.

    Args:
      score: as in `deletion_curve`.
      inputs: what the score takes.
      shape: B and T.
      lengths: as in `deletion_curve`.
      shares: as in `deletion_curve`.
      orders: how many orders to average over, each with positions of its own for every example.
      seed: of the orders.

    Returns:
      The mean curves.

    Raises:
      ValueError: as `deletion_curve`, or if there is no order.
    """
    if orders < 1:
        raise ValueError(f"orders: expected at least 1, got {orders}.")
    rng, found = np.random.default_rng(seed), []
    for _ in range(orders):
        drawn = rng.random(shape)
        options: Any = {"lengths": lengths, "shares": shares}
        found.append(
            [
                curve(score, inputs, drawn, **options).scores
                for curve in (deletion_curve, insertion_curve)
            ]
        )
    at, (deletion, insertion) = np.array(shares, np.float64), np.mean(found, axis=0)
    return RandomCurves(Curve(at, deletion), Curve(at, insertion))


def _ranks(
    attributions: npt.ArrayLike, lengths: npt.ArrayLike | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Each position's place in the order, int32 `[B, T]` (padding last), and the lengths `[B]`."""
    values, lengths = check_rows(attributions, lengths)
    ties = np.random.default_rng(seed).random(values.shape)
    first = np.where(inside_of(lengths, values.shape[1]), -values, np.inf)
    order = np.lexsort((ties, first), axis=1)
    # Padding has no finite key, so it comes last, whatever the attributions.
    return np.argsort(order, axis=1).astype(np.int32), lengths


def _counts(shares: Sequence[float], lengths: np.ndarray) -> np.ndarray:
    """How many positions each share is, int32 `[K, B]`."""
    at = np.array(shares, np.float64)
    rising = at.ndim == 1 and at.size > 1 and bool(np.all(np.diff(at) > 0))
    if not rising or at[0] != 0 or at[-1] != 1:
        raise ValueError(f"shares: expected to increase from 0 to 1, got {tuple(shares)}.")
    # The small number makes up for products such as 0.1 * 5, which may fall short of a half.
    return np.floor(at[:, None] * lengths + 0.5 + 1e-9).astype(np.int32)


def _curve(
    score: Score,
    inputs: Any,
    rank: np.ndarray,
    counts: np.ndarray,
    lengths: np.ndarray,
    shares: Sequence[float],
) -> Curve:
    inside = inside_of(lengths, rank.shape[1])
    scores = _without_the_first(score, inputs, rank, counts, inside)
    return Curve(np.array(shares, np.float64), np.asarray(scores, np.float64).T)


@partial(jax.jit, static_argnames="score")
def _without_the_first(
    score: Score, inputs: Any, rank: Array, counts: Array, inside: Bool[Array, "B T"]
) -> Float[Array, "K B"]:
    def one(count: Array) -> Array:
        return checked_scores(score(inputs, inside & (rank >= count[:, None])), inside.shape[0])

    return jax.lax.map(one, jnp.asarray(counts))
