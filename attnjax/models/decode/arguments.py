"""Checks what the decoding functions are given."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from attnjax.models.decode.sampling import Sampling
from attnjax.models.decode.stepping import as_pytree
from attnjax.typing import is_concrete

DecodeFn = Callable[[Array, Any], tuple[Array, Any]]
"""`decode(tokens [B, T], cache) -> (logits [B, T, V], cache)`, such as `decode_fn(model)`."""

Allowed = Array | Callable[[Array, Array], Array] | None
"""bool `[V]` or `[B, V]`, or `allowed(tokens [B, max_tokens], step) -> bool [B, V]`, or None."""

# Under vmap, these give a key's numbers by its place in the batch.
_PLACED_KEYS = ("rbg", "unsafe_rbg")


def check_prompt(prompt: Any, lengths: Any) -> Array:
    """Returns the prompt as an array; raises ValueError unless it is integers `[B, P]` that fit."""
    prompt = jnp.asarray(prompt)
    if prompt.ndim != 2 or 0 in prompt.shape or not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise ValueError(
            f"prompt: expected integers [B, P], at least one token of each example, got shape "
            f"{prompt.shape}, dtype {prompt.dtype}. To begin from nothing, give the begin token."
        )
    if lengths is not None:
        B, P = prompt.shape
        shape, dtype = jnp.shape(lengths), jnp.result_type(lengths)
        if shape != (B,) or not jnp.issubdtype(dtype, jnp.integer):
            raise ValueError(
                f"lengths: expected integers [B={B}], the tokens of each prompt, got shape "
                f"{shape}, dtype {dtype}."
            )
        if is_concrete(lengths):
            found = np.asarray(lengths)
            if found.min() < 1 or found.max() > P:
                raise ValueError(
                    f"lengths: expected 1 to {P}, the width of the prompt, got {found.min()} to "
                    f"{found.max()}."
                )
    return prompt.astype(jnp.int32)


def check_room(cache: Any, P: int, max_tokens: int, ragged: bool) -> None:
    """Raises ValueError if a cache is known to be too small, or to hold what ragged prompts can't.

    Caches say what they hold by `capacity` and `length`; of others nothing is known.
    """
    capacity, length = getattr(cache, "capacity", None), getattr(cache, "length", None)
    held = int(np.max(np.asarray(length))) if length is not None and is_concrete(length) else 0
    if ragged and held:
        raise ValueError(
            f"cache: expected an empty one for prompts of several lengths, got one that holds "
            f"{held} positions. Decode prompts of one length, or begin anew."
        )
    if capacity is not None and held + P - 1 + max_tokens > capacity:
        raise ValueError(
            f"cache: expected room for {P} tokens of the prompt and {max_tokens} more but the last,"
            f" got {held} of {capacity} slots filled. Make it with a capacity of at least "
            f"{held + P - 1 + max_tokens}."
        )


def check_count(name: str, value: Any) -> int:
    """Returns an integer of at least 1, or raises ValueError."""
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1 or isinstance(value, bool):
        raise ValueError(f"{name}: expected an integer, at least 1, got {value!r}.")
    return count


def check_finite(name: str, value: Any, *, least: float = -math.inf) -> float:
    """Returns a finite number of at least some value, or raises ValueError."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= least):
        bound = "" if least == -math.inf else f", at least {least:g}"
        raise ValueError(f"{name}: expected a finite number{bound}; got {value!r}.")
    return number


def check_token(name: str, value: Any) -> int:
    """Returns a token, or raises ValueError."""
    try:
        token = operator.index(value)
    except TypeError:
        token = -1
    if token < 0 or isinstance(value, bool):
        raise ValueError(f"{name}: expected a token, an integer from 0, got {value!r}.")
    return token


def check_ends(end: Any) -> tuple[int, ...]:
    """Returns the end tokens, or raises ValueError."""
    if end is None:
        return ()
    ends = tuple(check_token("end", x) for x in (end if isinstance(end, tuple) else (end,)))
    if len(set(ends)) < len(ends):
        raise ValueError(f"end: expected different tokens, got {ends}.")
    return ends


def check_keys(keys: Any, sampling: Sampling, B: int) -> None:
    """Raises ValueError unless there is a key for each example if something is drawn."""
    if not isinstance(sampling, Sampling):
        raise ValueError(f"sampling: expected a Sampling, got {sampling!r}.")
    if sampling.greedy:
        if keys is not None:
            raise ValueError("keys: expected None, for temperature=0 draws nothing.")
        return
    remedy = "Make them by jax.random.split(jax.random.key(seed), B)."
    if keys is None or not jnp.issubdtype(jnp.asarray(keys).dtype, jax.dtypes.prng_key):
        got = "None" if keys is None else f"dtype {jnp.asarray(keys).dtype}"
        raise ValueError(f"keys: expected typed keys [B={B}], one per example, got {got}. {remedy}")
    if keys.shape != (B,):
        raise ValueError(
            f"keys: expected typed keys [B={B}], one per example, got shape {keys.shape}. {remedy}"
        )
    kind = str(jax.random.key_impl(keys))
    if any(name in kind for name in _PLACED_KEYS):
        raise ValueError(
            f"keys: expected keys whose numbers do not depend on the batch, got {kind}. Make them "
            "with impl='threefry2x32'."
        )


def check_allowed(allowed: Any, B: int) -> Any:
    """Returns a mask as an array or a function as a pytree, or raises ValueError."""
    if allowed is None or callable(allowed):
        return None if allowed is None else as_pytree(allowed)
    shape, dtype = jnp.shape(allowed), jnp.result_type(allowed)
    if dtype != jnp.bool_ or len(shape) not in (1, 2) or shape[:-1] not in ((), (B,)):
        raise ValueError(
            f"allowed: expected bool [V] or [B={B}, V], or a function, got shape {shape}, dtype "
            f"{dtype}."
        )
    if is_concrete(allowed) and not np.asarray(allowed).any(axis=-1).all():
        raise ValueError("allowed: expected at least one token of each example, got none.")
    return jnp.asarray(allowed)
