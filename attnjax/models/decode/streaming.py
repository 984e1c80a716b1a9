"""Tokens one at a time, on the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from attnjax.models.decode.arguments import Allowed, DecodeFn
from attnjax.models.decode.generating import Call, Settings, State, advance, prepare, start
from attnjax.models.decode.sampling import GREEDY, Sampling


def stream(
    decode: DecodeFn,
    cache: Any,
    prompt: Int[Array, "B P"],
    *,
    max_tokens: int,
    end: int | tuple[int, ...] | None,
    lengths: Int[Array, "B"] | None = None,
    sampling: Sampling = GREEDY,
    keys: Array | None = None,
    allowed: Allowed = None,
    pad: int = 0,
) -> Iterator[np.ndarray]:
    """Continues prompts as `generate` does, and gives each token as soon as it is chosen.

    The step after a token is dispatched before that token is fetched, so that the host and the
    device work side by side. Compiled once for each shape of the prompt and each choice of the
    other arguments, which are those of `generate`.

    Args:
      decode: as in `generate`, and so are all others.
      cache: likewise.
      prompt: likewise.
      max_tokens: likewise.
      end: likewise.
      lengths: likewise.
      sampling: likewise.
      keys: likewise.
      allowed: likewise.
      pad: likewise.

    Returns:
      An iterator over int32 arrays `[B]`: the columns of `generate`'s tokens until all examples
      have ended.

    Raises:
      ValueError: if an argument is wrong; FloatingPointError, from the iterator: if the model's
        logits were not finite for an example that had not ended.
    """
    call, settings, prompt = prepare(
        decode,
        cache,
        prompt,
        max_tokens=max_tokens,
        end=end,
        lengths=lengths,
        sampling=sampling,
        keys=keys,
        allowed=allowed,
        pad=pad,
    )
    return _tokens(call, cache, prompt, settings, lengths is not None)


def _tokens(
    call: Call, cache: Any, prompt: Array, settings: Settings, ragged: bool
) -> Iterator[np.ndarray]:
    state, *now = _first(call, cache, prompt, settings=settings, ragged=ragged)
    for n in range(settings.max_tokens):
        before = now
        if n + 1 < settings.max_tokens:
            state, *now = _next(call, state, settings=settings)
        token, live, logprobs = (np.asarray(x) for x in before)
        if np.isnan(logprobs).any():
            raise FloatingPointError(
                f"decode: expected finite logits, got others for examples "
                f"{np.flatnonzero(np.isnan(logprobs)).tolist()}. Is the model's cache too small?"
            )
        yield token
        if not live.any():
            return


def _shown(state: State) -> tuple[State, Array, Array, Array]:
    return state, state.token, state.live, state.found.logprobs


@jax.jit(static_argnames=("settings", "ragged"))
def _first(call: Call, cache: Any, prompt: Array, *, settings: Settings, ragged: bool) -> Any:
    state = start(call, cache, prompt, settings=settings, ragged=ragged)
    return _shown(advance(call, state, settings=settings))


@jax.jit(static_argnames=("settings",), donate_argnames=("state",))
def _next(call: Call, state: State, *, settings: Settings) -> Any:
    return _shown(advance(call, state, settings=settings))
