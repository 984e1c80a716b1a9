"""What watched modules record, held to a dense computation in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import attnjax
from attnjax import Causal, Dense, Lengths, Prefix, Segments, Where, Window, focus
from attnjax.focus.counts import allowed_keys
from attnjax.nn import (
    AdditiveAttention,
    Alibi,
    AttentionOptions,
    AttentionPooling,
    Encoder,
    EncoderDecoder,
    MultiHeadAttention,
    TransformerConfig,
)

B, T, S, N, F = 3, 7, 11, 4, 20
MASKS = {
    "none": None,
    "causal": Causal(offset=2),
    "window": Window(2, 1),
    "prefix": Prefix(jnp.array([0, 1, 11])),
    "lengths": Lengths(jnp.array([7, 5, 2]), jnp.array([11, 3, 4])),
    "segments": Segments(jnp.arange(T)[None] // 3, jnp.arange(S)[None] // 4),
    "by head": Where(lambda b, h, q, k: (q + k + h) % 3 > 0),
    "dense": Dense(jnp.asarray(np.random.default_rng(0).random((B, 1, T, S)) > 0.5)),
}


def _inputs(seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal((B, n, F)), jnp.float32) for n in (T, S))


def _dense_mask(mask):
    if mask is None:
        return np.ones((B, N, T, S), bool)
    b, h, q, k = np.ogrid[:B, :N, :T, :S]
    return np.asarray(mask.at(b, h, q, k))


def _expected(scores, allowed, out, kernel, sinks):
    """The statistics by their definitions, from scores `[B, N, T, S]` in float64."""
    scores = np.where(allowed, scores, -np.inf)
    count = allowed.sum(-1) + (sinks is not None)
    used = allowed.any(-1)
    if sinks is not None:
        column = np.broadcast_to(sinks[None, :, None, None], (*scores.shape[:3], 1))
        scores = np.concatenate([scores, np.where(used[..., None], column, -np.inf)], -1)
    top = np.where(used, scores.max(-1), 0)[..., None]
    weight = np.exp(scores - top)
    total = np.where(used, weight.sum(-1), 1)
    weight /= total[..., None]
    entropy = -(weight * np.log(np.where(weight > 0, weight, 1))).sum(-1)
    logsumexp = np.log(total) + top[..., 0]
    keys = weight[..., : allowed.shape[-1]]
    apart = np.abs(np.arange(keys.shape[-2])[:, None] - np.arange(keys.shape[-1]))
    wide = used & (count > 1)

    def mean(x, where=used):
        return np.where(where, x, 0).sum((0, 2)) / where.sum((0, 2))

    added = out if kernel is None else np.einsum("btnd,ndo->btno", out, kernel)
    return {
        "entropy": mean(entropy),
        "share": mean(entropy / np.log(np.maximum(count, 2)), wide),
        "keys": mean(np.exp(entropy)),
        "max_logit": np.where(allowed, scores[..., : allowed.shape[-1]], -np.inf).max((0, 2, 3)),
        "logsumexp_sq": mean(logsumexp**2),
        "sink_mass": mean(keys[..., 0]),
        "distance": mean((keys * apart).sum(-1)),
        "output": np.sqrt((added**2).sum(-1).mean((0, 1))),
    }, keys


def _check(stats, expected, **tolerance):
    for name, value in expected.items():
        np.testing.assert_allclose(
            getattr(stats, name), value, err_msg=name, **({"rtol": 2e-5, "atol": 1e-6} | tolerance)
        )


@pytest.mark.first(6)
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_multi_head_attention(mask, sinks):
    module = MultiHeadAttention(
        F,
        num_heads=N,
        num_kv_heads=2,
        options=AttentionOptions(position=Alibi(), sinks=sinks, dropout_rate=0.3),
        rngs=nnx.Rngs(0),
    )
    module.query.kernel[...] *= 3
    if sinks:
        module.sinks[...] = jnp.arange(N) - 1.0
    module.eval()
    x, kv = _inputs()
    assert focus.watch(module) == 1
    module(x, kv, mask=MASKS[mask])
    stats = focus.read(module)[""]

    double = jax.tree.map(lambda a: np.asarray(a, np.float64), (x, kv))
    q, k, v = (
        np.einsum("btf,fnh->btnh", a, np.asarray(p.kernel, np.float64)) + _bias(p)
        for a, p in ((double[0], module.query), (double[1], module.key), (double[1], module.value))
    )
    k, v = np.repeat(k, 2, axis=2), np.repeat(v, 2, axis=2)
    slopes = 2.0 ** (-8 * (np.arange(N) + 1) / N)
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(F // N)
    scores -= slopes[:, None, None] * np.abs(np.arange(T)[:, None] - np.arange(S))
    allowed = _dense_mask(MASKS[mask])
    learned = np.asarray(module.sinks[...], np.float64) if sinks else None
    _, weights = _expected(scores, allowed, q, None, learned)
    out = np.einsum("bnts,bsnd->btnd", weights, v)
    expected, _ = _expected(scores, allowed, out, np.asarray(module.out.kernel), learned)
    _check(stats, expected)
    assert ((stats.duplicate >= 0) & (stats.duplicate <= 1)).all()


def _bias(projection):
    return 0 if projection.bias is None else np.asarray(projection.bias[...], np.float64)


@pytest.mark.parametrize("mask", MASKS)
def test_counts(mask):
    if MASKS[mask] is None:
        return
    counts = allowed_keys(MASKS[mask], B=B, T=T, S=S, N=N)
    allowed = _dense_mask(MASKS[mask])
    np.testing.assert_array_equal(np.broadcast_to(counts, allowed.shape[:3]), allowed.sum(-1))


def test_counts_are_shared_where_the_mask_is():
    shapes = {
        name: jax.eval_shape(lambda m=mask: allowed_keys(m, B=B, T=T, S=S, N=N)).shape
        for name, mask in MASKS.items()
        if mask is not None
    }
    assert shapes["causal"] == (1, 1, T)
    assert shapes["lengths"] == shapes["dense"] == (B, 1, T)
    assert shapes["by head"] == (1, N, T)


def test_counts_take_memory_by_the_tile():
    T = 1 << 14
    compiled = jax.jit(lambda: allowed_keys(Causal(), B=2, T=T, S=T, N=8)).lower().compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 40 << 20
    np.testing.assert_array_equal(compiled()[0, 0], np.arange(T) + 1)


def test_heads_that_look_alike_are_told():
    module = MultiHeadAttention(F, num_heads=N, rngs=nnx.Rngs(0))
    for p in (module.query, module.key):
        p.kernel[...] = (4 * p.kernel[...]).at[:, 2].set(4 * p.kernel[:, 0])
        if p.bias is not None:
            p.bias[...] = p.bias[...].at[2].set(p.bias[0])
    x, _ = _inputs()
    focus.watch(module)
    module(x)
    duplicate = focus.read(module)[""].duplicate
    np.testing.assert_array_equal(duplicate[[0, 2]], 0)
    assert (duplicate[[1, 3]] > 0.1).all()


def test_the_distance_between_heads_is_near_the_exact_one():
    module = MultiHeadAttention(128, num_heads=2, rngs=nnx.Rngs(0))
    module.query.kernel[...] *= 2
    x = jax.random.normal(jax.random.key(0), (8, 257, 128))
    focus.watch(module)
    module(x)
    found = focus.read(module)[""].duplicate
    q, k = module.query(x), module.key(x)
    w = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k) / 8, axis=-1)
    norms = jnp.sum(w**2, axis=(0, 2, 3))
    exact = jnp.sum((w[:, 0] - w[:, 1]) ** 2) / jnp.sum(norms)
    np.testing.assert_allclose(found, exact, atol=0.15)  # 8 signs for each key


def test_additive_attention():
    module = AdditiveAttention(F, num_heads=N, num_kv_heads=2, rngs=nnx.Rngs(0))
    x, kv = _inputs()
    focus.watch(module)
    module(x, kv, mask=MASKS["lengths"])
    stats = focus.read(module)[""]
    q, k, v = module.query(x), module.key(kv), module.value(kv)
    k, v = jnp.repeat(k, 2, axis=2), jnp.repeat(v, 2, axis=2)
    hidden = jnp.tanh(q[:, :, None] + k[:, None] + module.score_bias[...])
    scores = np.asarray(jnp.einsum("btsnh,nh->bnts", hidden, module.score_weight[...]), np.float64)
    allowed = _dense_mask(MASKS["lengths"])
    _, weights = _expected(scores, allowed, np.zeros((B, T, N, 1)), None, None)
    out = np.einsum("bnts,bsnd->btnd", weights, np.asarray(v, np.float64))
    expected, _ = _expected(scores, allowed, out, np.asarray(module.out.kernel), None)
    _check(stats, expected)


def test_pooling():
    module = AttentionPooling(F, num_heads=2, rngs=nnx.Rngs(0))
    x, _ = _inputs()
    focus.watch(module)
    pooled, weights = module(x, lengths=jnp.array([7, 1, 3]), return_weights=True)
    stats = focus.read(module)[""]
    weights = np.asarray(weights, np.float64)
    entropy = -(weights * np.log(np.where(weights > 0, weights, 1))).sum(-1)
    np.testing.assert_allclose(stats.entropy, entropy.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats.share, (entropy / np.log([[7], [2], [3]]))[[0, 2]].mean(0))
    out = np.asarray(pooled).reshape(B, 2, -1)
    np.testing.assert_allclose(stats.output, np.sqrt((out**2).sum(-1).mean(0)), rtol=1e-5)


def _encoder(**options):
    config = TransformerConfig(features=F, num_heads=N, num_layers=3, dropout_rate=0.1, **options)
    return Encoder(config, rngs=nnx.Rngs(0))


def _recorded(model, x):
    """The records of a step with gradients, as a training loop has it."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    rest = nnx.to_pure_dict(rest)

    @jax.jit
    def step(params, rest):
        def loss(params):
            model = nnx.merge(graph, params, rest)
            return jnp.mean(model(x, mask=Causal()) ** 3), focus.recorded(model)

        (value, kept), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return value, grads, kept

    value, grads, kept = step(params, rest)
    return value, jax.tree.leaves(grads), kept


