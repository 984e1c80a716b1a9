"""How the next token is chosen from logits."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_NOTHING = -float("inf")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: `temperature=0` takes the most likely one, all else draws.

    In this order: the repetition penalty, the temperature, then the filters, each on what the one
    before left over. Tokens as likely as the last one that a filter keeps stay, too.

    Sources: Fan et al., "Hierarchical Neural Story Generation" (2018) for top-k; Holtzman et al.,
    "The Curious Case of Neural Text Degeneration" (2020) for top-p; Nguyen et al., "Turning Up the
    Heat: Min-p Sampling" (2024); Keskar et al., "CTRL" (2019) for the repetition penalty.

    Attributes:
      temperature: divides the logits; 0 is greedy, whatever the filters.
      top_k: keeps so many of the most likely tokens; None keeps all.
      top_p: keeps the fewest of the most likely tokens whose probabilities sum to it, in (0, 1];
        None keeps all.
      min_p: keeps tokens at least so likely in proportion to the most likely one, in [0, 1]; None
        keeps all.
      repetition_penalty: positive logits of tokens that the prompt or the output holds are divided
        by it, negative ones multiplied; 1 changes nothing, more discourages.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                "Sampling.temperature: expected a number from 0, which is greedy, up; got "
                f"{self.temperature!r}."
            )
        if self.top_k is not None and (isinstance(self.top_k, bool) or not self.top_k >= 1):
            raise ValueError(
                f"Sampling.top_k: expected at least 1, or None for all tokens; got {self.top_k!r}."
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(
                f"Sampling.top_p: expected a number in (0, 1], or None; got {self.top_p!r}."
            )
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(
                f"Sampling.min_p: expected a number in [0, 1], or None; got {self.min_p!r}."
            )
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(
                "Sampling.repetition_penalty: expected a positive number, 1 for none; got "
                f"{self.repetition_penalty!r}."
            )

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0


GREEDY = Sampling(temperature=0.0)


def penalised(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: float
) -> Float[Array, "B V"]:
    """Returns logits with those of the tokens seen made smaller by a penalty above 1."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def filtered(logits: Float[Array, "*B V"], sampling: Sampling) -> Float[Array, "*B V"]:
    """Returns the logits that a token is drawn from, minus infinity for what was filtered out.

    Args:
      logits: float32; minus infinity for what is not allowed.
      sampling: the temperature, above 0, and the filters.
    """
    # The largest becomes 0, which no temperature is too small for.
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / sampling.temperature
    # Every filter keeps what reaches a threshold, so that no token has to be sorted back.
    threshold = jnp.full((*logits.shape[:-1], 1), _NOTHING, logits.dtype)
    if sampling.top_k is not None or sampling.top_p is not None:
        V = logits.shape[-1]
        largest, _ = jax.lax.top_k(logits, min(sampling.top_k or V, V))
        if sampling.top_p is not None and sampling.top_p < 1:
            share = jax.nn.softmax(largest, axis=-1)
            enough = jnp.cumsum(share, axis=-1) - share >= sampling.top_p
            largest = jnp.where(enough, float("inf"), largest)
        threshold = jnp.min(largest, axis=-1, keepdims=True)
    if sampling.min_p:
        threshold = jnp.maximum(threshold, math.log(sampling.min_p))
    return jnp.where(logits >= threshold, logits, _NOTHING)


def choose(
    logits: Float[Array, "B V"],
    sampling: Sampling,
    keys: Array | None,
    positions: Int[Array, "B"],
) -> Int[Array, "B"]:
    """Chooses a token for each example.

    Args:
      logits: float32; minus infinity for what is not allowed.
      sampling: how; its repetition penalty is not applied here.
      keys: typed keys `[B]`, which a greedy choice does not need.
      positions: number of tokens so far. A key is folded with it, so that a draw depends on the
        example alone: on neither the batch nor the padding.

    Returns:
      int32.
    """
    if sampling.greedy or keys is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw(key: Array, position: Array, logits: Array) -> Array:
        return jax.random.categorical(jax.random.fold_in(key, position), logits)

    return jax.vmap(draw)(keys, positions, filtered(logits, sampling)).astype(jnp.int32)
