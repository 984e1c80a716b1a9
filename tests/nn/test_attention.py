"""MultiHeadAttention: against Flax's own, against itself by other means, and by its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import attnjax
from attnjax.nn import (
    Alibi,
    AttentionOptions,
    KeyValues,
    LearnedPositions,
    MultiHeadAttention,
    RelativeBias,
    Rotary,
    SinusoidalPositions,
    sinusoids,
)

# Every axis a different prime, so that no transposition survives.
B, T, S, N, F, G, H, OUT = 2, 5, 7, 3, 11, 17, 13, 19
SCHEMES = {
    "none": None,
    "rotary": Rotary(fraction=0.7),
    "alibi": Alibi(),
    "clipped": RelativeBias(reach=2, init_fn=jax.nn.initializers.normal(1.0)),
    "t5": RelativeBias("t5", buckets=8, max_distance=6, init_fn=jax.nn.initializers.normal(1.0)),
    "learned": LearnedPositions(23, init_fn=jax.nn.initializers.normal(1.0)),
    "sinusoidal": SinusoidalPositions(),
}


def _normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def _layer(features=F, num_heads=N, *, rngs=0, **kwargs):
    sizes = {k: kwargs.pop(k) for k in tuple(kwargs) if k in SIZES}
    return MultiHeadAttention(
        features,
        num_heads=num_heads,
        head_dim=sizes.pop("head_dim", H),
        options=AttentionOptions(**kwargs),
        rngs=nnx.Rngs(rngs),
        **sizes,
    )


SIZES = ("num_kv_heads", "head_dim", "kv_features", "out_features", "dtype", "param_dtype")


@pytest.mark.first(1)
@pytest.mark.parametrize("normalize", [False, True])
def test_equals_flax_given_its_weights(normalize):
    flax = nnx.MultiHeadAttention(
        num_heads=N,
        in_features=F,
        qkv_features=N * H,
        in_kv_features=G,
        out_features=OUT,
        normalize_qk=normalize,
        bias_init=jax.nn.initializers.normal(1.0),
        decode=False,
        rngs=nnx.Rngs(1),
    )
    ours = _layer(
        kv_features=G, out_features=OUT, key_bias=True, qk_norm="layer" if normalize else None
    )
    pairs = [(name, name) for name in ("query", "key", "value", "out")]
    pairs += [("query_norm", "query_ln"), ("key_norm", "key_ln")] if normalize else []
    for mine, theirs in pairs:
        nnx.update(getattr(ours, mine), nnx.state(getattr(flax, theirs)))
    x, memory = _normal(0, B, T, F), _normal(1, B, S, G)
    mask = jax.random.bernoulli(jax.random.key(2), 0.6, (B, N, T, S)).at[..., 0].set(True)
    weight = _normal(3, B, T, OUT)

    def loss(layer, call):
        return jnp.sum(weight * call(layer))

    def run(layer, call):
        return nnx.value_and_grad(loss)(layer, call)

    got, got_grad = run(ours, lambda m: m(x, memory, mask=mask))
    want, want_grad = run(flax, lambda m: m(x, memory, mask=mask))
    np.testing.assert_allclose(ours(x, memory, mask=mask), flax(x, memory, mask=mask), atol=2e-5)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    for mine, theirs in pairs:
        for a, b in zip(
            jax.tree.leaves(got_grad[mine]), jax.tree.leaves(want_grad[theirs]), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_key_bias_is_left_out_unless_asked_for():
    assert _layer().key.bias is None
    assert _layer().query.bias is not None and _layer().value.bias is not None
    assert _layer(use_bias=False).out.bias is None
    assert _layer(key_bias=True).key.bias.shape == (N, H)


@pytest.mark.first(1)
@pytest.mark.parametrize("groups", [2, 3])
def test_grouped_queries_equal_repeated_key_heads(groups):
    heads = 2 * groups
    grouped, full = _layer(num_heads=heads, num_kv_heads=2), _layer(num_heads=heads)
    for name in ("query", "out"):
        nnx.update(getattr(full, name), nnx.state(getattr(grouped, name)))
    for name in ("key", "value"):
        small, large = getattr(grouped, name), getattr(full, name)
        assert small.kernel.shape == (F, 2, H)
        large.kernel[...] = jnp.repeat(small.kernel[...], groups, axis=1)
    x = _normal(0, B, T, F)
    np.testing.assert_allclose(grouped(x), full(x), rtol=1e-5, atol=1e-5)


def test_multi_query_has_one_key_head():
    layer = _layer(num_kv_heads=1)
    assert layer.key.kernel.shape == (F, 1, H)
    assert layer(_normal(0, B, T, F)).shape == (B, T, F)


@pytest.mark.first(3)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_causality_by_gradient(scheme):
    layer = _layer(position=SCHEMES[scheme])
    x = _normal(0, 1, T, F)

    @jax.jit
    def influence(x):
        jacobian = jax.jacrev(lambda x: layer(x, mask=attnjax.Causal())[0].sum(-1))(x)
        return jnp.abs(jacobian[:, 0]).sum(-1)

    seen = np.asarray(influence(x)) > 0
    np.testing.assert_array_equal(seen, np.tril(np.ones((T, T), bool)))


@pytest.mark.first(3)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_parameter_learns(scheme):
    layer = _layer(
        position=SCHEMES[scheme], qk_norm="rms", soft_cap=3.0, sinks=True, num_kv_heads=1
    )
    x, weight = _normal(0, B, T, F), _normal(1, B, T, F)
    grads = nnx.jit(nnx.grad(lambda m: jnp.sum(weight * m(x))))(layer)
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.all(np.isfinite(grad)), path
        assert np.any(grad != 0), path


def test_rotary_depends_on_distances_alone():
    layer = _layer(position=Rotary(fraction=0.7))
    x, positions = _normal(0, B, T, F), jnp.arange(T)
    per_row = jnp.stack((positions, positions + 1009))
    np.testing.assert_allclose(layer(x), layer(x, positions=per_row), rtol=2e-4, atol=2e-4)
    stretched = layer(x, positions=2 * positions)
    assert not np.allclose(stretched, layer(x), atol=1e-3)


def test_biases_of_positions_equal_a_dense_bias():
    x, distance = _normal(0, B, T, F), np.arange(T)[None] - np.arange(T)[:, None]
    plain = _layer()
    slopes = np.asarray([2**-4, 2**-8, 2**-2])  # the paper's, for three heads
    for scheme, bias_of in (
        (SCHEMES["alibi"], lambda _: -slopes[:, None, None] * np.abs(distance)),
        (Alibi((1.0, 2.0, 3.0)), lambda _: -np.arange(1, 4)[:, None, None] * np.abs(distance)),
        (SCHEMES["clipped"], lambda table: table[:, np.clip(distance, -2, 2) + 2]),
    ):
        layer = _layer(position=scheme)
        table = None if layer.position_table is None else np.asarray(layer.position_table[...])
        for name in ("query", "key", "value", "out"):
            nnx.update(getattr(layer, name), nnx.state(getattr(plain, name)))
        bias = jnp.asarray(bias_of(table), jnp.float32)
        want = plain(x, score_mod=attnjax.bias(bias))
        np.testing.assert_allclose(layer(x), want, rtol=1e-5, atol=1e-5)


def test_absolute_positions_are_added_to_the_inputs():
    x, memory, positions = _normal(0, B, T, F), _normal(1, B, S, F), jnp.asarray([3, 1, 4, 0, 5])
    plain = _layer()
    learned, sinusoidal = (_layer(position=SCHEMES[n]) for n in ("learned", "sinusoidal"))
    table = learned.position_table[...]
    for layer, vectors in (
        (learned, lambda p: table[p]),
        (sinusoidal, lambda p: sinusoids(p, F)),
    ):
        for name in ("query", "key", "value", "out"):
            nnx.update(getattr(layer, name), nnx.state(getattr(plain, name)))
        want = plain(x + vectors(positions), memory + vectors(jnp.arange(S)))
        np.testing.assert_allclose(
            layer(x, memory, positions=positions), want, rtol=1e-5, atol=1e-5
        )


def test_window_is_a_mask():
    x, both = _normal(0, B, T, F), attnjax.Causal() & attnjax.Window(2, 0)
    got = _layer(window=(2, 0))(x, mask=attnjax.Causal())
    np.testing.assert_allclose(got, _layer()(x, mask=both), rtol=1e-6, atol=1e-6)
    assert not np.allclose(got, _layer()(x, mask=attnjax.Causal()), atol=1e-3)


def test_soft_cap_comes_before_other_score_mods():
    layer, x = _layer(), _normal(0, B, T, F)
    mods = (attnjax.soft_cap(0.5), attnjax.temperature(2.0))
    got = _layer(soft_cap=0.5)(x, score_mod=attnjax.temperature(2.0))
    np.testing.assert_allclose(got, layer(x, score_mod=mods), rtol=1e-6, atol=1e-6)


def test_sinks_take_weight_from_the_keys():
    layer, plain, x = _layer(sinks=True), _layer(), _normal(0, B, T, F)
    _, without = plain(x, stats=True)
    _, there = layer(x, stats=True)
    np.testing.assert_allclose(
        there.logsumexp, np.logaddexp(without.logsumexp, 0), rtol=1e-5, atol=1e-5
    )
    layer.sinks[...] = jnp.full(N, -1e4)
    np.testing.assert_allclose(layer(x), plain(x), rtol=1e-6, atol=1e-6)


def test_stats_are_those_of_the_call():
    layer, x = _layer(), _normal(0, B, T, F)
    out, stats = layer(x, mask=attnjax.Causal(), stats=True)
    np.testing.assert_array_equal(out, layer(x, mask=attnjax.Causal()))
    scores = jnp.einsum("btnh,bsnh->bnts", layer.query(x), layer.key(x)) / np.sqrt(H)
    weights = jax.nn.softmax(jnp.where(np.tri(T, dtype=bool), scores, -jnp.inf))
    np.testing.assert_allclose(stats.sink_mass, weights[..., 0], rtol=1e-4, atol=1e-5)


def test_projected_keys_serve_many_calls():
    layer, x, memory = _layer(kv_features=G), _normal(0, B, T, F), _normal(1, B, S, G)
    projected = layer.keys_values(memory)
    assert isinstance(projected, KeyValues) and projected.k.shape == (B, S, N, H)
    np.testing.assert_array_equal(layer(x, projected), layer(x, memory))


def test_dropout_follows_train_and_eval():
    layer, x = _layer(dropout_rate=0.4), _normal(0, B, T, F)
    first, second = layer(x), layer(x)
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, _layer(dropout_rate=0.4)(x))  # same seed, same pattern
    layer.eval()
    np.testing.assert_array_equal(layer(x), _layer()(x))
    layer.train()
    assert not np.allclose(layer(x), _layer()(x))


def test_dropout_keeps_the_mean():
    layer, x = _layer(dropout_rate=0.4), _normal(0, 1, T, F)
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    @jax.jit
    def mean(rest):
        def body(rest, _):
            model = nnx.merge(graphdef, params, rest)
            out = model(x)
            return nnx.state(model, nnx.Not(nnx.Param)), out

        return jax.lax.scan(body, rest, length=3000)[1].mean(0)

    layer.eval()
    np.testing.assert_allclose(mean(rest), layer(x), atol=0.05)


def test_dtypes():
    x = _normal(0, B, T, F)
    half = _layer(dtype=jnp.bfloat16, position=Rotary(fraction=0.7), qk_norm="rms")
    assert half.query.kernel.dtype == jnp.float32 and half(x).dtype == jnp.bfloat16
    full = _layer(position=Rotary(fraction=0.7), qk_norm="rms")
    np.testing.assert_allclose(half(x).astype(jnp.float32), full(x), rtol=0.05, atol=0.05)
    small = _layer(param_dtype=jnp.bfloat16, position=SCHEMES["clipped"], sinks=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(small, nnx.Param))} == {
        jnp.dtype(jnp.bfloat16)
    }
    assert small(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: _layer(num_heads=5, num_kv_heads=2), "num_heads: expected a positive multiple"),
        (lambda: MultiHeadAttention(F, num_heads=2, rngs=nnx.Rngs(0)), "features: expected a mul"),
        (lambda: _layer(position="rotary"), "position: expected a position scheme"),
        (lambda: _layer(qk_norm="batch"), "qk_norm: expected None or one of layer, rms"),
        (lambda: _layer(dropout_rate=1.0), r"dropout_rate: expected a number in \[0, 1\)"),
        (lambda: _layer(position=Rotary()), "Rotary: expected an even head width, got 13"),
        (lambda: _layer(position=Alibi((1.0,))), "slopes: expected 3, one per head, got 1"),
        (lambda: _layer(position=LearnedPositions(7), kv_features=G), "kv_features: expected 11"),
        (lambda: _layer(soft_cap=-1.0)(jnp.ones((B, T, F))), "soft_cap.cap: expected a positive"),
        (lambda: _layer()(jnp.ones((T, F))), r"x: expected an array \[batch, time, 11\]"),
        (lambda: _layer()(jnp.ones((B, T, F)), jnp.ones((B, S, G))), r"kv: expected an array"),
        (lambda: _layer()(jnp.ones((B, T, F)), mask=jnp.ones((T, T))), "mask: expected a bool"),
        (
            lambda: _layer(position=Alibi())(jnp.ones((B, T, F)), positions=jnp.arange(T)),
            "positions: expected None with Alibi",
        ),
        (
            lambda: _layer()(jnp.ones((B, T, F)), positions=jnp.arange(S)),
            r"positions: expected integers \[T=5\] or \[B=2, T=5\]",
        ),
        (
            lambda: _layer()(jnp.ones((B, T, F)), positions=jnp.ones(T)),
            "positions: expected integers",
        ),
        (
            lambda: _layer()(
                jnp.ones((B, T, F)),
                _layer().keys_values(jnp.ones((B, S, F))),
                kv_positions=jnp.arange(S),
            ),
            "kv_positions: expected None",
        ),
    ],
)
def test_errors_name_the_argument(build, message):
    with pytest.raises(ValueError, match=message):
        build()
