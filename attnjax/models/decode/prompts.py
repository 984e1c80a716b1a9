"""What every way of decoding does with prompts, end tokens and constraints."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from attnjax.models.decode.arguments import DecodeFn


def read_prompt(
    decode: DecodeFn, cache: Any, prompt: Int[Array, "B P"], lengths: Int[Array, "B"] | None
) -> tuple[Int[Array, "B"], Any]:
    """Reads prompts but for their last tokens, which the first step reads.

    So XLA leaves out the logits of a prompt, which nobody looks at.

    Args:
      decode: the model.
      cache: its cache, empty if there are lengths.
      prompt: tokens, padded on the right.
      lengths: tokens of each, or None if there is no padding.

    Returns:
      The last token of each prompt, and the cache of what comes before.
    """
    if prompt.shape[1] > 1:
        _, cache = decode(prompt[:, :-1], cache)
    if lengths is None:
        return prompt[:, -1], cache
    last = jnp.take_along_axis(prompt, lengths[:, None] - 1, axis=1)[:, 0]
    return last, cache.rewind(lengths - 1)


def check_logits(logits: Array, B: int, ends: tuple[int, ...]) -> Float[Array, "B V"]:
    """Returns the logits of the last position, float32.

    Raises:
      ValueError: if they are no floats `[B, T, V]`, or an end token is beyond V.
    """
    if logits.ndim != 3 or logits.shape[0] != B or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"decode: expected to get float logits [{B}, T, V], got shape {logits.shape}, dtype "
            f"{logits.dtype}."
        )
    if ends and max(ends) >= logits.shape[-1]:
        raise ValueError(
            f"end: expected tokens below {logits.shape[-1]}, the vocabulary of the logits, got "
            f"{max(ends)}."
        )
    return logits[:, -1].astype(jnp.float32)


def is_end(token: Int[Array, "*B"], ends: tuple[int, ...]) -> Bool[Array, "*B"]:
    """Returns whether tokens are among the end tokens."""
    found = jnp.zeros(token.shape, bool)
    for end in ends:
        found |= token == end
    return found


def allowed_now(
    allowed: Any, tokens: Int[Array, "B M"], step: Array, shape: tuple[int, ...]
) -> Bool[Array, "*B V"]:
    """Returns which tokens may come next.

    Args:
      allowed: bool `[V]` or `[B, V]`, or a function.
      tokens: those so far.
      step: how many there are.
      shape: `[B, V]`.

    Raises:
      ValueError: if the function returns something else, or the array has another V.
    """
    mask = jnp.asarray(allowed(tokens, step) if callable(allowed) else allowed)
    if mask.dtype != jnp.bool_ or mask.shape not in (shape, shape[-1:]):
        raise ValueError(
            f"allowed: expected bool [B, V] of shape {shape}, or [V], got shape {mask.shape}, "
            f"dtype {mask.dtype}."
        )
    return mask
