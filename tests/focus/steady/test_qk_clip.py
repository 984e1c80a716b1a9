"""QK-clip: heads over the threshold come down to it, the others stay the same to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from attnjax.focus.steady import clip_factors, clippable, qk_clip, scale_heads
from attnjax.models import LanguageModelConfig
from attnjax.nn import Alibi, AttentionOptions, MultiHeadAttention, RelativeBias, Rotary
from attnjax.nn import TransformerConfig as Config

B, T, F, N, H = 2, 11, 12, 4, 6


class Attention(nnx.Module):
    """One layer of attention under a name, with heads whose logits differ a lot."""

    def __init__(self, kv_heads, *, cross=False, **options):
        rngs = nnx.Rngs(0)
        self.inner = MultiHeadAttention(
            F,
            num_heads=N,
            num_kv_heads=kv_heads,
            head_dim=H,
            kv_features=7 if cross else None,
            options=AttentionOptions(key_bias=True, **options),
            rngs=rngs,
        )
        self.memory = jax.random.normal(rngs.params(), (B, 5, 7)) if cross else None
        size = jnp.array([0.5, 9.0, 2.0, 30.0])[:, None]
        query = self.inner.query
        query.kernel[...] = query.kernel[...] * size
        query.bias[...] = size * jax.random.normal(rngs.params(), query.bias.shape)
        key = self.inner.key
        key.bias[...] = jax.random.normal(rngs.params(), key.bias.shape)

    def stats(self, x):
        return self.inner(x, self.memory, stats=True)[1]


def measure(model, x):
    stats = model.stats(x)
    return stats, {"inner": stats.max_logit.max((0, 2))}


def dense_logits(model, x):
    """All logits, `[B, N, T, S]`."""
    inner, at = model.inner, np.arange(T)
    memory = x if model.memory is None else model.memory
    q, k = inner.position.rotate(inner.query(x), at), inner.keys_values(memory).k
    return jnp.einsum("btnh,bsnh->bnts", q, jnp.repeat(k, N // k.shape[2], axis=2))


def inputs():
    return jax.random.normal(jax.random.key(3), (B, T, F))


CASES = {
    "rotary, shared keys": dict(kv_heads=2, position=Rotary()),
    "rotary, own keys": dict(kv_heads=4, position=Rotary(fraction=0.5), scale=0.7),
    "own keys": dict(kv_heads=4),
    "shared keys": dict(kv_heads=2),
    "one key head": dict(kv_heads=1),
    "cross": dict(kv_heads=2, cross=True),
    "sinks": dict(kv_heads=4, sinks=True),
}


@pytest.mark.first(4)
@pytest.mark.parametrize("pure", [True, False], ids=["dicts", "state"])
@pytest.mark.parametrize("case", CASES)
def test_over_come_down_and_under_stay(case, pure):
    model, x = Attention(**CASES[case]), inputs()
    before, logits = measure(model, x)
    threshold = float(np.sort(logits["inner"])[1]) * 1.01
    over = np.asarray(logits["inner"]) > threshold
    assert over.sum() == 2
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    params = nnx.to_pure_dict(params) if pure else params
    clip = qk_clip(threshold, clippable(model))
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, state = clip.update(zero, clip.init(params), params, max_logit=logits)
    new = nnx.merge(graph, optax.apply_updates(params, updates), rest)
    after, now = measure(new, x)
    np.testing.assert_allclose(now["inner"][over], threshold, rtol=2e-6)
    # Not the entropy: blockwise attention sums it in another way where all scores are small.
    for name in ("logsumexp", "max_logit"):
        a, b = (np.asarray(getattr(s, name))[:, ~over] for s in (before, after))
        np.testing.assert_array_equal(a, b, err_msg=name)
    a, b = (np.asarray(dense_logits(m, x))[:, ~over] for m in (model, new))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(np.asarray(state.factors["inner"]) < 1, over)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_updates_of_heads_under_the_threshold_pass_to_the_bit(kv_heads):
    model, x = Attention(kv_heads), inputs()
    _, logits = measure(model, x)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    given = jax.tree.map(lambda p: 0.1 * jnp.cos(jnp.arange(p.size) * 1.0).reshape(p.shape), params)
    clip = qk_clip(float(logits["inner"].max()) * 0.99, clippable(model))
    found, state = clip.update(given, clip.init(params), params, max_logit=logits)
    worst = int(np.argmax(logits["inner"]))
    others = np.arange(N) != worst
    for side, part in (("query", "kernel"), ("query", "bias"), ("key", "kernel"), ("key", "bias")):
        a, b = (np.asarray(t["inner"][side][part]) for t in (given, found))
        if side == "key" and kv_heads != N:
            np.testing.assert_array_equal(a, b)
            continue
        np.testing.assert_array_equal(a[..., others, :], b[..., others, :])
        factor = float(state.factors["inner"][worst]) ** (0.5 if kv_heads == N else 1.0)
        p = np.asarray(params["inner"][side][part])[..., worst, :]
        np.testing.assert_allclose(
            p + b[..., worst, :], factor * (p + a[..., worst, :]), rtol=1e-5, atol=1e-6
        )
    for side in ("value", "out"):
        for a, b in zip(*(jax.tree.leaves(t["inner"][side]) for t in (given, found)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("scan", [False, True], ids=["list", "scan"])
def test_stacks_in_a_chain(scan):
    config = Config(8, 2, 3, num_kv_heads=1, scan_layers=scan, attention=AttentionOptions(scale=40))
    model = LanguageModelConfig(11, config).build(rngs=nnx.Rngs(0))
    tokens = jnp.arange(14).reshape(2, 7) % 11
    heads = clippable(model)
    names = [name for path, one in heads.items() for name in one.names(path)]
    assert names == [f"decoder.stack.layers.{n}.attention" for n in range(3)]
    graph, params = nnx.split(model)[0], nnx.to_pure_dict(nnx.state(model, nnx.Param))
    rest = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

    @jax.jit
    def logits(params):
        _, stats = nnx.merge(graph, params, rest)(tokens, stats=True)
        return stats.max_logit.max((1, 3))  # [L, N]

    before = logits(params)
    given = {name: before[n] for n, name in enumerate(names)}
    # Layer by layer, because clipping one changes what the next ones get.
    largest = float(before[0].max())
    optimizer = optax.chain(optax.sgd(0.0), qk_clip(largest / 2, heads))
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, state = jax.jit(optimizer.update)(
        zero, optimizer.init(params), params, max_logit=given
    )
    first = logits(optax.apply_updates(params, updates))[0]
    np.testing.assert_allclose(first, jnp.minimum(before[0], largest / 2), rtol=1e-5)
    if scan:
        both, _ = optimizer.update(
            zero, state, params, max_logit={"decoder.stack.layers.attention": before}
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), both, updates)


def test_nnx_optimizer_passes_the_logits_on():
    model, x = Attention(2, position=Rotary()), inputs()
    _, logits = measure(model, x)
    heads = clippable(model)
    optimizer = nnx.Optimizer(
        model, optax.chain(optax.sgd(0.0), qk_clip(1.0, heads)), wrt=nnx.Param
    )
    grads = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
    optimizer.update(model, grads, max_logit=logits)
    np.testing.assert_allclose(
        measure(model, x)[1]["inner"], jnp.minimum(logits["inner"], 1.0), rtol=2e-5
    )


def test_soft_capped_logits_come_down():
    model, x = Attention(4, soft_cap=6.0), inputs()
    heads = clippable(model)
    params = nnx.state(model, nnx.Param)
    for _ in range(12):  # heads at the cap need a few steps
        _, logits = measure(model, x)
        clip = qk_clip(5.0, heads)
        zero = jax.tree.map(jnp.zeros_like, params)
        updates, _ = clip.update(zero, clip.init(params), params, max_logit=logits)
        params = optax.apply_updates(params, updates)
        nnx.update(model, params)
    assert (logits["inner"] <= 5.0 + 1e-4).all() and (logits["inner"] > 4.9).any()
    with pytest.raises(ValueError, match=r"less than 6\.0, the soft cap of inner"):
        qk_clip(6.0, heads)


def test_alibi_keeps_the_threshold_as_a_bound():
    model, x = Attention(4, position=Alibi()), inputs()
    _, logits = measure(model, x)
    params = nnx.state(model, nnx.Param)
    clip = qk_clip(1.5, clippable(model))
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = clip.update(zero, clip.init(params), params, max_logit=logits)
    nnx.update(model, optax.apply_updates(params, updates))
    assert logits["inner"].max() > 5
    assert (measure(model, x)[1]["inner"] <= 1.5 + 1e-5).all()


@pytest.mark.parametrize("value", [jnp.inf, -jnp.inf, jnp.nan])
def test_logits_that_are_not_finite_change_nothing(value):
    heads = clippable(Attention(4))
    given = {"inner": jnp.array([value, 1.0, 2.0, 3.0])}
    limits = {"inner": jnp.array([1.0, jnp.inf, 1.0, 3.0])}
    found = clip_factors(given, limits, heads)
    np.testing.assert_allclose(found["inner"], [1.0, 1.0, 0.5, 1.0])


def test_bfloat16_parameters():
    model, x = Attention(4), inputs()
    _, logits = measure(model, x)
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), nnx.state(model, nnx.Param))
    zero = jax.tree.map(jnp.zeros_like, params)
    factors = {"inner": jnp.array([1.0, 0.25, 1.0, 1.0])}
    updates = scale_heads(zero, params, factors, clippable(model))
    new = optax.apply_updates(params, updates)
    kernel = new["inner"]["query"]["kernel"][...]
    assert kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        np.asarray(kernel, np.float32)[:, 1],
        np.asarray(params["inner"]["query"]["kernel"][...], np.float32)[:, 1] / 2,
    )
    assert logits["inner"].shape == (N,)


def test_models_whose_logits_do_not_follow_are_refused():
    with pytest.raises(NotImplementedError, match=r"inner: .*qk_norm='rms'.*without qk_norm"):
        clippable(Attention(4, qk_norm="rms"))
    with pytest.raises(NotImplementedError, match="relative biases"):
        clippable(Attention(4, position=RelativeBias()))
    shared = Config(
        8, 2, 1, attention=AttentionOptions(position=RelativeBias()), shared_position=True
    )
    with pytest.raises(NotImplementedError, match="relative biases"):
        clippable(LanguageModelConfig(5, shared).build(rngs=nnx.Rngs(0)))
    (one,) = clippable(LanguageModelConfig(5, shared).build(rngs=nnx.Rngs(0)), biased=True).values()
    assert one.biased
    with pytest.raises(ValueError, match="got Linear without any"):
        clippable(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))


def test_relative_biases_come_down_in_several_steps():
    model, x = Attention(4, position=RelativeBias(reach=4)), inputs()
    table = model.inner.position_table
    table[...] = 5 * jax.random.normal(jax.random.key(1), table[...].shape)
    heads = clippable(model, biased=True)
    assert heads["inner"].biased and not clippable(Attention(4), biased=True)["inner"].biased
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    threshold, largest, factors = 20.0, [], []
    clip = qk_clip(threshold, heads)
    for _ in range(6):
        _, logits = measure(nnx.merge(graph, params, rest), x)
        largest.append(np.asarray(logits["inner"]))
        updates, state = clip.update(
            jax.tree.map(jnp.zeros_like, params), clip.init(params), params, max_logit=logits
        )
        factors.append(np.asarray(state.factors["inner"]))
        params = optax.apply_updates(params, updates)
    over = largest[0] > threshold
    assert over.any() and not over.all() and largest[0].max() > 3 * threshold
    np.testing.assert_allclose(np.min(factors), 0.5)
    np.testing.assert_array_equal(largest[-1][~over], largest[0][~over])
    assert (np.diff(np.stack(largest)[:, over], axis=0) <= 0).all()
    assert (largest[-1] <= 1.1 * threshold).all()


def test_errors_say_what_is_missing():
    model = Attention(4)
    heads, params = clippable(model), nnx.to_pure_dict(nnx.state(model, nnx.Param))
    for bad in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="positive finite"):
            qk_clip(bad, heads)
    with pytest.raises(ValueError, match="at least one module"):
        qk_clip(1.0, {})
    clip = qk_clip(1.0, heads)
    state = clip.init(params)
    with pytest.raises(ValueError, match="expected params"):
        clip.update(params, state, max_logit={})
    with pytest.raises(ValueError, match="expected max_logit"):
        clip.update(params, state, params)
    with pytest.raises(ValueError, match=r"shape \[4\] for inner, got only other"):
        clip.update(params, state, params, max_logit={"other": jnp.ones(4)})
    with pytest.raises(ValueError, match=r"expected shape \[4\], got \[3\]"):
        clip.update(params, state, params, max_logit={"inner": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"inner\.query\.kernel among the parameters"):
        clip.init({"elsewhere": params})


def test_learned_temperatures_stay_and_the_logits_come_down():
    model, x = Attention(2, temperature=True), inputs()
    model.inner.log_temperature[...] = jnp.array([0.0, -0.5, -1.0, 0.3])
    _, logits = measure(model, x)
    params = nnx.state(model, nnx.Param)
    clip = qk_clip(5.0, clippable(model))
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = clip.update(zero, clip.init(params), params, max_logit=logits)
    nnx.update(model, optax.apply_updates(params, updates))
    found = measure(model, x)[1]["inner"]
    np.testing.assert_allclose(found, jnp.minimum(logits["inner"], 5.0), rtol=2e-5)
    assert (logits["inner"] > 5).any()