@pytest.mark.parametrize("remat", ["none", "full"])
def test_scanned_layers_record_what_listed_ones_do(remat):
    x, _ = _inputs()
    listed, scanned = _encoder(), _encoder(scan_layers=True, remat=remat)
    blocks = [nnx.to_pure_dict(nnx.state(layer, nnx.Param)) for layer in listed.stack.layers]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    nnx.update(scanned.stack.layers, stacked)
    found = []
    for model in (listed, scanned):
        model.eval()
        assert focus.watch(model) == 3
        found.append(focus.describe(_recorded(model, x)[2]))
    assert list(found[0]) == list(found[1]) == [f"stack.layers.{n}.attention" for n in range(3)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)


@pytest.mark.parametrize("scan", [False, True])
def test_recording_changes_no_other_bit(scan):
    x, _ = _inputs()
    model = _encoder(scan_layers=scan)
    plain = _recorded(model, x)
    focus.watch(model)
    watched = _recorded(model, x)
    assert plain[2] == {} and watched[2]
    jax.tree.map(np.testing.assert_array_equal, plain[:2], watched[:2])


def test_parts_of_a_batch_make_the_whole():
    x, _ = _inputs()
    model = _encoder()
    model.eval()
    focus.watch(model)
    whole = _recorded(model, x)[2]
    parts = [_recorded(model, x[n : n + 1])[2] for n in range(B)]
    merged = focus.merged(jax.tree.map(lambda *a: jnp.stack(a), *parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), whole, merged)


