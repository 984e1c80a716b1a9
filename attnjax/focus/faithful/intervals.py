"""Confidence intervals of means over examples."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_AT_ONCE = 2**22


def bootstrap_interval(
    values: npt.ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """A confidence interval of the mean by the percentile bootstrap over examples.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3.

    Args:
      values: one number per example, `[B]`.
      level: probability that the interval holds the mean.
      resamples: how many samples of B examples, with replacement, are drawn.
      seed: of the drawing.

    Returns:
      The lower and the upper end.

    Raises:
      ValueError: if there is no example, a value is not finite, or an option is out of range.
    """
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or not found.size or not np.isfinite(found).all():
        raise ValueError(
            "values: expected one finite number per example, and an example at least, got shape "
            f"{found.shape}."
        )
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(
            f"expected level in (0, 1) and resamples at least 1, got {level} and {resamples}."
        )
    rng, means, piece = np.random.default_rng(seed), [], max(1, _AT_ONCE // found.size)
    for start in range(0, resamples, piece):
        count = min(piece, resamples - start)
        means.append(found[rng.integers(0, found.size, (count, found.size))].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
