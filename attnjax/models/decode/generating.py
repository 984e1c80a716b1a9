"""Greedy decoding and sampling."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from attnjax.models.decode.arguments import (
    Allowed,
    DecodeFn,
    check_allowed,
    check_count,
    check_ends,
    check_keys,
    check_prompt,
    check_room,
    check_token,
)
from attnjax.models.decode.prompts import allowed_now, check_logits, is_end, read_prompt
from attnjax.models.decode.sampling import GREEDY, Sampling, choose, penalised
from attnjax.models.decode.stepping import as_pytree
from attnjax.typing import is_concrete


class Generated(NamedTuple):
    """What was generated.

    Attributes:
      tokens: int32 `[B, max_tokens]`, an end token included, padded behind it.
      lengths: int32 `[B]`, tokens before the end token or the padding.
      logprobs: float32 `[B]`, the log-probability of the tokens, an end token included, under the
        model itself: before penalty, temperature, filters and constraint. Minus infinity where an
        example stopped because no token was allowed, NaN where the model's logits were not finite,
        which a full cache does, too.
      ended: bool `[B]`, whether an end token was chosen.
    """

    tokens: Int[Array, "B M"]
    lengths: Int[Array, "B"]
    logprobs: Float[Array, "B"]
    ended: Bool[Array, "B"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a program is compiled for."""

    max_tokens: int
    ends: tuple[int, ...]
    sampling: Sampling
    pad: int


class Call(NamedTuple):
    """What stays the same from token to token; a pytree.

    Attributes:
      decode: the model.
      lengths: tokens of each prompt, `[B]`.
      keys: typed keys `[B]`, or None.
      allowed: bool `[V]` or `[B, V]`, a function, or None.
    """

    decode: DecodeFn
    lengths: Array
    keys: Array | None
    allowed: Any


class State(NamedTuple):
    """What goes from token to token.

    Attributes:
      step: tokens chosen so far, int32 `[]`.
      token: the token to read next, `[B]`.
      cache: the model's.
      live: whether the example goes on, `[B]`.
      seen: tokens of prompt and output, `[B, V]`, or None if there is no penalty.
      found: what was generated so far.
    """

    step: Array
    token: Array
    cache: Any
    live: Array
    seen: Array | None
    found: Generated