def test_records_add_up_until_they_are_read():
    x, _ = _inputs()
    model = _encoder()
    model.eval()
    focus.watch(model)
    model(x[:1])
    model(x[1:])
    twice = focus.read(model)
    model(x)
    once = focus.read(model)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), twice, once)
    assert all(np.isnan(stats.entropy).all() for stats in focus.read(model).values())
    focus.unwatch(model)
    with pytest.raises(ValueError, match=r"attnjax\.focus\.watch"):
        focus.read(model)


def test_cross_attention_and_gradients_of_what_is_recorded():
    config = TransformerConfig(features=F, num_heads=N, num_layers=2)
    model = EncoderDecoder(config, config, rngs=nnx.Rngs(0))
    x, memory = _inputs()
    focus.watch(model, focus.Watch(differentiable=True))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    rest = nnx.to_pure_dict(rest)

    def entropy(params):
        model = nnx.merge(graph, params, rest)
        model(memory, x)
        stats = focus.describe(focus.recorded(model))
        return stats["decoder.stack.layers.1.cross"].entropy[2], list(stats)

    grads, names = jax.grad(entropy, has_aux=True)(params)
    assert len(names) == 6
    cross = nnx.to_pure_dict(grads)["decoder"]["stack"]["layers"][1]["cross"]
    steepness = np.abs(cross["query"]["kernel"]).sum(axis=(0, 2))
    assert steepness[2] > 0
    np.testing.assert_array_equal(steepness[[0, 1, 3]], 0)


def test_watching_again_and_what_was_never_watched():
    model = _encoder()
    focus.unwatch(model)
    for _ in range(2):
        assert focus.watch(model) == 3
        focus.unwatch(model)
    assert focus.recorded(model) == {}


def test_a_model_without_attention():
    with pytest.raises(ValueError, match="Linear"):
        focus.watch(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))


def test_the_statistics_are_those_of_attention():
    """The pass of its own and `stats=True` agree."""
    module = MultiHeadAttention(F, num_heads=N, rngs=nnx.Rngs(0))
    x, _ = _inputs()
    focus.watch(module)
    _, stats = module(x, mask=Causal(), stats=True)
    found = focus.read(module)[""]
    assert isinstance(stats, attnjax.AttentionStats)
    np.testing.assert_allclose(found.entropy, stats.entropy.mean((0, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.max_logit, stats.max_logit.max((0, 2)), rtol=1e-6)
