"""What all measures take: one number per position, for examples of different lengths."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float


def check_rows(
    values: npt.ArrayLike, lengths: npt.ArrayLike | None, name: str = "attributions"
) -> tuple[np.ndarray, np.ndarray]:
    """Returns values as float64 `[B, T]`, and lengths as int32 `[B]`.

    Raises:
      ValueError: if a shape or a length is wrong, or a value inside the lengths is not finite.
    """
    rows = np.asarray(values, np.float64)
    if rows.ndim != 2:
        raise ValueError(f"{name}: expected numbers [B, T], got shape {rows.shape}.")
    checked = check_lengths(lengths, rows.shape)
    bad = ~np.isfinite(rows) & inside_of(checked, rows.shape[1])
    if bad.any():
        b, t = np.argwhere(bad)[0]
        raise ValueError(f"{name}: expected finite numbers, got {rows[b, t]} at [{b}, {t}].")
    return rows, checked


def check_lengths(lengths: npt.ArrayLike | None, shape: tuple[int, ...]) -> np.ndarray:
    """Returns lengths as int32 `[B]`, T for all if there are none, given a shape `[B, T, ...]`.

    Raises:
      ValueError: if they are not B integers from 0 to T.
    """
    B, T = shape[:2]
    found = np.full(B, T) if lengths is None else np.asarray(lengths)
    if found.shape != (B,) or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(
            f"lengths: expected integers [B={B}], got shape {found.shape}, dtype {found.dtype}."
        )
    if np.any((found < 0) | (found > T)):
        raise ValueError(f"lengths: expected numbers from 0 to T={T}, got {found.tolist()}.")
    return found.astype(np.int32)


def inside_of(lengths: np.ndarray, T: int) -> np.ndarray:
    """Returns which positions exist, bool `[B, T]`."""
    return np.arange(T) < lengths[:, None]


def checked_scores(scores: Any, B: int) -> Float[Array, "B"]:
    """Returns what a score function gave, in float32 or wider.

    Raises:
      ValueError: if it is not one number per example.
    """
    if jnp.shape(scores) != (B,):
        raise ValueError(
            f"score: expected to return one number per example, shape [B={B}], got "
            f"{jax.tree.map(jnp.shape, scores)}."
        )
    return jnp.asarray(scores, jnp.promote_types(jnp.result_type(scores), jnp.float32))
