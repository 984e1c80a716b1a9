"""Beam search."""

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
    check_finite,
    check_prompt,
    check_room,
    check_token,
)
from attnjax.models.decode.hypotheses import NOTHING, Hypotheses, Scoring, merge
from attnjax.models.decode.prompts import allowed_now, check_logits, read_prompt
from attnjax.models.decode.stepping import as_pytree
from attnjax.typing import is_concrete


class Beams(NamedTuple):
    """The best hypotheses of each example, the best first.

    Attributes:
      tokens: int32 `[B, beams, max_tokens]`, an end token included, padded behind it.
      lengths: int32 `[B, beams]`, tokens before the end token or the padding.
      scores: float32 `[B, beams]`; minus infinity where there are fewer hypotheses than beams, NaN
        where the model's logits were not finite, which a full cache does, too.
      ended: bool `[B, beams]`, whether the hypothesis has an end token. Those that have one come
        before those that were cut at `max_tokens`.
    """

    tokens: Int[Array, "B beams M"]
    lengths: Int[Array, "B beams"]
    scores: Float[Array, "B beams"]
    ended: Bool[Array, "B beams"]


@dataclasses.dataclass(frozen=True)
class _Settings:
    max_tokens: int
    ends: tuple[int, ...]
    beams: int
    scoring: Scoring
    pad: int
    early_stop: bool


class _Call(NamedTuple):
    decode: DecodeFn
    lengths: Array | None
    allowed: Any


class _State(NamedTuple):
    """What goes from token to token.

    Attributes:
      step: tokens so far, int32 `[]`.
      token: the token to read next, `[B, beams]`.
      cache: the model's, of `B * beams` examples.
      tokens: of the prefixes that go on, `[B, beams, M]`.
      logprobs: of those, minus infinity for none, `[B, beams]`.
      coverage: attention to each source token so far, `[B, beams, S]`, or None.
      complete: hypotheses that ended.
      broken: whether logits were not finite, `[B]`.
    """

    step: Array
    token: Array
    cache: Any
    tokens: Array
    logprobs: Array
    coverage: Array | None
    complete: Hypotheses
    broken: Array


def beam_search(
    decode: DecodeFn,
    cache: Any,
    prompt: Int[Array, "B P"],
    *,
    max_tokens: int,
    end: int | tuple[int, ...] | None,
    lengths: Int[Array, "B"] | None = None,
    beams: int = 4,
    length_penalty: float = 0.6,
    coverage_penalty: float = 0.0,
    allowed: Allowed = None,
    pad: int = 0,
    early_stop: bool = True,
) -> Beams:
    """Searches for the most likely continuations of prompts.

    At each step the `beams` most likely prefixes without an end token go on, and every one of them
    that can end is a hypothesis: `tokens` with score

    `log P / ((5 + n) / 6) ** length_penalty + coverage_penalty * sum_s log(min(coverage_s, 1))`

    for `n` tokens, an end token included, where `coverage_s` is the attention that source token `s`
    got from all steps. The search stops when no prefix can lead to a hypothesis better than those
    that an example has: log-probabilities only fall, so what a prefix has now, divided by the
    largest divisor still to come, bounds its score. Prefixes that reach `max_tokens` without end
    are returned after all hypotheses that ended.

    Source: Wu et al., "Google's Neural Machine Translation System" (2016), section 7, but for its
    pruning, which may drop the best hypothesis.

    Args:
      decode: as in `generate`.
      cache: as in `generate`, of B examples, with `take(index)`; with a coverage penalty also with
        `attention`, the weights `[B, S]` of the position decoded last, and `source_lengths [B]`.
      prompt: as in `generate`.
      max_tokens: tokens to generate at most, the end token included.
      end: token, or tokens, that end a hypothesis; None for none.
      lengths: as in `generate`.
      beams: how many prefixes are kept of each example, and hypotheses returned.
      length_penalty: 0 for none; more prefers longer hypotheses.
      coverage_penalty: at least 0; more prefers hypotheses that looked at all of the source.
      allowed: as in `generate`, the function being called for `[B, max_tokens]` of each beam.
      pad: token that fills up the output.
      early_stop: whether to stop when no better hypothesis can come; False gives the same result,
        later.

    Returns:
      The hypotheses.

    Raises:
      ValueError: if an argument is wrong.
    """
    prompt = check_prompt(prompt, lengths)
    B, P = prompt.shape
    settings = _Settings(
        check_count("max_tokens", max_tokens),
        check_ends(end),
        check_count("beams", beams),
        Scoring(
            check_finite("length_penalty", length_penalty),
            check_finite("coverage_penalty", coverage_penalty, least=0.0),
        ),
        check_token("pad", pad),
        early_stop,
    )
    check_room(cache, P, settings.max_tokens, lengths is not None)
    for name in ("attention", "source_lengths") if settings.scoring.coverage_penalty else ():
        if getattr(cache, name, None) is None:
            raise ValueError(
                f"cache: expected one that tells `{name}`, which a coverage penalty needs, got "
                "none. Make it by init_cache(..., attention=True) of an encoder-decoder."
            )
    call = _Call(as_pytree(decode), lengths, check_allowed(allowed, B))
    search = _search_jitted if is_concrete(*jax.tree.leaves((call, cache, prompt))) else _search
    found: Beams = search(call, cache, prompt, settings=settings)
    return found


