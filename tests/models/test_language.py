"""Language models: step by step they are the full pass, they look back only, in any part."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax import Segments
from attnjax.models import LanguageModelConfig, cross_entropy, next_token_loss, token_losses
from attnjax.nn import (
    Alibi,
    AttentionOptions,
    LearnedPositions,
    RelativeBias,
    Rotary,
    SinusoidalPositions,
    TransformerConfig,
)

B, T, F, V, CAPACITY = 2, 7, 8, 11, 9
SCHEMES = {
    "rotary": Rotary(),
    "alibi": Alibi(),
    "relative": RelativeBias(reach=3, init_fn=jax.nn.initializers.normal(1.0)),
    "learned": LearnedPositions(CAPACITY, init_fn=jax.nn.initializers.normal(1.0)),
    "sinusoidal": SinusoidalPositions(),
}


def _config(**changes):
    options = {
        name: changes.pop(name)
        for name in ("position", "sinks", "window", "soft_cap", "qk_norm")
        if name in changes
    }
    own = {
        name: changes.pop(name)
        for name in ("tied", "embedding_scale", "logit_cap")
        if name in changes
    }
    decoder = TransformerConfig(
        features=F,
        num_heads=2,
        num_layers=1,
        num_kv_heads=1,
        attention=AttentionOptions(**options),
        **changes,
    )
    return LanguageModelConfig(V, decoder, **own)


def _model(**changes):
    model = _config(**changes).build(rngs=nnx.Rngs(0))
    model.eval()
    return model


def _tokens(seed=0, *shape):
    return jax.random.randint(jax.random.key(seed), shape or (B, T), 0, V)


@functools.partial(jax.jit, static_argnums=0)
def _decode(graph, state, tokens, cache):
    return nnx.merge(graph, state).decode(tokens, cache)


def _stepwise(model, tokens, cache):
    """The logits of one token after the other."""
    found = []
    for n in range(tokens.shape[1]):
        logits, cache = _decode(*nnx.split(model), tokens[:, n : n + 1], cache)
        found.append(logits)
    return jnp.concatenate(found, axis=1), cache


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("alibi", "learned", "sinusoidal")]


@pytest.mark.first(1)
@pytest.mark.parametrize("scheme", ["rotary", "relative", *SLOW])
def test_steps_equal_the_full_pass(scheme):
    model = _model(position=SCHEMES[scheme], embedding_scale=F**0.5)
    tokens = _tokens()
    found, cache = _stepwise(model, tokens, model.init_cache(B, CAPACITY))
    np.testing.assert_allclose(found, model(tokens), rtol=1e-4, atol=1e-5)
    assert found.dtype == jnp.float32 and cache.capacity == CAPACITY and cache.length == T


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
def test_steps_equal_the_full_pass_with_every_option(scan):
    model = _model(
        position=Rotary(),
        sinks=True,
        window=(3, 0),
        soft_cap=2.0,
        qk_norm="rms",
        scan_layers=scan,
        norm="rms",
        activation="swiglu",
        tied=False,
        logit_cap=5.0,
    )
    tokens = _tokens()
    found, _ = _stepwise(model, tokens, model.init_cache(B, CAPACITY))
    np.testing.assert_allclose(found, model(tokens), rtol=1e-4, atol=1e-5)
    assert np.abs(found).max() < 5


def test_ragged_prompts_go_on_as_each_would_alone():
    model, lengths = _model(position=Rotary()), [5, 2]
    prompt, more = _tokens(0, B, 5), _tokens(1, B, 2)
    _, cache = _decode(*nnx.split(model), prompt, model.init_cache(B, CAPACITY))
    found, _ = _stepwise(model, more, cache.rewind(jnp.array(lengths)))
    for b, n in enumerate(lengths):
        whole = jnp.concatenate((prompt[b : b + 1, :n], more[b : b + 1]), axis=1)
        np.testing.assert_allclose(found[b], model(whole)[0, n:], rtol=1e-4, atol=1e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize("scan", [False, True])
def test_a_cache_gives_any_of_its_examples_again(scan):
    model, tokens = _model(position=Rotary(), scan_layers=scan), _tokens()
    _, cache = _decode(*nnx.split(model), tokens, model.init_cache(B, CAPACITY))
    cache = cache.rewind(jnp.array([T, 4]))
    order = jnp.array([1, 0, 1])
    taken = jax.jit(lambda cache, order: cache.take(order))(cache, order)
    np.testing.assert_array_equal(taken.length, [4, T, 4])
    more = _tokens(2, 3, 1)
    found, _ = _decode(*nnx.split(model), more, taken)
    for row, b in enumerate(order):
        n = [T, 4][b]
        whole = jnp.concatenate((tokens[b : b + 1, :n], more[row : row + 1]), axis=1)
        np.testing.assert_allclose(found[row, 0], model(whole)[0, n], rtol=1e-4, atol=1e-5)


def test_what_no_cache_holds_is_refused():
    cache = _model().init_cache(B, CAPACITY)
    with pytest.raises(ValueError, match=r"index: expected examples from 0 to 1"):
        cache.take(jnp.array([2]))
    with pytest.raises(ValueError, match=r"index: expected integers \[A\]"):
        cache.take(jnp.array([0.0]))
    lost = jax.jit(lambda cache, order: cache.take(order))(cache, jnp.array([0, 5]))
    assert np.isnan(lost.layers.k[0][1]).all() and not np.isnan(lost.layers.k[0][0]).any()


def test_a_token_depends_on_those_before_it_only():
    model = _model(position=Rotary())
    graph, state = nnx.split(model)
    x = model.embedding(_tokens())

    @jax.jit
    @jax.grad
    def slope(x, t):
        own = nnx.merge(graph, state)
        return jnp.sum(own.logits(own.decoder(x))[:, t])

    for t in (0, 3, T - 1):
        change = np.abs(slope(x, t)).sum(axis=(0, 2))
        assert (change[: t + 1] > 0).all() and (change[t + 1 :] == 0).all()


def test_packed_documents_do_not_see_each_other():
    model = _model(position=Rotary())
    tokens, ids = _tokens(0, 1, T), jnp.array([[1, 1, 1, 2, 2, 2, 2]])
    positions = jnp.array([[0, 1, 2, 0, 1, 2, 3]])
    found = model(tokens, mask=Segments(ids), positions=positions)
    np.testing.assert_allclose(found[:, 3:], model(tokens[:, 3:]), rtol=1e-4, atol=1e-5)


def test_a_tied_output_is_the_embedding():
    tied, own = _model(), _model(tied=False)
    count = {
        name: sum(x.size for x in jax.tree.leaves(nnx.state(m, nnx.Param)))
        for name, m in (("tied", tied), ("own", own))
    }
    assert count["own"] - count["tied"] == V * F
    hidden = tied.hidden(_tokens())
    np.testing.assert_allclose(
        tied.logits(hidden), hidden @ tied.embedding.embedding[...].T, rtol=1e-5, atol=1e-5
    )


def test_options_of_the_vocabulary():
    plain, tokens = _model(), _tokens()
    capped = _model(logit_cap=0.5)
    np.testing.assert_allclose(
        capped(tokens), 0.5 * jnp.tanh(plain(tokens) / 0.5), rtol=1e-5, atol=1e-5
    )
    scaled = _model(embedding_scale=3.0)
    plain.embedding.embedding[...] = 3.0 * plain.embedding.embedding[...]
    np.testing.assert_allclose(scaled.hidden(tokens), plain.hidden(tokens), rtol=1e-5, atol=1e-5)
    _, stats = plain(tokens, stats=True)
    assert stats.entropy.shape == (1, B, 2, T)


def test_bfloat16_computes_in_it_and_gives_float32():
    config = _config(position=Rotary())
    half = dataclasses.replace(
        config, decoder=dataclasses.replace(config.decoder, dtype="bfloat16")
    )
    model, other = config.build(rngs=nnx.Rngs(0)), half.build(rngs=nnx.Rngs(0))
    assert other.hidden(_tokens()).dtype == jnp.bfloat16
    found = other(_tokens())
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, model(_tokens()), rtol=0.1, atol=0.1)
    steps, _ = _stepwise(other, _tokens(), other.init_cache(B, CAPACITY))
    np.testing.assert_allclose(steps, found, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LanguageModelConfig(0, _config().decoder), r"vocabulary: expected at least 1"),
        (lambda: _config(logit_cap=0.0), r"logit_cap: expected a positive number"),
        (lambda: _model()(jnp.zeros((B, T))), r"tokens: expected an integer array"),
        (lambda: _model()(jnp.zeros(T, int)), r"\[batch, time\], got shape \(7,\)"),
        (
            lambda: cross_entropy(jnp.zeros((2, 3)), jnp.zeros(3, int)),
            r"targets: expected integers",
        ),
        (
            lambda: cross_entropy(jnp.zeros((2, 3)), jnp.zeros(2, int), smoothing=1.0),
            r"smoothing: expected a number in",
        ),
        (
            lambda: next_token_loss(_model(), _tokens(), _tokens(1), weights=jnp.ones(B)),
            r"weights: expected shape \[2, 7\]",
        ),
        (
            lambda: next_token_loss(_model(), _tokens(), _tokens(1, B, 3)),
            r"targets: expected shape \[2, 7\]",
        ),
        (
            lambda: next_token_loss(_model(), _tokens(), _tokens(1), block=0),
            r"block: expected at least 1",
        ),
    ],
)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_token_beyond_the_vocabulary_is_nan():
    assert np.isnan(_model()(jnp.array([[1, V]]))[0, 1]).all()
    assert np.isnan(cross_entropy(jnp.zeros((1, V)), jnp.array([V]))).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_is_its_definition(smoothing):
    logits = 50 * jax.random.normal(jax.random.key(0), (B, T, V))
    logits = logits.at[0, 0, 0].set(1e4)
    spread = (1 - smoothing) * jax.nn.one_hot(_tokens(), V) + smoothing / V
    want = -jnp.sum(spread * jax.nn.log_softmax(logits), axis=-1)
    found = cross_entropy(logits, _tokens(), smoothing=smoothing)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize("block", [3, 100])
def test_a_loss_by_parts_is_that_of_all_logits(block):
    model, tokens, targets = _model(position=Rotary()), _tokens(), _tokens(1)
    weights = jnp.arange(B * T).reshape(B, T) % 3 / 2.0
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def parts(params):
        own = nnx.merge(graph, params, rest)
        return next_token_loss(own, tokens, targets, weights=weights, smoothing=0.1, block=block)

    def whole(params):
        losses = cross_entropy(nnx.merge(graph, params, rest)(tokens), targets, smoothing=0.1)
        return jnp.sum(losses * weights) / jnp.sum(weights)

    (found, change), (want, wanted) = (
        jax.jit(jax.value_and_grad(f))(params) for f in (parts, whole)
    )
    np.testing.assert_allclose(found, want, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), change, wanted
    )


def test_targets_without_weight_do_not_count_even_if_they_are_no_tokens():
    model, tokens = _model(), _tokens()
    weights = jnp.ones((B, T)).at[:, 4:].set(0)
    padded = _tokens(1).at[:, 4:].set(V + 5)
    found = next_token_loss(model, tokens, padded, weights=weights)
    want = jnp.mean(cross_entropy(model(tokens)[:, :4], padded[:, :4]))
    np.testing.assert_allclose(found, want, rtol=1e-5)
    assert next_token_loss(model, tokens, padded, weights=0 * weights) == 0
    assert np.isnan(token_losses(model.logits, model.hidden(tokens), padded)[:, 4:]).all()
