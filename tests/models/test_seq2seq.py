"""Encoder-decoders, Transformer and recurrent: steps, padding, copying, caches that are taken."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax.models import RecurrentSeq2SeqConfig, Seq2SeqConfig, SpanModelConfig
from attnjax.nn import AttentionOptions, Rotary, TransformerConfig

B, S, T, F, V = 3, 5, 4, 8, 11
LENGTHS = jnp.array([5, 3, 0])
STACK = TransformerConfig(
    features=F, num_heads=2, num_layers=1, attention=AttentionOptions(position=Rotary(), sinks=True)
)
CONFIGS = {
    "transformer": Seq2SeqConfig(V, V, STACK, STACK),
    "transformer-copy": Seq2SeqConfig(V, V, STACK, STACK, copy=True),
    "bahdanau-gru": RecurrentSeq2SeqConfig(V, V, F, cell="gru", dropout_rate=0.1),
    "bahdanau-deep": RecurrentSeq2SeqConfig(V, V, F, 2, 2, copy=True),
    "luong-copy": RecurrentSeq2SeqConfig(V, V, F, attention="luong", copy=True),
    "luong-dot": RecurrentSeq2SeqConfig(
        V, V, F, 1, 2, attention="luong", score="dot", input_feeding=False
    ),
}
QUICK = ("transformer-copy", "bahdanau-gru")
EVERY = pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS]
)


def _tokens(seed, *shape):
    return jax.random.randint(jax.random.key(seed), shape, 0, V)


SOURCE, TARGET = _tokens(0, B, S), _tokens(1, B, T)


@functools.cache
def _model(name):
    model = CONFIGS[name].build(rngs=nnx.Rngs(0))
    model.eval()
    return model


@functools.partial(jax.jit, static_argnums=0)
def _full(graph, state, source, target, lengths):
    return nnx.merge(graph, state)(source, target, source_lengths=lengths)


@functools.partial(jax.jit, static_argnums=0)
def _decode(graph, state, tokens, cache):
    return nnx.merge(graph, state).decode(tokens, cache)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _cache(graph, state, source, lengths, capacity):
    return nnx.merge(graph, state).init_cache(source, lengths, capacity, attention=True)


def _whole(model, source=SOURCE, target=TARGET, lengths=LENGTHS):
    return _full(*nnx.split(model), source, target, lengths)


@pytest.mark.first(1)
@EVERY
def test_steps_equal_the_full_pass_and_their_weights_are_a_distribution(name):
    model = _model(name)
    cache, found = _cache(*nnx.split(model), SOURCE, LENGTHS, T), []
    np.testing.assert_array_equal(cache.attention, jnp.zeros((B, S)))
    for n in range(T):
        logits, cache = _decode(*nnx.split(model), TARGET[:, n : n + 1], cache)
        found.append(logits)
        held = np.arange(S) < np.asarray(LENGTHS)[:, None]
        assert (np.asarray(cache.attention)[~held] == 0).all()
        total = np.asarray(cache.attention).sum(axis=1)
        if "transformer" in name:  # sinks take their share
            assert ((total < 1) & ((total > 0) == (LENGTHS > 0))).all()
        else:
            np.testing.assert_allclose(total, LENGTHS > 0, rtol=1e-5)
    found = jnp.concatenate(found, axis=1)
    np.testing.assert_allclose(found, _whole(model), rtol=1e-4, atol=1e-5)
    assert cache.length == T and cache.capacity == T
    beyond, _ = _decode(*nnx.split(model), TARGET[:, :1], cache)
    assert np.isnan(beyond).all()


@EVERY
def test_a_cache_gives_any_of_its_examples_again(name):
    model, order = _model(name), jnp.array([1, 0, 1])
    cache = _cache(*nnx.split(model), SOURCE, LENGTHS, T)
    _, cache = _decode(*nnx.split(model), TARGET[:, :1], cache)
    found, _ = _decode(*nnx.split(model), TARGET[order, 1:2], cache.take(order))
    want = _whole(model)[:, 1:2][order]
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"index: expected examples from 0 to 2"):
        cache.take(jnp.array([3]))


@EVERY
def test_padding_of_the_source_changes_nothing(name):
    model = _model(name)
    source = jnp.where(jnp.arange(S) < LENGTHS[:, None], SOURCE, (SOURCE + 3) % V)
    np.testing.assert_allclose(_whole(model, source), _whole(model), rtol=1e-5, atol=1e-6)
    shorter = _whole(model, SOURCE[1:2, :3], TARGET[1:2], LENGTHS[1:2])
    np.testing.assert_allclose(shorter[0], _whole(model)[1], rtol=1e-4, atol=1e-5)


@EVERY
def test_a_token_depends_on_those_before_it_only(name):
    model, before = _model(name), _whole(_model(name))
    for t in range(1, T):
        changed = TARGET.at[:, t].set((TARGET[:, t] + 1) % V)
        after = _whole(model, target=changed)
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (np.abs(after - before)[:, t:].max(axis=-1) > 0).all()


@pytest.mark.parametrize(
    "name", ["transformer-copy", pytest.param("luong-copy", marks=pytest.mark.slow)]
)
def test_copying_is_a_mixture(name):
    model = _model(name)
    logprobs = _whole(model)
    np.testing.assert_allclose(jnp.exp(logprobs).sum(axis=-1), 1, rtol=1e-5)

    @nnx.jit
    def parts(model):
        memory, pointer = model.encode(SOURCE, LENGTHS), model.pointer
        hidden = model._write(model._embed(TARGET), memory, LENGTHS)
        scores = jnp.einsum("btf,bsf->bts", pointer.query(hidden), pointer.key(memory)) / F**0.5
        return jax.nn.softmax(model.logits(hidden)), jax.nn.sigmoid(pointer.gate(hidden)), scores

    # Its definition, token by token; the last source has none.
    own, gate, scores = (np.asarray(x) for x in parts(model))
    for b, n in enumerate(LENGTHS):
        copied, weights = np.zeros((T, V)), np.exp(scores[b, :, :n])
        for s in range(n):
            copied[:, SOURCE[b, s]] += weights[:, s] / weights.sum(axis=1)
        want = gate[b] * own[b] + (1 - gate[b]) * copied if n else own[b]
        np.testing.assert_allclose(jnp.exp(logprobs[b]), want, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer-copy", "luong-copy"])
def test_the_loss_of_copying_and_its_gradients_are_those_of_the_mixture(name):
    model, targets = _model(name), _tokens(2, B, T)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def dense(params):
        found = nnx.merge(graph, params, rest)(SOURCE, TARGET, source_lengths=LENGTHS)
        return jnp.sum(jnp.take_along_axis(found, targets[..., None], axis=-1))

    def sparse(params):
        own = nnx.merge(graph, params, rest)
        return jnp.sum(own.target_logprobs(SOURCE, TARGET, targets, LENGTHS, block=3))

    (found, change), (want, wanted) = (
        jax.jit(jax.value_and_grad(f))(params) for f in (sparse, dense)
    )
    np.testing.assert_allclose(found, want, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), change, wanted
    )
    assert np.abs(change["pointer"]["gate"]["kernel"][...]).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer", "luong-dot"])
def test_log_probabilities_of_targets_without_copying(name):
    model, targets = _model(name), _tokens(2, B, T)
    found = model.target_logprobs(SOURCE, TARGET, targets, LENGTHS)
    want = jnp.take_along_axis(jax.nn.log_softmax(_whole(model)), targets[..., None], axis=-1)
    np.testing.assert_allclose(found, want[..., 0], rtol=1e-4, atol=1e-5)


def _tables(config):
    model = config.build(rngs=nnx.Rngs(0))
    sizes = {"embedding": model.embedding, "source": model.source_embedding, "out": model.output}
    return {name for name, table in sizes.items() if table is not None}


@pytest.mark.parametrize(
    ("tied", "tables"),
    [
        ("all", {"embedding"}),
        ("inputs", {"embedding", "out"}),
        ("target", {"embedding", "source"}),
        ("none", {"embedding", "source", "out"}),
    ],
)
def test_tied_tables_are_one(tied, tables):
    assert _tables(Seq2SeqConfig(V, V, STACK, STACK, tied=tied)) == tables
    assert _tables(RecurrentSeq2SeqConfig(V, V, F, tied=tied)) == tables


def test_the_past_of_a_recurrent_state_is_gone():
    cache = _cache(*nnx.split(_model("bahdanau-gru")), SOURCE, LENGTHS, T)
    with pytest.raises(NotImplementedError, match="keeps only its present state"):
        cache.rewind(0)


def test_a_transformer_cache_goes_back():
    model = _model("transformer-copy")
    cache = _cache(*nnx.split(model), SOURCE, LENGTHS, T)
    _, cache = _decode(*nnx.split(model), (TARGET + 1) % V, cache)
    found, _ = _decode(*nnx.split(model), TARGET, cache.rewind(0))
    np.testing.assert_allclose(found, _whole(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Seq2SeqConfig(V, 7, STACK, STACK), r"tied: 'all' needs one vocabulary"),
        (
            lambda: Seq2SeqConfig(V, 7, STACK, STACK, tied="target", copy=True),
            r"copy: copying needs one vocabulary",
        ),
        (lambda: Seq2SeqConfig(V, 0, STACK, STACK), r"target_vocabulary: expected at least 1"),
        (lambda: Seq2SeqConfig(V, V, STACK, STACK, tied="some"), r"tied: expected one of all"),
        (
            lambda: Seq2SeqConfig(V, V, STACK, TransformerConfig(4, 2, 1)),
            r"decoder.features: expected 8",
        ),
        (lambda: RecurrentSeq2SeqConfig(V, V, 7), r"features: expected an even number"),
        (lambda: RecurrentSeq2SeqConfig(V, V, F, 0), r"encoder_layers: expected at least 1"),
        (lambda: RecurrentSeq2SeqConfig(V, V, F, attention="dot"), r"attention: expected one of b"),
        (lambda: RecurrentSeq2SeqConfig(V, V, F, cell="rnn"), r"cell: expected one of lstm, gru"),
        (lambda: RecurrentSeq2SeqConfig(V, V, F, dropout_rate=1), r"dropout_rate: expected"),
        (lambda: _model("transformer").encode(SOURCE, LENGTHS[:2]), r"source_lengths: .*\[B=3\]"),
        (lambda: _model("luong-copy").init_cache(SOURCE, LENGTHS, 0), r"capacity: expected"),
    ],
)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_spans_are_inside_and_padding_changes_nothing():
    model = SpanModelConfig(V, STACK, segments=2).build(rngs=nnx.Rngs(0))
    model.eval()
    tokens, lengths, segments = _tokens(3, 2, S), jnp.array([5, 3]), _tokens(4, 2, S) % 2
    run = nnx.jit(lambda model, *arrays: model(*arrays))
    start, end = run(model, tokens, lengths, segments)
    other = run(model, tokens.at[1, 3:].set(0), lengths, segments.at[1, 3:].set(0))
    for found, again in zip((start, end), other, strict=True):
        assert np.isneginf(found[1, 3:]).all() and np.isfinite(found[0]).all()
        np.testing.assert_allclose(found, again, rtol=1e-5)
    assert not np.allclose(start[0], end[0])
    assert not np.allclose(run(model, tokens, lengths, 1 - segments)[0][0], start[0])
    none = SpanModelConfig(V, STACK, segments=0).build(rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"segments: expected None"):
        none(tokens, lengths, segments)
