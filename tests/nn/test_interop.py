import functools
import inspect

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import attnjax
from attnjax.nn.interop import attention_fn

T, S, N, H, D = 5, 7, 3, 11, 13
FLAX = {"nnx": nnx.dot_product_attention, "linen": linen.dot_product_attention}
# Compiling takes most of the time of these tests, and small arrays need no fast code.
COMPILER = {"xla_backend_optimization_level": 0}
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)


def _inputs(batch=(2,), heads=N, kv_heads=N, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (*batch, T, heads, H), dtype)
    k = jax.random.normal(keys[1], (*batch, S, kv_heads, H), dtype)
    v = jax.random.normal(keys[2], (*batch, S, kv_heads, D), dtype)
    bias = jax.random.normal(keys[3], (*batch, heads, T, S))
    return q, k, v, bias


def _mask(batch=(2,), dtype=bool):
    """Every row keeps key 0, so that Flax's answer for empty rows plays no part."""
    mask = jax.random.bernoulli(jax.random.key(5), 0.6, (*batch, 1, T, S)).at[..., 0].set(True)
    return mask.astype(dtype)


def _values_and_gradients(fn, *args):
    def loss(*args):
        out = fn(*args)
        weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return jnp.sum(out.astype(jnp.float32) * weights), out

    both = jax.value_and_grad(loss, argnums=range(len(args)), has_aux=True)
    (_, out), grads = jax.jit(both, compiler_options=COMPILER)(*args)
    return out, *grads


@pytest.mark.parametrize("flax_fn", FLAX.values(), ids=FLAX)
def test_takes_every_argument_in_the_order_of_flax(flax_fn):
    ours, theirs = (list(inspect.signature(f).parameters) for f in (attention_fn, flax_fn))
    assert set(theirs) <= set(ours)
    assert ours[:12] == theirs[:12]


@pytest.mark.first(3)
@pytest.mark.parametrize("flax_fn", FLAX.values(), ids=FLAX)
@pytest.mark.parametrize(
    ("batch", "mask_dtype"),
    [((), None), ((), jnp.int32), ((2,), bool), ((2,), jnp.float32), ((2, 3), jnp.bfloat16)],
)
def test_values_and_gradients(flax_fn, batch, mask_dtype):
    # nnx.dot_product_attention reshapes its output to the query's shape, and so needs D == H.
    q, k, v, bias = _inputs(batch)
    v = v[..., :H]
    options = {} if mask_dtype is None else {"mask": _mask(batch, mask_dtype)}
    if mask_dtype is not None and flax_fn is linen.dot_product_attention:
        reference = functools.partial(flax_fn, mask=options["mask"] != 0)
    else:
        reference = functools.partial(flax_fn, **options)
    if flax_fn is nnx.dot_product_attention:
        reference = functools.partial(reference, dropout_rate=0.5, deterministic=True)
    got = _values_and_gradients(functools.partial(attention_fn, **options), q, k, v, bias)
    want = _values_and_gradients(reference, q, k, v, bias)
    for ours, theirs in zip(got, want, strict=True):
        close(ours, theirs)


@pytest.mark.first(1)
@pytest.mark.parametrize("shape", [(N, T, S), (1, 1, T, S), (2, 3, 1, 1, S), (2, 1, N, 1, S), (S,)])
def test_bias_and_mask_broadcast(shape):
    q, k, v, _ = _inputs((2, 3))
    bias = jax.random.normal(jax.random.key(7), shape)
    mask = (bias > -0.5).at[..., 0].set(True)
    got = _values_and_gradients(lambda q, bias: attention_fn(q, k, v, bias, mask), q, bias)
    want = _values_and_gradients(
        lambda q, bias: linen.dot_product_attention(q, k, v, bias, mask), q, bias
    )
    for ours, theirs in zip(got, want, strict=True):
        close(ours, theirs)


@pytest.mark.slow
def test_grouped_heads_and_causality():
    q, k, v, _ = _inputs(heads=6, kv_heads=3)
    options = {"is_causal": True, "mask": jnp.broadcast_to(_mask(), (2, 6, T, S))}
    want = nnx.dot_product_attention(
        q, k, v[..., :H], **options, dropout_rate=0.5, deterministic=True
    )
    close(attention_fn(q, k, v[..., :H], **options), want)
    close(
        attention_fn(q, k, v, is_causal=True),
        attention_fn(q, k, v, mask=attnjax.Causal()),
    )


