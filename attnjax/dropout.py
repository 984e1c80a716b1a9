"""Dropout on attention weights, by position: the same for every implementation and sharding."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from attnjax.operands import AXES
from attnjax.typing import Index

# Threefry-2x32 passes BigCrush from 13 rounds on (Salmon et al., "Parallel Random Numbers: As Easy
# as 1, 2, 3", 2011); dropout needs no margin beyond that.
_ROUNDS = 13
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dropout:
    """Sets attention weights to 0 with probability `rate`, and scales the rest by `1/(1 - rate)`.

    Whether a weight is kept is a function of the key and the weight's global position (b, h, q, k)
    alone, computed where it is needed: the same key gives the same pattern in every implementation,
    for every block size and every sharding.

    Args:
      rate: probability in `[0, 1)`, a Python number.
      key: a PRNG key, `jax.random.key(...)` or a raw uint32 key.
      shared: letters of the axes, among B, N, T and S, along which all weights share one fate.
        `"BN"` gives every head of every batch element the same pattern, as Flax's
        `broadcast_dropout=True` does.

    Raises:
      ValueError: if the rate is outside `[0, 1)`, the key is not a single PRNG key, or `shared`
        holds another letter.
    """

    rate: float = dataclasses.field(metadata={"static": True})
    key: PRNGKeyArray
    shared: str = dataclasses.field(default="", metadata={"static": True})

    def __post_init__(self) -> None:
        if not isinstance(self.shared, str) or not set(self.shared) <= set(AXES):
            raise ValueError(
                f"Dropout.shared: expected letters among {', '.join(AXES)}, such as 'BN', "
                f"got {self.shared!r}."
            )
        if not isinstance(self.rate, int | float | np.number) or not 0 <= self.rate < 1:
            raise ValueError(f"Dropout.rate: expected a number in [0, 1), got {self.rate!r}.")

    def words(self) -> Array:
        """Returns two uint32 words that stand for the key.

        Raises:
          ValueError: if the key is not a single PRNG key.
        """
        key = self.key
        if not hasattr(key, "dtype"):
            raise ValueError(
                "Dropout.key: expected a PRNG key such as jax.random.key(0), "
                f"got {type(key).__name__}."
            )
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        raw = key.dtype == jnp.uint32 and tuple(key.shape) == _raw_key_shape()
        if not (raw or (typed and key.shape == ())):
            raise ValueError(
                "Dropout.key: expected a single PRNG key such as jax.random.key(0), got "
                f"shape {tuple(key.shape)}, dtype {key.dtype}."
            )
        return jax.random.bits(key, (2,), jnp.uint32)


def keep(words: Array, rate: float, index: Index, shared: str) -> Array:
    """Decides which weights stay.

    Args:
      words: uint32 `[2]`, from `Dropout.words`.
      rate: probability of dropping a weight.
      index: global positions that broadcast against each other.
      shared: as in `Dropout`.

    Returns:
      bool, True with probability `1 - rate`, of the broadcast shape of the positions, with size 1
      along the shared axes where only they vary.
    """
    b, h, q, k = (
        jnp.zeros((1,) * x.ndim, jnp.uint32) if letter in shared else x.astype(jnp.uint32)
        for letter, x in zip(AXES, index, strict=True)
    )
    per_head = _threefry(words[0], words[1], b, h)
    bits, _ = _threefry(*per_head, q, k)
    return bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def _raw_key_shape() -> tuple[int, ...]:
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape


def _threefry(key0: Array, key1: Array, x0: Array, x1: Array) -> tuple[Array, Array]:
    keys = (key0, key1, key0 ^ key1 ^ jnp.uint32(0x1BD11BDA))
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for i in range(_ROUNDS):
        rotation = _ROTATIONS[i % 8]
        x0 = x0 + x1
        x1 = ((x1 << rotation) | (x1 >> (32 - rotation))) ^ x0
        if i % 4 == 3:
            injection = i // 4 + 1
            x0 = x0 + keys[injection % 3]
            x1 = x1 + keys[(injection + 1) % 3] + jnp.uint32(injection)
    return x0, x1