def _search(call: _Call, cache: Any, prompt: Array, *, settings: _Settings) -> Beams:
    divisors = settings.scoring.divisors(settings.max_tokens)

    def unfinished(state: _State) -> Array:
        more = state.step < settings.max_tokens
        if not settings.early_stop:
            return more
        return more & jnp.any(_can_improve(state, divisors))

    body = functools.partial(_advance, call, divisors=divisors, settings=settings)
    state = jax.lax.while_loop(unfinished, body, _start(call, cache, prompt, settings))
    return _result(state, divisors, settings)


_search_jitted = jax.jit(_search, static_argnames=("settings",))


def _start(call: _Call, cache: Any, prompt: Array, settings: _Settings) -> _State:
    B, K, M = prompt.shape[0], settings.beams, settings.max_tokens
    token, cache = read_prompt(call.decode, cache, prompt, call.lengths)
    cache = cache.take(jnp.repeat(jnp.arange(B, dtype=jnp.int32), K))
    tokens = jnp.full((B, K, M), settings.pad, jnp.int32)
    nothing = jnp.full((B, K), NOTHING, jnp.float32)
    coverage = None
    if settings.scoring.coverage_penalty:
        coverage = jnp.zeros((B, K, cache.attention.shape[-1]), jnp.float32)
    return _State(
        jnp.zeros((), jnp.int32),
        jnp.broadcast_to(token[:, None], (B, K)),
        cache,
        tokens,
        nothing.at[:, 0].set(0.0),
        coverage,
        Hypotheses(tokens, jnp.zeros((B, K), jnp.int32), nothing),
        jnp.zeros(B, bool),
    )


def _can_improve(state: _State, divisors: Array) -> Array:
    """Returns which examples may still find a hypothesis better than one of theirs."""
    ahead = jnp.arange(divisors.size) > state.step
    # Log-probabilities and coverage penalties are at most 0, so this is the most they can come to.
    bound = jnp.max(state.logprobs, axis=-1) / jnp.max(jnp.where(ahead, divisors, 0))
    worst = jnp.min(state.complete.scores, axis=-1)
    return (bound > worst) & ~state.broken