@pytest.mark.first(1)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("force", [True, False])
def test_narrow_dtypes(dtype, force):
    q, k, v, _ = _inputs()
    options = {"dtype": dtype, "force_fp32_for_softmax": force}
    got = attention_fn(q, k, v, mask=_mask(), **options)
    assert got.dtype == linen.dot_product_attention(q, k, v, **options).dtype
    want = linen.dot_product_attention(q, k, v, mask=_mask())
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=2e-2, atol=2e-2)


def test_mixed_dtypes_are_promoted():
    q, k, v, _ = _inputs()
    got = attention_fn(q.astype(jnp.bfloat16), k, v)
    assert got.dtype == jnp.float32
    close(got, linen.dot_product_attention(q.astype(jnp.bfloat16), k, v))


def test_empty_rows_are_zero_where_flax_gives_the_mean():
    q, k, v, _ = _inputs()
    mask = _mask().at[:, :, 2].set(False)
    got, flax = attention_fn(q, k, v, mask=mask), linen.dot_product_attention(q, k, v, mask=mask)
    np.testing.assert_array_equal(got[:, 2], 0)
    close(flax[:, 2], jnp.mean(v, axis=1))
    close(jnp.delete(got, 2, axis=1), jnp.delete(flax, 2, axis=1))


def _module(api, inputs, **options):
    """Returns `apply(params, x, mask) -> y` of a Flax module, and its parameters."""
    options = {"num_heads": N, "qkv_features": N * H, **options}
    if api == "nnx":
        module = nnx.MultiHeadAttention(in_features=D, decode=False, rngs=nnx.Rngs(0), **options)
        graphdef, params = nnx.split(module)
        return lambda p, *args, **kw: nnx.merge(graphdef, p)(*args, **kw), params
    module = linen.MultiHeadDotProductAttention(**options)
    return module.apply, module.init(jax.random.key(0), inputs)


@pytest.mark.first(2)
@pytest.mark.parametrize("api", FLAX)
@pytest.mark.parametrize(
    ("dtype", "mask_dtype"), [(jnp.float32, jnp.float32), (jnp.bfloat16, bool)]
)
def test_inside_flax_modules(api, dtype, mask_dtype):
    x = jax.random.normal(jax.random.key(1), (2, T, D))
    lengths = jnp.array([[3], [T]])
    mask = linen.combine_masks(
        linen.make_causal_mask(x[..., 0], dtype=mask_dtype),
        linen.make_attention_mask(x[..., 0] < 9, jnp.arange(T) < lengths, dtype=mask_dtype),
        dtype=mask_dtype,
    )
    ours, params = _module(api, x, dtype=dtype, attention_fn=attention_fn)
    theirs, _ = _module(api, x, dtype=dtype)

    def run(apply):
        return _values_and_gradients(lambda p, x: apply(p, x, mask=mask), params, x)

    bounds = {} if dtype == jnp.float32 else {"rtol": 5e-2, "atol": 5e-2}
    jax.tree.map(
        lambda a, b: close(a.astype(jnp.float32), b.astype(jnp.float32), **bounds),
        run(ours),
        run(theirs),
    )


def test_flax_module_takes_a_mask_object():
    x = jax.random.normal(jax.random.key(1), (2, T, D))
    apply, params = _module("nnx", x, attention_fn=attention_fn)
    lengths = jnp.array([2, T])
    got = apply(params, x, mask=attnjax.Causal() & attnjax.Prefix(lengths))
    dense = jnp.tril(jnp.ones((T, T), bool)) & (jnp.arange(T) < lengths[:, None, None, None])
    close(got, apply(params, x, mask=dense))


def test_decoding_with_the_cache_of_linen():
    x = jax.random.normal(jax.random.key(1), (2, T, D))
    options = {"num_heads": N, "qkv_features": N * H}
    full = linen.MultiHeadDotProductAttention(**options)
    params = full.init(jax.random.key(0), x)["params"]
    want = full.apply({"params": params}, x, mask=linen.make_causal_mask(x[..., 0]))
    decoder = linen.MultiHeadDotProductAttention(**options, decode=True, attention_fn=attention_fn)
    cache = decoder.init(jax.random.key(0), x)["cache"]
    for t in range(T):
        step, changed = decoder.apply(
            {"params": params, "cache": cache}, x[:, t : t + 1], mutable=["cache"]
        )
        cache = changed["cache"]
        close(step[:, 0], want[:, t])


