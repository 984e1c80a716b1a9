"""Complete hypotheses of a beam search, and their scores."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

NOTHING = -float("inf")


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How log-probabilities become scores.

    Source: Wu et al., "Google's Neural Machine Translation System" (2016), section 7.

    Attributes:
      length_penalty: power of the length that log-probabilities are divided by.
      coverage_penalty: factor of the coverage penalty.
    """

    length_penalty: float
    coverage_penalty: float

    def divisors(self, max_tokens: int) -> Float[Array, "n"]:
        """Returns the divisors of hypotheses of 0 to `max_tokens` tokens."""
        sizes = np.arange(max_tokens + 1)
        return jnp.asarray(((5 + sizes) / 6) ** self.length_penalty, jnp.float32)

    def penalties(
        self, coverage: Float[Array, "B beams S"], source_lengths: Int[Array, "n"]
    ) -> Float[Array, "B beams"]:
        """Returns the coverage penalties, 0 at most.

        Args:
          coverage: attention to each source token so far.
          source_lengths: tokens of each source, `[B * beams]`.
        """
        # A token that nothing looks at would make all hypotheses equal, at minus infinity.
        logs = jnp.log(jnp.clip(coverage, jnp.finfo(jnp.float32).tiny, 1.0))
        lengths = source_lengths.reshape(*coverage.shape[:2], 1)
        inside = jnp.arange(coverage.shape[-1]) < lengths
        return self.coverage_penalty * jnp.sum(jnp.where(inside, logs, 0), axis=-1)


class Hypotheses(NamedTuple):
    """Complete hypotheses, the best first.

    Attributes:
      tokens: `[B, beams, M]`.
      sizes: tokens of each, the end token included, `[B, beams]`.
      scores: `[B, beams]`, minus infinity for none.
    """

    tokens: Array
    sizes: Array
    scores: Array


def merge(one: Hypotheses, other: Hypotheses) -> Hypotheses:
    """Returns the best of both; of equal ones those that come first."""
    sizes = jnp.broadcast_to(other.sizes, other.scores.shape)
    K = one.scores.shape[1]
    scores, chosen = jax.lax.top_k(jnp.concatenate((one.scores, other.scores), axis=1), K)
    tokens = jnp.concatenate((one.tokens, other.tokens), axis=1)
    sizes = jnp.concatenate((one.sizes, sizes), axis=1)
    return Hypotheses(
        jnp.take_along_axis(tokens, chosen[..., None], axis=1),
        jnp.take_along_axis(sizes, chosen, axis=1),
        scores,
    )
