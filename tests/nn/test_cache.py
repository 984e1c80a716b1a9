"""Attention step by step equals the full pass, and an overfull cache never answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import attnjax
from attnjax import Causal, Lengths, Prefix, Segments, Strided, Where, Window
from attnjax.nn import (
    Alibi,
    AttentionOptions,
    KeyValues,
    KVCache,
    LearnedPositions,
    MultiHeadAttention,
    RelativeBias,
    Rotary,
    SinusoidalPositions,
    steps,
)
from attnjax.nn.steps import FEW_QUERIES

B, T, PROMPT, CAPACITY, F, H = 2, 11, 5, 13, 7, 4
LOUD = jax.nn.initializers.normal(1.0)
SCHEMES = {
    "none": None,
    "rotary": Rotary(),
    "alibi": Alibi(),
    "clipped": RelativeBias(reach=3, init_fn=LOUD),
    "t5": RelativeBias("t5", buckets=8, max_distance=6, bidirectional=False, init_fn=LOUD),
    "learned": LearnedPositions(CAPACITY, init_fn=LOUD),
    "sinusoidal": SinusoidalPositions(),
}


def _layer(implementation="reference", **options):
    # None goes through `attnjax.decode` but for long prompts, a name through `attnjax.attention`.
    return MultiHeadAttention(
        F,
        num_heads=6,
        num_kv_heads=3,
        head_dim=H,
        options=AttentionOptions(implementation=implementation, **options),
        rngs=nnx.Rngs(0),
    )


def _x(seed=0, batch=B, length=T):
    return jax.random.normal(jax.random.key(seed), (batch, length, F))


@functools.partial(jax.jit, static_argnums=0)
def _step(graphdef, state, x, cache, **kwargs):
    return nnx.merge(graphdef, state).decode(x, cache, **kwargs)


def _stepper(layer):
    return functools.partial(_step, *nnx.split(layer))


def _generate(layer, x, cache, prompt=PROMPT, **kwargs):
    """The prompt at once, then one position after the other inside a scan."""
    graphdef, state = nnx.split(layer)

    @jax.jit
    def run(state, x, cache):
        model = nnx.merge(graphdef, state)
        first, cache = model.decode(x[:, :prompt], cache, **kwargs)

        def body(cache, x):
            out, cache = model.decode(x[:, None], cache, **kwargs)
            return cache, out[:, 0]

        cache, rest = jax.lax.scan(body, cache, jnp.swapaxes(x[:, prompt:], 0, 1))
        return jnp.concatenate((first, jnp.swapaxes(rest, 0, 1)), axis=1), cache

    return run(state, x, cache)


WAYS = pytest.mark.parametrize("implementation", ["reference", None], ids=["attention", "decode"])


def both_ways(name, values, attention):
    """Every value through `attnjax.decode`, and some through `attnjax.attention`."""
    ways = [(None, value) for value in values] + [("reference", value) for value in attention]
    ids = [f"{way or 'decode'}-{n}" for n, (way, _) in enumerate(ways)]
    return pytest.mark.parametrize(("implementation", name), ways, ids=ids)


@pytest.mark.first(4)
@both_ways("scheme", SCHEMES, ["alibi", "t5"])
def test_steps_equal_the_full_pass(scheme, implementation):
    layer = _layer(implementation, position=SCHEMES[scheme])
    got, cache = _generate(layer, _x(), layer.init_cache(B, CAPACITY))
    np.testing.assert_allclose(got, layer(_x(), mask=Causal()), rtol=1e-4, atol=1e-5)
    assert cache.length == T and cache.capacity == CAPACITY


@pytest.mark.first(1)
@pytest.mark.parametrize("prompt", [PROMPT, FEW_QUERIES + 3])
def test_steps_equal_the_full_pass_with_every_option(prompt):
    layer = _layer(
        implementation=None,
        position=RelativeBias(reach=3, init_fn=LOUD),
        qk_norm="rms",
        soft_cap=2.0,
        sinks=True,
        window=(4, 0),
    )

    def recency(score, b, h, q_idx, k_idx):
        return score - 0.1 * (h + 1) * (q_idx - k_idx)

    x = _x(length=prompt + 4)
    full = layer(x, mask=Causal(), score_mod=recency)
    got, _ = _generate(layer, x, layer.init_cache(B, prompt + 6), prompt, score_mod=recency)
    np.testing.assert_allclose(got, full, rtol=1e-4, atol=1e-5)


WHERE = Causal() & Where(lambda b, h, q, k: (q * k + h) % 3 != 1)


@pytest.mark.first(2)
@both_ways(
    "mask",
    [
        Causal() & Window(3, 0),
        (Causal() | Prefix(3)) & ~Strided(4),
        WHERE,
        Causal() & Lengths(9, None),
    ],
    [WHERE],
)
def test_the_mask_of_the_full_pass_serves_every_step(mask, implementation):
    layer = _layer(implementation, position=Rotary())
    got, _ = _generate(layer, _x(), layer.init_cache(B, CAPACITY), mask=mask)
    np.testing.assert_allclose(got, layer(_x(), mask=mask), rtol=1e-4, atol=1e-5)


@pytest.mark.first(1)
@WAYS
def test_arrays_along_queries_belong_to_those_at_hand(implementation):
    layer, ids = _layer(implementation), jnp.arange(T) // 4
    cache, slots = layer.init_cache(B, CAPACITY), jnp.arange(CAPACITY) // 4
    seen = jax.random.bernoulli(jax.random.key(5), 0.7, (B, 6, T, CAPACITY))
    factor = jnp.linspace(0.5, 2, T)

    def mods(rows):
        return attnjax.score_mod(lambda s, b, h, q, k, x: s * x + q, per_query=factor[rows])

    own = Causal() & Segments(ids) & seen[..., :T]
    full = layer(_x(), mask=own, score_mod=mods(slice(None)))
    for start, stop in ((0, 5), (5, 8), (8, 9)):
        rows = slice(start, stop)
        mask = Causal() & Segments(ids[rows], slots) & seen[:, :, rows]
        step = functools.partial(layer.decode, mask=mask, score_mod=mods(rows))
        out, cache = jax.jit(step)(_x()[:, rows], cache)
        np.testing.assert_allclose(out, full[:, rows], rtol=1e-4, atol=1e-5)


@pytest.mark.first(2)
@both_ways("scheme", ["rotary", "alibi", "clipped", "learned"], ["clipped"])
def test_prompts_padded_on_the_right_go_on_from_their_own_length(scheme, implementation):
    layer, x, lengths = _layer(implementation, position=SCHEMES[scheme]), _x(), jnp.asarray([5, 3])
    step, cache = _stepper(layer), layer.init_cache(B, CAPACITY)
    padding = jnp.arange(PROMPT)[None, :, None] < lengths[:, None, None]
    prompts = jnp.where(padding, x[:, :PROMPT], 1e3)
    _, cache = step(prompts, cache)
    cache = cache.rewind(lengths)
    full = layer(x, mask=Causal())
    for n in range(3):
        rows = jnp.arange(B), lengths + n
        out, cache = step(x[rows][:, None], cache)
        np.testing.assert_allclose(out[:, 0], full[rows], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(cache.length, lengths + 3)


@pytest.mark.first(1)
@both_ways("scheme", ["rotary", "t5", "learned"], ["t5"])
def test_prompts_padded_on_the_left_hide_it_by_the_mask(scheme, implementation):
    layer, short, pad = _layer(implementation, position=SCHEMES[scheme]), _x(1, 1, 8), 3
    padded = jnp.concatenate((jnp.full((1, pad, F), 1e3), short), axis=1)
    step, cache = _stepper(layer), layer.init_cache(1, CAPACITY)
    full, at = layer(short, mask=Causal()), 0
    for size in (pad + 2, 1, 5):
        positions = None
        if scheme == "learned":  # the others see distances only
            positions = jnp.maximum(jnp.arange(at, at + size) - pad, 0)
        out, cache = step(
            padded[:, at : at + size],
            cache,
            mask=Causal() & ~Prefix(jnp.asarray([pad])),
            positions=positions,
        )
        real = max(at, pad)
        want = full[:, real - pad : at + size - pad]
        np.testing.assert_allclose(out[:, real - at :], want, rtol=1e-4, atol=1e-5)
        at += size


def test_overfull_is_an_error_where_it_is_known():
    layer = _layer()
    with pytest.raises(ValueError, match="room for 11 more positions, got 0 of 7 slots"):
        layer.decode(_x(), layer.init_cache(B, 7))
    _, cache = layer.decode(_x()[:, :6], layer.init_cache(B, 7))
    with pytest.raises(ValueError, match="room for 2 more positions, got 6 of 7 slots filled"):
        layer.decode(_x()[:, :2], cache)
    ragged = cache.rewind(jnp.asarray([2, 6]))
    with pytest.raises(ValueError, match=r"room for 2 more positions, got \[2 6\] of 7 slots"):
        layer.decode(_x()[:, :2], ragged)


@WAYS
def test_overfull_gives_nan_where_the_length_is_traced(implementation):
    layer = _layer(implementation, position=Rotary())
    step, full = _stepper(layer), layer(_x(), mask=Causal())
    out, cache = step(_x()[:, :6], layer.init_cache(B, 7))
    np.testing.assert_allclose(out, full[:, :6], rtol=1e-4, atol=1e-5)
    out, over = step(_x()[:, 6:8], cache)
    assert np.all(np.isnan(out))
    out, over = step(_x()[:, 8:9], over)  # and it stays so
    assert np.all(np.isnan(out))
    # Nothing was overwritten: gone back, the cache goes on as if nothing had been.
    out, _ = step(_x()[:, 6:7], over.rewind(6))
    np.testing.assert_allclose(out, full[:, 6:7], rtol=1e-4, atol=1e-5)


@WAYS
def test_overfull_spoils_only_its_own_examples(implementation):
    layer, step = _layer(implementation), _stepper(_layer(implementation))
    _, cache = step(_x()[:, :6], layer.init_cache(B, 7))
    out, _ = step(_x()[:, 4:6], cache.rewind(jnp.asarray([6, 4])))
    assert np.all(np.isnan(out[0]))
    np.testing.assert_allclose(out[1], layer(_x(), mask=Causal())[1, 4:6], rtol=1e-4, atol=1e-5)


@WAYS
def test_learned_positions_end_with_their_table(implementation):
    layer = _layer(implementation, position=LearnedPositions(7))
    out, cache = _stepper(layer)(_x()[:, :6], layer.init_cache(B, CAPACITY))
    assert np.all(np.isfinite(out))
    out, _ = _stepper(layer)(_x()[:, 6:8], cache)
    assert np.all(np.isnan(out[:, 1])) and np.all(np.isfinite(out[:, 0]))
    with pytest.raises(ValueError, match=r"expected positions in \[0, 7\), got 6 to 7"):
        layer.decode(_x()[:, 6:8], cache)


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (7, "expected 0 to the cache's present 6, got 7"),
        (-1, "expected 0 to the cache's present 6, got -1"),
        (1.0, "expected an integer or an integer array"),
        (jnp.asarray([1, 2, 3]), r"integer array \[B=2\], got shape \(3,\)"),
    ],
)
def test_rewind_refuses_lengths_that_were_never_reached(length, message):
    layer = _layer()
    _, cache = layer.decode(_x()[:, :6], layer.init_cache(B, 7))
    with pytest.raises(ValueError, match=message):
        cache.rewind(length)


@WAYS
def test_a_traced_rewind_forward_poisons(implementation):
    layer = _layer(implementation)
    _, cache = _stepper(layer)(_x()[:, :3], layer.init_cache(B, CAPACITY))
    forward = jax.jit(lambda cache, n: cache.rewind(n))(cache, jnp.asarray([5, 2]))
    out, _ = _stepper(layer)(_x()[:, :1], forward)
    assert np.all(np.isnan(out[0])) and np.all(np.isfinite(out[1]))


@WAYS
def test_cache_dtype_and_shape(implementation):
    layer = _layer(implementation)
    cache = layer.init_cache(B, CAPACITY, dtype=jnp.bfloat16)
    assert cache.k.shape == (B, CAPACITY, 3, H) and cache.v.dtype == jnp.bfloat16
    got, cache = _generate(layer, _x(), cache)
    assert cache.k.dtype == jnp.bfloat16 and got.dtype == jnp.float32
    np.testing.assert_allclose(got, layer(_x(), mask=Causal()), rtol=0.05, atol=0.05)
    assert layer.init_cache(B, 3).k.dtype == jnp.float32
    with pytest.raises(ValueError, match="capacity: expected at least 1, got 0"):
        layer.init_cache(B, 0)
    wrong = KeyValues(jnp.ones((B, 1, 2, H)), jnp.ones((B, 1, 2, H)))
    with pytest.raises(ValueError, match=r"expected keys of shape \(2, 1, 3, 4\)"):
        KVCache.zeros(B, 5, 3, H, jnp.float32).append(wrong)


@WAYS
def test_unwritten_slots_do_not_matter(implementation):
    layer = _layer(implementation, position=Alibi())
    cache = layer.init_cache(B, CAPACITY)
    dirty = KVCache(jnp.full_like(cache.k, jnp.nan), jnp.full_like(cache.v, 1e30), cache.length)
    got, _ = _stepper(layer)(_x(), dirty)
    np.testing.assert_allclose(got, layer(_x(), mask=Causal()), rtol=1e-4, atol=1e-5)


@pytest.mark.first(1)
@WAYS
def test_gradients_flow_through_steps(implementation):
    layer, weight = _layer(implementation, position=Rotary()), _x(3)
    graphdef, params = nnx.split(layer)

    def stepwise(params, x):
        model, cache, outs = nnx.merge(graphdef, params), layer.init_cache(B, T), []
        for start, stop in ((0, 7), (7, T)):
            out, cache = model.decode(x[:, start:stop], cache)
            outs.append(out)
        return jnp.sum(weight * jnp.concatenate(outs, axis=1))

    def full(params, x):
        return jnp.sum(weight * nnx.merge(graphdef, params)(x, mask=attnjax.Causal()))

    got = jax.jit(jax.grad(stepwise, argnums=(0, 1)))(params, _x())
    want = jax.jit(jax.grad(full, argnums=(0, 1)))(params, _x())
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_dropout_holds_in_steps():
    layer, x = _layer(None, dropout_rate=0.5), _x()[:, :PROMPT]
    first, second = (layer.decode(x, layer.init_cache(B, CAPACITY))[0] for _ in range(2))
    assert not np.allclose(first, second)
    layer.eval()
    got, _ = layer.decode(x, layer.init_cache(B, CAPACITY))
    np.testing.assert_allclose(got, layer(x, mask=Causal()), rtol=1e-4, atol=1e-5)


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("options", "T", "way"),
    [
        ({}, 1, "decode"),
        ({}, FEW_QUERIES, "decode"),
        ({}, FEW_QUERIES + 1, "attention"),
        ({"implementation": "blockwise"}, 1, "attention"),
        ({"dropout_rate": 0.5}, 1, "attention"),
    ],
)
def test_few_queries_go_through_decode(options, T, way, monkeypatch):
    gone = []

    def watched(name):
        call = getattr(steps, name)

        def watch(*args, **kwargs):
            gone.append(name)
            return call(*args, **kwargs)

        return watch

    for name in ("decode", "attention"):
        monkeypatch.setattr(steps, name, watched(name))
    layer = _layer(**{"implementation": None, **options})
    arguments = _x(length=T), layer.init_cache(B, T + 2)
    if "dropout_rate" in options:
        layer.decode(*arguments)  # draws numbers, which it may not inside another trace
    else:
        jax.eval_shape(layer.decode, *arguments)
    assert gone == [way]


@pytest.mark.slow
def test_steps_on_a_tpu_equal_the_full_pass():
    layer, x = _layer(None, position=Rotary(), sinks=True, window=(4, 0)), _x()
    with attnjax.emulate("tpu"):
        got, _ = _generate(layer, x, layer.init_cache(B, CAPACITY))
    np.testing.assert_allclose(got, layer(x, mask=Causal()), rtol=1e-4, atol=1e-5)
