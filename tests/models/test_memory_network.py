import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax.models.memory_network import MemoryNetworkConfig, read_memory

B, M, W, Q, V, F, N, HOPS, AGES, KINDS = 2, 5, 3, 4, 17, 6, 2, 3, 4, 2
SENTENCES = jnp.array(
    [
        [[3, 4, 0], [5, 6, 7], [8, 0, 0], [0, 0, 0], [9, 16, 3]],
        [[1, 2, 3], [0, 0, 0], [4, 4, 0], [0, 0, 0], [0, 0, 0]],
    ]
)
QUESTION = jnp.array([[3, 5, 0, 0], [1, 2, 3, 4]])
AGE = jnp.array([[4, 3, 2, 1, 0], [9, 0, 1, 0, 0]])
KIND = jnp.array([[0, 1, 0, 1, 1], [1, 0, 1, 0, 0]])


def _model(**options):
    return MemoryNetworkConfig(V, F, hops=HOPS, **options).build(rngs=nnx.Rngs(0))


def _bag(table, words, order):
    words = [w for w in np.asarray(words).tolist() if w]
    total = np.zeros(F)
    for j, word in enumerate(words, 1):
        k = np.arange(1, F + 1)
        weight = (1 - j / len(words)) - (k / F) * (1 - 2 * j / len(words)) if order else 1.0
        total += weight * table[word]
    return total


def _expected(model, b, *, order, layerwise, heads, linear):
    """One example, sentence by sentence and head by head, in NumPy."""
    words = np.asarray(model.words[...], np.float64)
    state, weights = _bag(words[0], QUESTION[b], order), np.zeros((HOPS, heads, M))
    there = [m for m in range(M) if np.any(SENTENCES[b, m])]
    for hop in range(HOPS):
        a, c = (0, 1) if layerwise else (hop, hop + 1)
        read = np.zeros(F)
        for n in range(heads):
            part = slice(n * F // heads, (n + 1) * F // heads)
            memory = {}
            for table in (a, c):
                for m in there:
                    x = _bag(words[table], SENTENCES[b, m], order)
                    if model.age is not None:
                        x = x + np.asarray(model.age[table])[min(int(AGE[b, m]), AGES - 1)]
                    if model.kind is not None:
                        x = x + np.asarray(model.kind[table])[int(KIND[b, m])]
                    memory[table, m] = x[part]
            scores = np.array([state[part] @ memory[a, m] for m in there])
            shares = scores if linear else np.exp(scores) / np.exp(scores).sum()
            weights[hop, n, there] = shares
            read[part] = sum(s * memory[c, m] for s, m in zip(shares, there, strict=True))
        if model.mapping is not None:
            state = state @ np.asarray(model.mapping[...])
        state = state + read
    return state, weights


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({"tying": "layerwise", "mapping": True, "word_order": True}, {}),
        ({"ages": AGES, "kinds": KINDS, "num_heads": N}, {"ages": AGE, "kinds": KIND}),
        pytest.param({"num_heads": N}, {"linear": True}, marks=pytest.mark.slow),
        pytest.param({}, {}, marks=pytest.mark.slow),
    ],
)
def test_it_is_the_papers_network(options, call):
    model = _model(**options)
    ask = nnx.jit(lambda model: model(SENTENCES, QUESTION, **call, return_weights=True))
    state, weights = ask(model)
    assert weights.shape == (B, HOPS, options.get("num_heads", 1), M)
    for b in range(B):
        expected = _expected(
            model,
            b,
            order=options.get("word_order", False),
            layerwise=options.get("tying") == "layerwise",
            heads=options.get("num_heads", 1),
            linear=call.get("linear", False),
        )
        np.testing.assert_allclose(state[b], expected[0], rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(weights[b], expected[1], rtol=2e-5, atol=1e-6)
    words = np.asarray(model.words[-1])
    np.testing.assert_allclose(model.logits(state), np.asarray(state) @ words.T, rtol=2e-5)


def test_padding_changes_nothing():
    model = _model(word_order=True)
    longer = jnp.pad(SENTENCES, ((0, 0), (0, 3), (0, 2)))
    ask = nnx.jit(lambda model, *words: model(*words))
    found = ask(model, longer, jnp.pad(QUESTION, ((0, 0), (0, 1))))
    np.testing.assert_allclose(found, ask(model, SENTENCES, QUESTION), rtol=1e-5, atol=1e-7)


def test_an_empty_memory_leaves_the_question_and_finite_gradients():
    model = _model()
    graph, params = nnx.split(model)
    empty = jnp.zeros((B, M, W), jnp.int32)

    def total(params):
        state, weights = nnx.merge(graph, params)(empty, QUESTION, return_weights=True)
        return jnp.sum(state**2) + jnp.sum(weights), (state, weights)

    measure = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, (state, weights)), gradient = measure(params)
    np.testing.assert_allclose(state, model.embed(QUESTION, 0), rtol=1e-6)
    np.testing.assert_allclose(weights, 0)
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(np.asarray(leaf)).all()