def generate(
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
) -> Generated:
    """Continues prompts, greedily or by sampling, until all have ended.

    Compiled once for each shape of the prompt and each choice of the other arguments, not for what
    the arrays hold; inside `jax.jit` it becomes part of that program. An example's result does not
    depend on the others, save that a batch of another size may round differently.

    Args:
      decode: `decode(tokens [B, T], cache) -> (logits [B, T, V], cache)`: `decode_fn(model)`, or
        `model.decode` of an `nnx.Module`, which is the same, without dropout. Of a plain function,
        whatever it closes over becomes part of the program, and each new function is compiled anew.
      cache: for `P + max_tokens - 1` positions; for prompts of several lengths an empty one, with
        `rewind(lengths)`.
      prompt: at least one token of each example, padded on the right.
      max_tokens: tokens to generate at most.
      end: token, or tokens, that end an example; None for none.
      lengths: tokens of each prompt; None if all are P long.
      sampling: how tokens are chosen.
      keys: typed keys, one per example, if anything is drawn. The same key and prompt draw the same
        tokens in any batch; a prompt continued by its own output goes on as if it had not stopped.
      allowed: which tokens may be chosen: bool `[V]` or `[B, V]`, or a function of the tokens so
        far, `[B, max_tokens]`, and their number. An example for which none is left stops there.
      pad: token that fills up the output.

    Returns:
      The tokens.

    Raises:
      ValueError: if an argument is wrong.
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
    ragged = lengths is not None
    run = _generate_jitted if is_concrete(*jax.tree.leaves((call, cache, prompt))) else _generate
    found: Generated = run(call, cache, prompt, settings=settings, ragged=ragged)
    return found


def prepare(
    decode: DecodeFn,
    cache: Any,
    prompt: Any,
    *,
    max_tokens: int,
    end: Any,
    lengths: Any,
    sampling: Sampling,
    keys: Any,
    allowed: Any,
    pad: int,
) -> tuple[Call, Settings, Array]:
    """Checks the arguments of `generate`, and returns them in groups."""
    prompt = check_prompt(prompt, lengths)
    B, P = prompt.shape
    check_keys(keys, sampling, B)
    max_tokens = check_count("max_tokens", max_tokens)
    check_room(cache, P, max_tokens, lengths is not None)
    widths = jnp.full(B, P, jnp.int32) if lengths is None else jnp.asarray(lengths, jnp.int32)
    call = Call(as_pytree(decode), widths, keys, check_allowed(allowed, B))
    return call, Settings(max_tokens, check_ends(end), sampling, check_token("pad", pad)), prompt


def start(call: Call, cache: Any, prompt: Array, *, settings: Settings, ragged: bool) -> State:
    """Reads all of the prompt but the last token of each example."""
    B = prompt.shape[0]
    token, cache = read_prompt(call.decode, cache, prompt, call.lengths if ragged else None)
    seen = None
    if settings.sampling.repetition_penalty != 1:
        logits, _ = jax.eval_shape(call.decode, token[:, None], cache)
        held = jnp.arange(prompt.shape[1]) < call.lengths[:, None]
        seen = jnp.zeros((B, logits.shape[-1]), bool)
        seen = seen.at[jnp.arange(B)[:, None], prompt].max(held)
    found = Generated(
        jnp.full((B, settings.max_tokens), settings.pad, jnp.int32),
        jnp.zeros(B, jnp.int32),
        jnp.zeros(B, jnp.float32),
        jnp.zeros(B, bool),
    )
    return State(jnp.zeros((), jnp.int32), token, cache, jnp.ones(B, bool), seen, found)


def advance(call: Call, state: State, *, settings: Settings) -> State:
    """Reads a token, and chooses the next one."""
    logits, cache = call.decode(state.token[:, None], state.cache)
    logits = check_logits(logits, state.token.size, settings.ends)
    total = jax.nn.logsumexp(logits, axis=-1)
    known = jnp.isfinite(total)

    scores, (tokens, lengths, logprobs, ended) = logits, state.found
    if state.seen is not None:
        scores = penalised(scores, state.seen, settings.sampling.repetition_penalty)
    possible = known
    if call.allowed is not None:
        allowed = allowed_now(call.allowed, tokens, state.step, logits.shape)
        scores = jnp.where(allowed, scores, -jnp.inf)
        possible &= jnp.any(scores > -jnp.inf, axis=-1)
    token = choose(scores, settings.sampling, call.keys, call.lengths + state.step)

    goes_on = state.live & possible
    change = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0] - total
    change = jnp.where(known, jnp.where(possible, change, -jnp.inf), jnp.nan)
    token = jnp.where(goes_on, token, settings.pad)
    at_end = goes_on & is_end(token, settings.ends)
    found = Generated(
        jax.lax.dynamic_update_slice_in_dim(tokens, token[:, None], state.step, axis=1),
        lengths + (goes_on & ~at_end),
        logprobs + jnp.where(state.live, change, 0),
        ended | at_end,
    )
    seen = state.seen
    if seen is not None:
        seen = seen.at[jnp.arange(token.size), token].max(goes_on)
    return State(state.step + 1, token, cache, goes_on & ~at_end, seen, found)


def _generate(
    call: Call, cache: Any, prompt: Array, *, settings: Settings, ragged: bool
) -> Generated:
    def unfinished(state: State) -> Array:
        return (state.step < settings.max_tokens) & jnp.any(state.live)

    body = functools.partial(advance, call, settings=settings)
    first = start(call, cache, prompt, settings=settings, ragged=ragged)
    return jax.lax.while_loop(unfinished, body, first).found


_generate_jitted = jax.jit(_generate, static_argnames=("settings", "ragged"))
