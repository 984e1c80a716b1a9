"""Axis letters and aliases shared by the whole library.

The letters are those of `jax.nn.dot_product_attention`, plus `D`:

| letter | axis |
|---|---|
| B | batch |
| T | query time |
| S | key/value time |
| N | query heads |
| K | key/value heads, `N % K == 0` |
| H | head width of queries and keys |
| D | head width of values |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

__all__ = [
    "Array",
    "Bool",
    "Float",
    "Index",
    "Int",
    "PRNGKeyArray",
    "ScoreFn",
    "is_array",
    "is_concrete",
]


class Index(NamedTuple):
    """Global positions that broadcast against one tile of scores.

    Attributes:
      b: batch element, int32.
      h: query head, int32.
      q: query position, int32.
      k: key position, int32.
    """

    b: Array
    h: Array
    q: Array
    k: Array

    def moved(self, origin: Any) -> Index:
        """Returns the positions in a whole call of a part that begins at `origin`, or at 0."""
        if origin is None:
            return self
        return Index(*(x + origin[n] for n, x in enumerate(self)))


ScoreFn = Callable[..., Array]
"""`fn(score, b, h, q_idx, k_idx) -> score` on float32 tiles of any shape."""


def is_array(x: object) -> bool:
    """Returns whether it is an array, a tracer or the shape of one, and no Python number."""
    return hasattr(x, "shape") and hasattr(x, "dtype")


def is_concrete(*arrays: object) -> bool:
    """Returns whether every value is known now, rather than while a trace runs."""
    return not any(isinstance(a, jax.core.Tracer | jax.ShapeDtypeStruct) for a in arrays)
