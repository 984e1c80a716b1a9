"""Beam search finds what an exhaustive or a plain search finds, and stops only when it may."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax.models import Seq2SeqConfig
from attnjax.models.decode import beam_search
from attnjax.nn import TransformerConfig
from tests.models.decode.reference import everything, search
from tests.models.decode.toy import END, VOCABULARY, Toy

SLOW = pytest.mark.slow
PROMPT = jnp.asarray([[1, 0], [2, 2], [0, 1]])


def _check(found, wanted, b):
    """The hypotheses of example b are those wanted, in their order; equal scores may change it."""
    for n, (score, tokens) in enumerate(wanted):
        np.testing.assert_allclose(found.scores[b, n], score, rtol=1e-5, atol=1e-5)
        ended = END in tokens
        assert found.ended[b, n] == ended
        assert found.lengths[b, n] == len(tokens) - ended
        assert tuple(found.tokens[b, n, : len(tokens)].tolist()) == tokens
        assert not np.any(found.tokens[b, n, len(tokens) :])


@pytest.mark.parametrize("alpha", [0.6, *(pytest.param(x, marks=SLOW) for x in (0.0, 2.0, -0.7))])
def test_beams_wide_enough_find_what_an_exhaustive_search_finds(alpha):
    toy = Toy(seed=3)
    options = {"end": END, "max_tokens": 4}
    # 27 prefixes of 3 tokens that go on, 40 hypotheses that end, 81 that are cut.
    found = beam_search(toy.decode, toy.cache(3), PROMPT, beams=90, length_penalty=alpha, **options)
    for b, prompt in enumerate(PROMPT.tolist()):
        wanted = everything(toy, prompt, vocabulary=VOCABULARY, alpha=alpha, **options)
        assert len(wanted) == 121 and sum(END in tokens for _, tokens in wanted) == 40
        _check(found, wanted[:90], b)


@pytest.mark.parametrize(
    ("beams", "alpha"), [(2, -0.7), *(pytest.param(*x, marks=SLOW) for x in ((1, 0.6), (3, 2.0)))]
)
def test_narrow_beams_find_what_a_plain_search_finds(beams, alpha):
    toy, options = Toy(seed=beams), {"end": END, "max_tokens": 7, "beams": beams}
    early, late = (
        beam_search(
            toy.decode, toy.cache(3), PROMPT, length_penalty=alpha, early_stop=stop, **options
        )
        for stop in (True, False)
    )
    for b, prompt in enumerate(PROMPT.tolist()):
        wanted = search(toy, prompt, vocabulary=VOCABULARY, alpha=alpha, **options)
        _check(late, wanted, b)
    jax.tree.map(np.testing.assert_array_equal, early, late)


@pytest.mark.parametrize("beams", [2, pytest.param(90, marks=SLOW)])
def test_coverage_penalties_are_those_of_the_definition(beams):
    toy, lengths = Toy(seed=5), [3, 1, 2]
    options = {"end": END, "max_tokens": 4}
    found = beam_search(
        toy.decode,
        toy.cache(3, source_lengths=lengths),
        PROMPT,
        beams=beams,
        length_penalty=0.8,
        coverage_penalty=0.4,
        **options,
    )
    plain = beam_search(
        toy.decode, toy.cache(3), PROMPT, beams=beams, length_penalty=0.8, **options
    )
    assert not np.array_equal(found.tokens, plain.tokens)
    look = everything if beams > 81 else search
    narrow = {} if beams > 81 else {"beams": beams}
    for b, prompt in enumerate(PROMPT.tolist()):
        scoring = {"alpha": 0.8, "beta": 0.4, "source_length": lengths[b]}
        wanted = look(toy, prompt, vocabulary=VOCABULARY, **options, **narrow, **scoring)
        _check(found, wanted[:beams], b)


def test_the_first_hypotheses_do_not_end_the_search_while_a_better_one_may_come():
    # Ending at once has probability 0.4; the long way 0.6, but for a tenth at each of two steps.
    steps = jnp.log(jnp.asarray([[0.6, 0.4], [0.9, 0.1], [0.9, 0.1], [0.1, 0.9]]))

    def decode(tokens, cache):
        logits = jnp.broadcast_to(steps[cache["n"][0]], (tokens.shape[0], 1, 2))
        return logits, cache

    found = _counted(decode, beams=1, length_penalty=1.0)
    total = np.log(0.6) + 3 * np.log(0.9)
    assert found.tokens[0, 0].tolist() == [0, 0, 0, 1, 0, 0]
    np.testing.assert_allclose(found.scores[0, 0], total / (9 / 6), rtol=1e-6)
    assert total / (9 / 6) > np.log(0.4)


def _counted(decode, **options):
    """Searches with a cache that counts steps in `n`; keeps the wanted ones in `calls`."""

    class Cache(dict):
        def take(self, index):
            return Cache(jax.tree.map(lambda x: x[index], dict(self)))

    jax.tree_util.register_pytree_node(
        Cache,
        lambda c: ((c["n"],), None),
        lambda _, leaves: Cache(n=leaves[0]),
    )

    def counting(tokens, cache):
        logits, cache = decode(tokens, cache)
        return logits, Cache(n=cache["n"] + 1)

    prompt = jnp.zeros((1, 1), jnp.int32)
    return beam_search(
        counting, Cache(n=jnp.zeros(1, jnp.int32)), prompt, max_tokens=6, end=1, **options
    )


@pytest.mark.parametrize("stop", [True, False])
def test_early_stop_saves_steps(stop):
    calls = []

    def decode(tokens, cache):
        jax.debug.callback(lambda: calls.append(1))
        logits = jnp.asarray([0.0, 3.0, -50.0])
        return jnp.broadcast_to(logits, (tokens.shape[0], 1, 3)), cache

    found = _counted(decode, beams=2, length_penalty=0.0, early_stop=stop)
    jax.effects_barrier()
    # After two steps the best prefix has lost as much as the second hypothesis.
    assert len(calls) == (2 if stop else 6)
    assert found.lengths.tolist() == [[0, 1]] and found.ended.all()


def test_an_example_finds_the_same_alone_and_padded():
    toy = Toy(seed=7)
    options = {"max_tokens": 6, "end": (END, 1), "beams": 3}
    lengths = jnp.asarray([2, 1, 3])
    prompt = jnp.asarray([[1, 0, 0], [2, 0, 0], [0, 1, 2]])
    together = beam_search(toy.decode, toy.cache(3), prompt, lengths=lengths, **options)
    for b, n in enumerate(lengths.tolist()):
        alone = beam_search(toy.decode, toy.cache(1), prompt[b : b + 1, :n], **options)
        jax.tree.map(lambda x, y, b=b: np.testing.assert_allclose(x[b], y[0]), together, alone)


def test_only_allowed_tokens_are_found():
    toy = Toy(seed=2)
    options = {"max_tokens": 3, "end": END, "beams": 50}

    def no_repeats(tokens, step):
        """Not the token before, and no end at first."""
        last = jnp.take_along_axis(tokens, jnp.full((len(tokens), 1), step - 1), axis=1)
        repeated = (jnp.arange(VOCABULARY) == last) & (step > 0)
        return ~repeated & ~((jnp.arange(VOCABULARY) == END) & (step == 0))

    found = beam_search(toy.decode, toy.cache(3), PROMPT, allowed=no_repeats, **options)
    fixed = jnp.asarray([True, False, True, True])
    for b, prompt in enumerate(PROMPT.tolist()):
        ranked = everything(toy, prompt, vocabulary=VOCABULARY, end=END, max_tokens=3, alpha=0.6)
        wanted = [
            (score, tokens)
            for score, tokens in ranked
            if tokens[0] != END and all(x != y for x, y in itertools.pairwise(tokens))
        ]
        _check(found, wanted, b)
        rest = slice(len(wanted), None)
        assert np.all(found.scores[b, rest] == -np.inf) and not found.ended[b, rest].any()
        assert not found.lengths[b, rest].any() and not found.tokens[b, rest].any()
    found = beam_search(toy.decode, toy.cache(3), PROMPT, allowed=fixed, **options)
    assert np.all(np.isfinite(found.scores).sum(1) == 7 + 8) and not np.any(found.tokens == 1)


def test_logits_that_are_not_finite_spoil_their_example_alone():
    toy = Toy()

    def decode(tokens, cache):
        logits, cache = toy.decode(tokens, cache)
        bad = (cache.tokens[:, 0] == 2) & (cache.length > 3)
        return logits + jnp.where(bad, jnp.nan, 0)[:, None, None], cache

    options = {"max_tokens": 5, "end": None, "beams": 2}
    found = beam_search(decode, toy.cache(3), PROMPT, **options)
    right = beam_search(toy.decode, toy.cache(3), PROMPT, **options)
    assert np.all(np.isnan(found.scores[1])) and not found.tokens[1].any()
    for b in (0, 2):
        jax.tree.map(lambda x, y, b=b: np.testing.assert_array_equal(x[b], y[b]), found, right)


@pytest.mark.slow
def test_an_encoder_decoder_is_searched_inside_jit():
    layers, M = TransformerConfig(8, 2, 1), 4
    model = Seq2SeqConfig(7, 7, layers, layers, embedding_scale=4.0).build(rngs=nnx.Rngs(1))
    graphdef, state = nnx.split(model)
    source, lengths = jnp.asarray([[1, 2, 3, 4], [5, 6, 0, 0]]), jnp.asarray([4, 2])

    @jax.jit
    def translate(state, source, lengths):
        model = nnx.merge(graphdef, state)
        begin = jnp.ones((2, 1), jnp.int32)
        cache = model.init_cache(source, lengths, M, attention=True)
        # So small a penalty needs all that a larger one needs, and shifts no score.
        options = {"beams": 2, "length_penalty": 0.0, "coverage_penalty": 1e-8}
        found = beam_search(model.decode, cache, begin, max_tokens=M, end=2, **options)
        rows, tokens = jnp.arange(4) // 2, found.tokens.reshape(4, M)
        inputs = jnp.c_[jnp.ones(4, jnp.int32), tokens[:, :-1]]
        logits = model(source[rows], inputs, source_lengths=lengths[rows])
        return found, jax.nn.log_softmax(logits)

    found, logprobs = translate(state, source, lengths)
    for n in range(4):
        b, k = divmod(n, 2)
        size = int(found.lengths[b, k] + found.ended[b, k])
        total = sum(logprobs[n, t, found.tokens[b, k, t]] for t in range(size))
        np.testing.assert_allclose(found.scores[b, k], total, rtol=1e-5)
    assert np.all(found.scores[:, 0] > found.scores[:, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beams": 0}, "beams: expected an integer, at least 1, got 0"),
        ({"length_penalty": float("nan")}, "length_penalty: expected a finite number; got nan"),
        ({"coverage_penalty": -1.0}, "coverage_penalty: expected a finite number, at least 0"),
        ({"coverage_penalty": 1.0}, "cache: expected one that tells `attention`"),
        ({"end": 4}, "end: expected tokens below 4, the vocabulary of the logits, got 4"),
        ({"max_tokens": 20}, "cache: expected room for 2 tokens of the prompt and 20 more"),
        ({"allowed": jnp.ones(5, bool)}, r"allowed: expected bool \[B, V\] of shape \(3, 4\)"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    toy = Toy()
    arguments = {"max_tokens": 3, "end": END, **changes}
    with pytest.raises(ValueError, match=message):
        beam_search(toy.decode, toy.cache(3), PROMPT, **arguments)
