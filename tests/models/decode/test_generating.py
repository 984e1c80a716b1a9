"""Generating equals the full pass step by step, for each example by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax.models import LanguageModelConfig
from attnjax.models.decode import Sampling, decode_fn, generate
from attnjax.nn import AttentionOptions, Rotary, TransformerConfig
from tests.models.decode.toy import END, VOCABULARY, Toy

V, M = 17, 6
PROMPTS = ([3, 1, 4, 1, 5], [9, 2], [6, 5, 3])
PADDED = jnp.asarray([p + [0] * (5 - len(p)) for p in PROMPTS])
LENGTHS = jnp.asarray([len(p) for p in PROMPTS])
KEYS = jax.random.split(jax.random.key(5), 3)


@pytest.fixture(scope="module")
def model():
    layers = TransformerConfig(
        12, 3, 2, dropout_rate=0.5, attention=AttentionOptions(position=Rotary())
    )
    return LanguageModelConfig(V, layers, tied=False).build(rngs=nnx.Rngs(2))


@pytest.mark.first(1)
def test_greedy_takes_the_largest_logit_of_the_full_pass(model):
    decode = decode_fn(model)  # without dropout, which stays on in the model itself
    found = generate(
        decode, model.init_cache(3, 10), PADDED, max_tokens=M, end=None, lengths=LENGTHS
    )
    assert found.lengths.tolist() == [M] * 3 and not found.ended.any()
    model = nnx.merge(*nnx.split(model))
    model.eval()
    for b, prompt in enumerate(PROMPTS):
        tokens = [*prompt, *found.tokens[b].tolist()]
        logprobs = jax.nn.log_softmax(model(jnp.asarray([tokens[:-1]])))[0, len(prompt) - 1 :]
        assert found.tokens[b].tolist() == logprobs.argmax(axis=1).tolist()
        chosen = sum(logprobs[t, token] for t, token in enumerate(found.tokens[b]))
        np.testing.assert_allclose(found.logprobs[b], chosen, rtol=1e-4)
    assert len(set(found.tokens.ravel().tolist())) > 3


def _plain(toy, prompt, *, max_tokens, ends):
    """Greedy decoding in plain Python."""
    tokens, total = list(prompt), 0.0
    for _ in range(max_tokens):
        logprobs = toy.logprobs(tokens)
        tokens.append(int(np.argmax(logprobs)))
        total += logprobs[tokens[-1]]
        if tokens[-1] in ends:
            break
    return tokens[len(prompt) :], total


@pytest.mark.parametrize("ends", [(END,), (END, 1), ()])
def test_examples_end_by_themselves(ends):
    toy, prompts = Toy(seed=4), [[0, 2], [1, 1], [2, 0], [0, 0], [1, 2]]
    found = generate(
        toy.decode, toy.cache(5), jnp.asarray(prompts), max_tokens=9, end=ends or None, pad=2
    )
    wanted = [_plain(toy, prompt, max_tokens=9, ends=ends) for prompt in prompts]
    assert not ends or len({len(tokens) for tokens, _ in wanted}) > 1
    for b, (tokens, total) in enumerate(wanted):
        ended = tokens[-1] in ends
        assert found.tokens[b].tolist() == tokens + [2] * (9 - len(tokens))
        assert found.ended[b] == ended and found.lengths[b] == len(tokens) - ended
        np.testing.assert_allclose(found.logprobs[b], total, rtol=1e-5)


def test_the_loop_stops_when_all_have_ended():
    calls = []

    def decode(tokens, cache):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.broadcast_to(jnp.arange(3.0), (2, tokens.shape[1], 3)), cache

    found = generate(decode, (), jnp.zeros((2, 1), jnp.int32), max_tokens=50, end=2)
    jax.effects_barrier()
    assert len(calls) == 1 and found.lengths.tolist() == [0, 0] and found.ended.all()


def test_a_sample_is_the_same_alone_and_in_any_batch(model):
    sampling = Sampling(temperature=1.5, top_k=9, top_p=0.95, repetition_penalty=1.3)
    run = functools.partial(generate, decode_fn(model), max_tokens=M, end=0, sampling=sampling)
    rows = jnp.asarray([0, 1, 2, 0, 2, 1, 0, 1])
    keys = jnp.concatenate((KEYS, jax.random.split(jax.random.key(6), 5)))
    together = run(
        cache=model.init_cache(8, 10), prompt=PADDED[rows], lengths=LENGTHS[rows], keys=keys
    )
    b = 1  # padded in the batch
    alone = run(
        cache=model.init_cache(1, 12), prompt=jnp.asarray([PROMPTS[b]]), keys=keys[b : b + 1]
    )
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[b])
    np.testing.assert_allclose(alone.logprobs[0], together.logprobs[b], rtol=1e-4)
    # The same prompt with another key is another sample.
    assert not np.array_equal(together.tokens[0], together.tokens[3])


def test_a_continued_sample_goes_on_as_if_it_had_not_stopped():
    toy, prompt = Toy(seed=1), jnp.asarray([[0, 1], [2, 2], [1, 0]])
    run = functools.partial(
        generate, toy.decode, toy.cache(3), end=None, sampling=Sampling(), keys=KEYS
    )
    whole = run(prompt=prompt, max_tokens=8).tokens
    longer = jnp.concatenate((prompt, whole[:, :3]), axis=1)
    np.testing.assert_array_equal(run(prompt=longer, max_tokens=5).tokens, whole[:, 3:])


def test_the_repetition_penalty_sees_prompt_and_output_without_padding():
    toy, prompts = Toy(seed=11), [[1, 0, 2], [2]]
    padded = jnp.asarray([[1, 0, 2], [2, 3, 3]])
    found = generate(
        toy.decode,
        toy.cache(2),
        padded,
        lengths=jnp.asarray([3, 1]),
        max_tokens=7,
        end=None,
        sampling=Sampling(temperature=0, repetition_penalty=3.0),
    )
    plain = generate(
        toy.decode, toy.cache(2), padded, lengths=jnp.asarray([3, 1]), max_tokens=7, end=None
    )
    assert not np.array_equal(found.tokens, plain.tokens)
    for b, tokens in enumerate(prompts):
        for step in range(7):
            logits = sum(toy.logits[n, token] for n, token in enumerate(tokens[::-1]))
            seen = np.isin(np.arange(VOCABULARY), tokens)
            logits = np.where(seen, np.where(logits > 0, logits / 3, logits * 3), logits)
            assert found.tokens[b, step] == np.argmax(logits)
            tokens.append(int(np.argmax(logits)))


def test_only_allowed_tokens_are_chosen_and_none_left_is_a_stop():
    toy, prompt = Toy(seed=6), jnp.asarray([[0, 1], [2, 2]])
    each = jnp.asarray([[True, True, False, False], [False, False, True, True]])
    found = generate(toy.decode, toy.cache(2), prompt, max_tokens=5, end=None, allowed=each)
    assert set(found.tokens[0].tolist()) <= {0, 1} and set(found.tokens[1].tolist()) <= {2, 3}

    def rising(tokens, step):
        """A token above the one before, or the second example may not go on."""
        last = jnp.take_along_axis(tokens, jnp.full((2, 1), step - 1), axis=1)
        return (jnp.arange(VOCABULARY) > last) | (step == 0)

    found = generate(
        toy.decode,
        toy.cache(2),
        prompt,
        max_tokens=6,
        end=None,
        allowed=rising,
        sampling=Sampling(),
        keys=KEYS[:2],
    )
    for b in range(2):
        n = int(found.lengths[b])
        tokens = found.tokens[b].tolist()
        assert n <= VOCABULARY and tokens[n:] == [0] * (6 - n)
        assert tokens[:n] == sorted(set(tokens[:n])) and tokens[n - 1] == VOCABULARY - 1
    assert np.all(found.logprobs == -np.inf) and not found.ended.any()


def test_logits_that_are_not_finite_stop_their_example_alone():
    toy, prompt = Toy(seed=6), jnp.asarray([[0, 1], [2, 2]])

    def decode(tokens, cache):
        logits, cache = toy.decode(tokens, cache)
        bad = (cache.tokens[:, 0] == 2) & (cache.length > 3)
        return logits + jnp.where(bad, jnp.nan, 0)[:, None, None], cache

    found = generate(decode, toy.cache(2), prompt, max_tokens=5, end=None)
    right = generate(toy.decode, toy.cache(2), prompt, max_tokens=5, end=None)
    assert np.isnan(found.logprobs[1]) and found.lengths.tolist() == [5, 2]
    np.testing.assert_array_equal(found.tokens[0], right.tokens[0])
    assert found.tokens[1].tolist() == [*right.tokens[1, :2].tolist(), 0, 0, 0]


def test_one_program_serves_all_prompts_and_models_of_one_shape(model):
    traces = []
    other = model.config

    @jax.jit
    def run(decode, cache, prompt, lengths, keys):
        traces.append(1)
        return generate(
            decode,
            cache,
            prompt,
            max_tokens=2,
            end=1,
            lengths=lengths,
            keys=keys,
            sampling=Sampling(top_k=3),
        )

    outputs = [
        run(decode_fn(each), each.init_cache(3, 10), prompt, lengths, KEYS).tokens.tolist()
        for each, prompt, lengths in (
            (model, PADDED, LENGTHS),
            (model, PADDED + 1, jnp.asarray([1, 5, 4])),
            (other.build(rngs=nnx.Rngs(1)), PADDED, LENGTHS),
        )
    ]
    assert len(traces) == 1 and outputs[0] != outputs[1] and outputs[0] != outputs[2]


def test_a_method_of_a_module_follows_its_parameters():
    class Table(nnx.Module):
        def __init__(self):
            self.logits = nnx.Param(jnp.asarray([0.0, 1.0, 0.0]))
            self.dropout = nnx.Dropout(0.9, rngs=nnx.Rngs(0))

        def next(self, tokens, cache):
            logits = self.dropout(jnp.broadcast_to(self.logits[...], (*tokens.shape, 3)))
            return logits, cache

    model = Table()
    run = functools.partial(
        generate, model.next, (), jnp.zeros((1, 1), int), max_tokens=9, end=None
    )
    assert run().tokens.tolist() == [[1] * 9]
    model.logits[...] = jnp.asarray([0.0, 1.0, 2.0])
    assert run().tokens.tolist() == [[2] * 9]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": jnp.zeros((2, 0), int)}, r"prompt: expected integers \[B, P\], at least one"),
        ({"prompt": jnp.zeros((2, 3))}, r"prompt: .* got shape \(2, 3\), dtype float32"),
        (
            {"lengths": jnp.asarray([1, 3])},
            "lengths: expected 1 to 2, the width of the prompt, got",
        ),
        ({"lengths": jnp.asarray([1])}, r"lengths: expected integers \[B=2\]"),
        ({"max_tokens": 0}, "max_tokens: expected an integer, at least 1, got 0"),
        ({"max_tokens": 16}, "cache: expected room for 2 tokens of the prompt and 16 more"),
        ({"end": -1}, "end: expected a token, an integer from 0, got -1"),
        ({"end": (3, 3)}, "end: expected different tokens"),
        ({"end": 4}, "end: expected tokens below 4, the vocabulary of the logits, got 4"),
        ({"pad": True}, "pad: expected a token, an integer from 0, got True"),
        ({"keys": KEYS}, "keys: expected None, for temperature=0 draws nothing"),
        ({"sampling": 0.7}, r"sampling: expected a Sampling, got 0\.7"),
        (
            {"sampling": Sampling()},
            r"keys: expected typed keys \[B=2\], .* got None\. Make them by",
        ),
        ({"sampling": Sampling(), "keys": KEYS}, r"keys: .* got shape \(3,\)"),
        ({"sampling": Sampling(), "keys": jnp.zeros((2, 2), jnp.uint32)}, "got dtype uint32"),
        (
            {"sampling": Sampling(), "keys": jax.random.split(jax.random.key(0, impl="rbg"), 2)},
            "keys: expected keys whose numbers do not depend on the batch, got .*rbg",
        ),
        ({"allowed": jnp.zeros(4, bool)}, "allowed: expected at least one token of each example"),
        ({"allowed": jnp.ones(4)}, r"allowed: expected bool \[V\] or \[B=2, V\]"),
        ({"allowed": jnp.ones(5, bool)}, r"allowed: expected bool \[B, V\] of shape \(2, 4\)"),
        ({"allowed": lambda tokens, step: tokens}, r"allowed: .* dtype int32"),
        ({"decode": lambda tokens, cache: (tokens, cache)}, "decode: expected to get float logits"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    toy = Toy()
    prompt = jnp.asarray([[0, 1], [2, 2]])
    arguments = {"decode": toy.decode, "prompt": prompt, "max_tokens": 3, "end": END, **changes}
    with pytest.raises(ValueError, match=message):
        generate(cache=toy.cache(2), **arguments)


def test_ragged_prompts_need_an_empty_cache(model):
    cache = model.init_cache(3, 12)
    _, cache = model.decode(PADDED[:, :1], cache)
    with pytest.raises(ValueError, match="cache: expected an empty one for prompts of several"):
        generate(decode_fn(model), cache, PADDED, max_tokens=2, end=None, lengths=LENGTHS)
    with pytest.raises(ValueError, match="got 1 of 12 slots filled"):
        generate(decode_fn(model), cache, PADDED, max_tokens=8, end=None)


def test_a_model_without_decode_is_refused():
    with pytest.raises(ValueError, match=r"model: expected one with decode\(tokens, cache\)"):
        decode_fn(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
