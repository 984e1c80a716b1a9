"""Streamed tokens are those of `generate`, each given while the next is under way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.models.decode import Sampling, generate, stream, streaming
from tests.models.decode.toy import END, Toy

PROMPT = jnp.asarray([[0, 2, 1], [1, 1, 0], [2, 0, 0]])
OPTIONS = {
    "max_tokens": 9,
    "end": END,
    "lengths": jnp.asarray([3, 2, 1]),
    "sampling": Sampling(repetition_penalty=1.2),
    "keys": jax.random.split(jax.random.key(3), 3),
}


def test_a_stream_gives_what_generate_gives():
    toy = Toy(seed=9)
    whole = generate(toy.decode, toy.cache(3), PROMPT, **OPTIONS)
    streamed = list(stream(toy.decode, toy.cache(3), PROMPT, **OPTIONS))
    assert all(isinstance(x, np.ndarray) and x.shape == (3,) for x in streamed)
    longest = int(np.max(whole.lengths + whole.ended))
    assert whole.ended.all() and longest < 9  # it stops when all have ended
    np.testing.assert_array_equal(np.stack(streamed, axis=1), whole.tokens[:, :longest])


def test_the_next_step_is_dispatched_before_a_token_is_given(monkeypatch):
    toy, dispatched = Toy(), []
    step = streaming._next

    def counting(*args, **options):
        dispatched.append(1)
        return step(*args, **options)

    monkeypatch.setattr(streaming, "_next", counting)
    tokens = stream(toy.decode, toy.cache(3), PROMPT, max_tokens=4, end=None)
    assert not dispatched
    assert [(next(tokens).shape, len(dispatched)) for _ in range(4)] == [
        ((3,), 1),
        ((3,), 2),
        ((3,), 3),
        ((3,), 3),
    ]
    assert next(tokens, None) is None


def test_nothing_is_compiled_for_another_prompt_or_step():
    toy, traces = Toy(), []

    def decode(tokens, cache):
        traces.append(tokens.shape)
        return toy.decode(tokens, cache)

    run = functools.partial(stream, decode, toy.cache(3), max_tokens=4, end=None)
    first = list(run(PROMPT))
    assert {shape for shape in traces} == {(3, 2), (3, 1)}
    count = len(traces)
    second = list(run(PROMPT[::-1]))
    assert len(traces) == count
    np.testing.assert_array_equal(np.stack(first), np.stack(second)[:, ::-1])


def test_wrong_arguments_are_refused_before_the_first_token():
    toy = Toy()
    with pytest.raises(ValueError, match="max_tokens: expected an integer, at least 1, got 0"):
        stream(toy.decode, toy.cache(3), PROMPT, max_tokens=0, end=None)


def test_logits_that_are_not_finite_are_an_error():
    toy = Toy()

    def decode(tokens, cache):
        logits, cache = toy.decode(tokens, cache)
        return logits + jnp.where(cache.length == 5, jnp.inf, 0)[:, None, None], cache

    tokens = stream(decode, toy.cache(3), PROMPT, max_tokens=6, end=None)
    assert next(tokens).shape == next(tokens).shape == (3,)
    with pytest.raises(
        FloatingPointError, match=r"expected finite logits, got others for examples"
    ):
        next(tokens)