def _advance(call: _Call, state: _State, *, divisors: Array, settings: _Settings) -> _State:
    B, K = state.token.shape
    logits, cache = call.decode(state.token.reshape(-1, 1), state.cache)
    logits = check_logits(logits, B * K, settings.ends).reshape(B, K, -1)
    total = jax.nn.logsumexp(logits, axis=-1)
    going = state.logprobs > NOTHING
    lost = jnp.any(going & ~jnp.isfinite(total), axis=-1)
    broken = state.broken | (lost & _can_improve(state, divisors))
    # The largest logit can round to more than their sum, and no probability is above 1.
    logprobs = jnp.minimum(logits - total[..., None], 0.0)
    logprobs = jnp.where((going & jnp.isfinite(total))[..., None], logprobs, NOTHING)
    if call.allowed is not None:
        logprobs = jnp.where(_allowed(call.allowed, state, logits.shape), logprobs, NOTHING)
    logprobs += state.logprobs[..., None]

    coverage = state.coverage
    if coverage is not None:
        coverage += cache.attention.reshape(coverage.shape)
    size = state.step + 1
    complete, penalties = state.complete, _penalties(coverage, cache, settings)
    for end in settings.ends:
        scores = logprobs[..., end] / divisors[size] + penalties
        complete = merge(complete, Hypotheses(_put(state, end), size, scores))
        logprobs = logprobs.at[..., end].set(NOTHING)

    logprobs, chosen = jax.lax.top_k(logprobs.reshape(B, -1), K)
    parent, token = chosen // logits.shape[-1], (chosen % logits.shape[-1]).astype(jnp.int32)
    rows = (jnp.arange(B)[:, None] * K + parent).reshape(-1)
    tokens = jnp.take_along_axis(state.tokens, parent[..., None], axis=1)
    if coverage is not None:
        coverage = jnp.take_along_axis(coverage, parent[..., None], axis=1)
    return _State(
        size,
        token,
        cache.take(rows),
        jax.lax.dynamic_update_slice_in_dim(tokens, token[..., None], state.step, axis=2),
        logprobs,
        coverage,
        complete,
        broken,
    )


def _allowed(allowed: Any, state: _State, shape: tuple[int, ...]) -> Array:
    B, _, V = shape

    def one_beam(tokens: Array) -> Array:
        return jnp.broadcast_to(allowed_now(allowed, tokens, state.step, (B, V)), (B, V))

    return jax.vmap(one_beam, in_axes=1, out_axes=1)(state.tokens)


def _penalties(coverage: Array | None, cache: Any, settings: _Settings) -> Any:
    if coverage is None:
        return 0.0
    return settings.scoring.penalties(coverage, cache.source_lengths)


def _put(state: _State, end: int) -> Array:
    B, K = state.token.shape
    tokens = jnp.full((B, K, 1), end, jnp.int32)
    return jax.lax.dynamic_update_slice_in_dim(state.tokens, tokens, state.step, axis=2)


def _result(state: _State, divisors: Array, settings: _Settings) -> Beams:
    """Returns the complete hypotheses, then the prefixes that were cut."""
    scores = state.logprobs / divisors[-1] + _penalties(state.coverage, state.cache, settings)
    cut = Hypotheses(state.tokens, jnp.full_like(state.token, settings.max_tokens), scores)
    nothing = jax.tree.map(jnp.zeros_like, cut)._replace(scores=jnp.full_like(cut.scores, NOTHING))
    cut = merge(nothing, cut)
    tokens, sizes, scores = (
        jnp.concatenate(pair, axis=1) for pair in zip(state.complete, cut, strict=True)
    )
    K = settings.beams
    ended = jnp.arange(2 * K) < K
    rank = jnp.where(scores > NOTHING, jnp.where(ended, 0, 1), 2)
    order = jnp.argsort(rank, axis=1, stable=True)[:, :K]
    rank, sizes, scores = (jnp.take_along_axis(x, order, axis=1) for x in (rank, sizes, scores))
    tokens = jnp.take_along_axis(tokens, order[..., None], axis=1)
    ended, broken = rank == 0, state.broken[:, None]
    none = (rank == 2) | broken
    return Beams(
        jnp.where(none[..., None], settings.pad, tokens),
        jnp.where(none, 0, sizes - ended),
        jnp.where(broken, jnp.nan, scores),
        ended & ~broken,
    )
