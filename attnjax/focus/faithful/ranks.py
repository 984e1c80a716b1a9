"""Rank correlations of rows of different lengths, with ties."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from attnjax.focus.faithful.rows import check_rows

_PIECE = 1024


def spearman(
    a: npt.ArrayLike, b: npt.ArrayLike, *, lengths: npt.ArrayLike | None = None
) -> Float[np.ndarray, "B"]:
    """Spearman's rank correlation of each row: Pearson's of the ranks, ties sharing a mean rank.

    Args:
      a: numbers `[B, T]`, finite inside the lengths.
      b: as `a`.
      lengths: integers `[B]`, how many numbers of each row count, from the first; None is T.

    Returns:
      From -1 to 1; NaN for a row that is constant or shorter than 2 in `a` or `b`, where no
      correlation is defined.

    Raises:
      ValueError: if shapes differ, or a length or a number is wrong.
    """
    return _by_row(_spearman, a, b, lengths)


def kendall(
    a: npt.ArrayLike, b: npt.ArrayLike, *, lengths: npt.ArrayLike | None = None
) -> Float[np.ndarray, "B"]:
    """Kendall's rank correlation of each row, tau-b, which corrects for ties.

    Takes time `T^2`, and memory `T`.

    Args:
      a: numbers `[B, T]`, finite inside the lengths.
      b: as `a`.
      lengths: as in `spearman`.

    Returns:
      As `spearman`.

    Raises:
      ValueError: as `spearman`.
    """
    return _by_row(_kendall, a, b, lengths)


def _by_row(
    correlation: Callable[[np.ndarray, np.ndarray], float],
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    lengths: npt.ArrayLike | None,
) -> np.ndarray:
    (a, lengths), (b, _) = check_rows(a, lengths, "a"), check_rows(b, lengths, "b")
    if a.shape != b.shape:
        raise ValueError(f"b: expected the shape of a, {a.shape}, got {b.shape}.")
    rows = zip(a, b, lengths, strict=True)
    return np.array([correlation(x[:n], y[:n]) for x, y, n in rows], np.float64)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    x, y = (_ranks(v) - (len(v) + 1) / 2 for v in (a, b))
    return _ratio(float(x @ y), float(x @ x), float(y @ y))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    ordered = np.sort(values)
    below = np.searchsorted(ordered, values, side="left")
    upto = np.searchsorted(ordered, values, side="right")
    return (below + upto + 1) / 2


def _kendall(a: np.ndarray, b: np.ndarray) -> float:
    together = untied_a = untied_b = 0
    for start in range(0, len(a), _PIECE):
        x, y = (np.sign(v[start : start + _PIECE, None] - v) for v in (a, b))
        together += int(np.sum(x * y))
        untied_a += int(np.count_nonzero(x))
        untied_b += int(np.count_nonzero(y))
    return _ratio(together, untied_a, untied_b)


def _ratio(product: float, a: float, b: float) -> float:
    return float(np.clip(product / np.sqrt(a * b), -1, 1)) if a > 0 and b > 0 else float("nan")