def test_weights_have_gradients_of_the_softmax():
    rng = np.random.default_rng(0)
    state, keys = rng.normal(size=(1, F)), rng.normal(size=(1, M, F))
    there = jnp.array([[True, True, False, True, True]])

    def ours(state):
        return read_memory(state, keys, keys, there)[1][0, 0]

    def plain(state):
        scores = jnp.where(there[0], jnp.asarray(keys[0]) @ state[0], -jnp.inf)
        return jax.nn.softmax(scores)

    state = jnp.asarray(state)
    np.testing.assert_allclose(
        jax.jit(jax.jacobian(ours))(state), jax.jacobian(plain)(state), rtol=1e-4, atol=1e-6
    )


def test_heads_can_share_keys_and_values():
    rng = np.random.default_rng(0)
    state, keys, values = (
        jnp.asarray(rng.normal(size=s)) for s in ((B, 4 * F), (B, M, F), (B, M, 3))
    )
    there = jnp.asarray(rng.random((B, M)) < 0.7)
    ask = jax.jit(read_memory, static_argnames=("heads", "linear"))
    read, weights = ask(state, keys, values, there, heads=4)
    for n in range(4):
        alone = ask(state[:, n * F : (n + 1) * F], keys, values, there)
        np.testing.assert_allclose(read[:, n * 3 : (n + 1) * 3], alone[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(weights[:, n], alone[1][:, 0], rtol=1e-5, atol=1e-6)
    raw = ask(state, keys, values, there, heads=4, linear=True)[1]
    inside = np.where(np.asarray(there)[:, None], raw, -np.inf)
    np.testing.assert_allclose(weights, jax.nn.softmax(inside), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hops": 0}, "hops: expected at least 1, got 0"),
        ({"features": 7, "num_heads": 2}, "expected a multiple of num_heads=2, got 7"),
        ({"ages": -1}, "ages: expected at least 0, got -1"),
        ({"tying": "none"}, "expected 'adjacent' or 'layerwise', got 'none'"),
    ],
)
def test_sizes_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MemoryNetworkConfig(V, **options)


@pytest.mark.parametrize(
    ("options", "call", "message"),
    [
        ({}, {"sentences": SENTENCES[0]}, r"expected \[B, M, W\] and \[B, Q\], got"),
        ({"ages": AGES}, {}, "ages: the config has 4 of them, so expected an array"),
        ({}, {"kinds": KIND}, "kinds: the config has 0 of them, so expected None"),
        ({"ages": AGES}, {"ages": AGE[:, 1:]}, r"ages: expected shape \(2, 5\).*got \(2, 4\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(options, call, message):
    arguments = {"sentences": SENTENCES, "question": QUESTION, **call}
    with pytest.raises(ValueError, match=message):
        _model(**options)(**arguments)
