"""The work that is measured: shapes, masks and score_mods, the same for every contestant."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import attnjax

NAMES = ("causal", "documents", "window", "soft_cap", "bias", "prefix")
"""All cases, those that decide most first: where time runs out, the last ones are skipped."""
DIRECTIONS = ("fwd", "fwdbwd")
DOCUMENTS = 16
SOFT_CAP = 30.0
# Of a forward pass and a forward and backward pass, in matrix products of T by S by H.
_PRODUCTS = {"fwd": 2, "fwdbwd": 7}


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of a case: `[B, T, N, H]` for each of q, k and v.

    Attributes:
      B: batch.
      T: length.
      N: heads.
      H: head width.
      dtype: type of q, k and v.
    """

    B: int
    T: int
    N: int
    H: int
    dtype: str


@dataclasses.dataclass(frozen=True)
class Work:
    """One case with its arrays.

    Attributes:
      name: the case.
      shape: its shape.
      inputs: q, k and v, `[B, T, N, H]`.
      cotangent: of the output, of its shape.
      extras: what the mask and the score_mod are made of: `ids [B, T]` or `bias [1, 1, T, T]`.
      window: how many keys before a query it sees, itself not counted; None is all.
      prefix: how many keys every query sees.
      soft_cap: of the scores, or None.
    """

    name: str
    shape: Shape
    inputs: tuple[jax.Array, jax.Array, jax.Array]
    cotangent: jax.Array
    extras: Mapping[str, jax.Array]
    window: int | None = None
    prefix: int = 0
    soft_cap: float | None = None

    def mask(self, extras: Mapping[str, jax.Array]) -> attnjax.Mask:
        """Returns the mask; `extras` are this work's, perhaps traced."""
        mask: attnjax.Mask = attnjax.Causal()
        if self.window is not None:
            mask = mask & attnjax.Window(self.window, 0)
        if self.prefix:
            mask = mask | attnjax.Prefix(self.prefix)
        if "ids" in extras:
            mask = mask & attnjax.Segments(extras["ids"])
        return mask

    def score_mod(self, extras: Mapping[str, jax.Array]) -> Any:
        """Returns the score_mod, or None."""
        if "bias" in extras:
            return attnjax.bias(extras["bias"])
        return None if self.soft_cap is None else attnjax.soft_cap(self.soft_cap)

    @functools.cached_property
    def dense(self) -> jax.Array:
        """The mask as an array, `[1, 1, T, T]`, for those who know no other."""
        position, zero = jnp.arange(self.shape.T), jnp.int32(0)
        return self.mask(self.extras).at(zero, zero, position[:, None], position[None])[None, None]

    @functools.cached_property
    def pairs(self) -> int:
        """How many pairs of a query and a key one head of one sequence attends to."""
        return int(np.asarray(self.dense).sum())

    def flops(self, direction: str) -> float:
        """Returns the operations that the mask leaves of a pass; a multiply-add counts as two."""
        size = self.shape
        return 2.0 * _PRODUCTS[direction] * size.B * size.N * size.H * self.pairs


def make(name: str, shape: Shape, seed: int = 0) -> Work:
    """Returns a case with random arrays.

    Raises:
      ValueError: for an unknown case.
    """
    if name not in NAMES:
        raise ValueError(f"case: expected one of {', '.join(NAMES)}; got {name!r}.")
    keys = jax.random.split(jax.random.key(seed), 5)
    size = (shape.B, shape.T, shape.N, shape.H)
    q, k, v, cotangent = (jax.random.normal(key, size, shape.dtype) for key in keys[:4])
    extras: dict[str, jax.Array] = {}
    options: dict[str, Any] = {}
    match name:
        case "documents":
            ids = jnp.arange(shape.T, dtype=jnp.int32) * DOCUMENTS // shape.T
            extras["ids"] = jnp.broadcast_to(ids, (shape.B, shape.T))
        case "window":
            options["window"] = max(shape.T // 8 - 1, 1)
        case "soft_cap":
            options["soft_cap"] = SOFT_CAP
        case "bias":
            extras["bias"] = jax.random.normal(keys[4], (1, 1, shape.T, shape.T), shape.dtype)
        case "prefix":
            options["prefix"] = max(shape.T // 4, 1)
    return Work(name, shape, (q, k, v), cotangent, extras, **options)


def reference(work: Work, direction: str) -> dict[str, np.ndarray]:
    """Returns the right output and gradients, computed in float32.

    Up to T = 2048 it is the reference, beyond it our blockwise implementation.
    """
    name = "reference" if work.shape.T <= 2048 else "blockwise"

    def attend(q: Any, k: Any, v: Any, extras: Any) -> jax.Array:
        out: jax.Array = attnjax.attention(
            q,
            k,
            v,
            mask=work.mask(extras),
            score_mod=work.score_mod(extras),
            implementation=name,
        )
        return out

    exact = [x.astype(jnp.float32) for x in (*work.inputs, work.cotangent)]
    outputs = jax.jit(directed(attend, direction))(*exact, work.extras)
    return named(outputs)


def directed(attend: Callable[..., Any], direction: str) -> Callable[..., tuple[Any, ...]]:
    """Returns a pass as `fn(q, k, v, cotangent, extras)`: the output, and gradients of q, k, v."""
    if direction == "fwd":
        return lambda q, k, v, cotangent, extras: (attend(q, k, v, extras),)

    def both(q: Any, k: Any, v: Any, cotangent: Any, extras: Any) -> tuple[Any, ...]:
        out, back = jax.vjp(lambda *qkv: attend(*qkv, extras), q, k, v)
        return out, *back(cotangent.astype(out.dtype))

    return both


def named(outputs: tuple[Any, ...]) -> dict[str, np.ndarray]:
    """Returns the results of a pass by name, as float32 on the host.

    Of long arrays `[B, T, N, H]` it takes every n-th position, n odd, so that every block and every
    row of a tile is among them: all of them would take longer to compare than to compute.
    """
    names = ("out", "dq", "dk", "dv")
    step = outputs[0].shape[1] // 1024 | 1
    thin = [np.asarray(x[:, ::step]).astype(np.float32) for x in outputs]
    return dict(zip(names, thin, strict=False))