def test_decoding_with_the_cache_of_nnx():
    x = jax.random.normal(jax.random.key(1), (2, T, D))
    module = nnx.MultiHeadAttention(
        N, D, N * H, decode=False, rngs=nnx.Rngs(0), attention_fn=attention_fn
    )
    want = module(x, mask=nnx.make_causal_mask(x[..., 0]))
    module.init_cache(x.shape)
    for t in range(T):
        close(module(x[:, t : t + 1], decode=True)[:, 0], want[:, t])


def _dropped(**options):
    """Returns which weights are 0, bool `[B, T, N, S]`: the values are the identity."""
    q, k = jnp.zeros((2, T, N, H)), jnp.zeros((2, S, N, H))
    v = jnp.broadcast_to(jnp.eye(S)[:, None], (2, S, N, S))
    out = attention_fn(q, k, v, dropout_rng=jax.random.key(3), dropout_rate=0.4, **options)
    scale = 1.0 if options.get("deterministic") else 1 / 0.6
    close(out[out != 0], scale / S)
    return np.asarray(out == 0)


def test_broadcast_dropout_shares_its_pattern_over_batch_and_heads():
    shared = _dropped()
    np.testing.assert_array_equal(shared, np.broadcast_to(shared[:1, :, :1], shared.shape))
    own = _dropped(broadcast_dropout=False)
    assert (own[0] != own[1]).any() and (own[:, :, 0] != own[:, :, 1]).any()
    for pattern in (shared[0, :, 0], own):
        assert 0.15 < pattern.mean() < 0.65
    assert not _dropped(deterministic=True).any()


@pytest.mark.parametrize("api", FLAX)
@pytest.mark.parametrize("broadcast", [True, False])
def test_dropout_inside_flax_modules(api, broadcast):
    x = jax.random.normal(jax.random.key(1), (2, T, D))
    options = {"dropout_rate": 0.5, "broadcast_dropout": broadcast, "attention_fn": attention_fn}
    if api == "linen":
        apply, params = _module(api, x, **options, deterministic=False)
        run = lambda seed: apply(params, x, rngs={"dropout": jax.random.key(seed)})  # noqa: E731
    else:
        module = nnx.MultiHeadAttention(N, D, N * H, decode=False, rngs=nnx.Rngs(0), **options)
        run = lambda seed: module(x, deterministic=False, rngs=nnx.Rngs(dropout=seed))  # noqa: E731
    np.testing.assert_array_equal(run(1), run(1))
    assert not np.array_equal(run(1), run(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"module": object()}, r"module: expected None, got object: sowing .*stats=True"),
        ({"einsum_dot_general": jax.lax.dot_general}, "einsum_dot_general: .*leave it None"),
        ({"qk_attn_weights_einsum": jnp.einsum}, "qk_attn_weights_einsum: .*leave it None"),
        ({"attn_weights_value_einsum": jnp.einsum}, "attn_weights_value_einsum: "),
        ({"input_positions": jnp.arange(T)}, "input_positions: .*attnjax.nn.MultiHeadAttention"),
    ],
)
def test_refuses_what_it_cannot_do(options, message):
    with pytest.raises(NotImplementedError, match=message):
        attention_fn(*_inputs()[:3], **options)


@pytest.mark.parametrize("api", FLAX)
def test_sowing_weights_is_refused_inside_flax_modules(api):
    x = jnp.ones((2, T, D))
    apply, params = _module(api, x, attention_fn=attention_fn)
    with pytest.raises(NotImplementedError, match="sow_weights=True"):
        apply(params, x, sow_weights=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout_rate": 0.1}, "dropout_rng: expected a PRNG key.*got None"),
        ({"dropout_rate": 1.0, "dropout_rng": jax.random.key(0)}, r"rate: expected .*\[0, 1\)"),
        ({"mask": jnp.ones((T, S + 1))}, r"mask: .*\(2, 3, 5, 7\), got shape \(5, 8\)"),
        ({"bias": jnp.ones((3, 2, N, T, S))}, r"bias: .*got shape \(3, 2, 3, 5, 7\)"),
        ({"key": jnp.ones((3, S, N, H))}, r"key: expected .*query \(2, 5, 3, 11\), key \(3"),
        ({"query": jnp.ones((N, H))}, "query: expected"),
    ],
)
def test_wrong_inputs(change, message):
    q, k, v, _ = _inputs()
    with pytest.raises(ValueError, match=message):
        attention_fn(**{"query": q, "key": k, "value": v, **change})
