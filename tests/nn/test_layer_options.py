"""Options that others' models need: norms, scales, layers that differ, one table for all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import attnjax
from attnjax.nn import (
    AttentionOptions,
    Decoder,
    Encoder,
    LearnedPositions,
    MultiHeadAttention,
    OffsetRMSNorm,
    RelativeBias,
    Rotary,
    SinusoidalPositions,
    TransformerBlock,
    TransformerConfig,
)
from attnjax.nn.inputs import InputPositions

B, T, F = 2, 6, 12
LOUD = jax.nn.initializers.normal(1.0)
BIAS = RelativeBias(kind="t5", buckets=8, bidirectional=False, max_distance=5, init_fn=LOUD)


def _config(attention=None, **options):
    attention = _options() if attention is None else attention
    return TransformerConfig(F, 2, 2, hidden=7, attention=attention, **options)


def _options(**options):
    return AttentionOptions(implementation="reference", **options)


@nnx.jit
def _run(model, *args):
    return model(*args)


def _normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@nnx.jit
def _steps(decoder, x, first=3):
    """Decodes a prompt, then one position at a time."""
    out, cache = decoder.decode(x[:, :first], decoder.init_cache(B, T))
    parts = [out]
    for t in range(first, T):
        out, cache = decoder.decode(x[:, t : t + 1], cache)
        parts.append(out)
    return jnp.concatenate(parts, axis=1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_offset_norm_is_its_formula(dtype):
    norm = OffsetRMSNorm(F, epsilon=0.1, param_dtype=dtype)
    x = _normal(0, B, F).astype(dtype)
    wide = np.asarray(x, np.float32)
    want = wide / np.sqrt(np.mean(wide**2, -1, keepdims=True) + 0.1)
    close = {"rtol": 1e-2 if dtype == jnp.bfloat16 else 1e-5}
    np.testing.assert_allclose(np.asarray(norm(x), np.float32), want, **close)
    norm.scale[...] = jnp.arange(F, dtype=dtype)
    np.testing.assert_allclose(np.asarray(norm(x), np.float32), want * np.arange(1, F + 1), **close)
    assert norm(x).dtype == dtype


def test_norms_on_both_sides_of_a_sublayer():
    config = _config(norm_position="both", norm="rms_offset", norm_epsilon=0.01)
    block = TransformerBlock(config, rngs=nnx.Rngs(0))
    for n, norm in enumerate((block.attention_after, block.feed_forward_after)):
        norm.scale[...] = _normal(n, F)
    x = _normal(2, B, T, F)

    @nnx.jit
    def formula(block, x):
        x = x + block.attention_after(block.attention(block.attention_norm(x)))
        return x + block.feed_forward_after(block.feed_forward(block.feed_forward_norm(x)))

    np.testing.assert_allclose(_run(block, x), formula(block, x), rtol=1e-5, atol=1e-5)
    assert block.attention_norm.epsilon == 0.01
    assert nnx.eval_shape(lambda: Encoder(config, rngs=nnx.Rngs(0))).norm is not None


def test_input_norm_comes_after_positions():
    config = _config(input_norm=True, attention=_options(position=SinusoidalPositions(base=10.0)))
    inputs = InputPositions(config, rngs=nnx.Rngs(0))
    got = inputs(3 + 5 * _normal(0, B, T, F), None)
    np.testing.assert_allclose(jnp.mean(got, -1), 0, atol=1e-5)
    np.testing.assert_allclose(jnp.std(got, -1), 1, rtol=1e-4)


def test_scale_is_the_factor_of_scores():
    options = _options(scale=0.25, qk_norm="rms_offset", out_bias=False)
    layer = MultiHeadAttention(F, num_heads=2, options=options, rngs=nnx.Rngs(0))
    layer.query_norm.scale[...] = _normal(1, F // 2)
    x = 2 * _normal(0, B, T, F)
    assert layer.out.bias is None and layer.query.bias is not None

    @nnx.jit
    def formula(layer):
        q, k = layer.query_norm(layer.query(x)), layer.key_norm(layer.key(x))
        scores = 0.25 * jnp.einsum("btnh,bsnh->bnts", q, k)
        scores = jnp.where(np.tri(T, dtype=bool), scores, -jnp.inf)
        out = jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores), layer.value(x))
        return jnp.einsum("btnh,nhf->btf", out, layer.out.kernel[...])

    @nnx.jit
    def calls(layer):
        _, cache = layer.decode(x[:, :4], layer.init_cache(B, T))
        return layer(x, mask=attnjax.Causal()), layer.decode(x[:, 4:], cache)[0]

    want, (whole, last) = formula(layer), calls(layer)
    np.testing.assert_allclose(whole, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(last, want[:, 4:], rtol=1e-4, atol=1e-5)


def test_layers_that_differ():
    full = _options(position=Rotary(base=50.0), scale=0.5)
    local = dataclasses.replace(full, position=Rotary(base=5.0), window=(1, None))
    config = _config(attention=full, attention_layers=(local, full))
    decoder, x = Decoder(config, rngs=nnx.Rngs(0)), _normal(0, B, T, F)
    first, second = decoder.stack.layers
    assert first.attention.options == local and second.attention.options == full
    np.testing.assert_allclose(_steps(decoder, x), _run(decoder, x), rtol=1e-4, atol=1e-5)
    # One layer with a window of 1 to the left, seen on its own: nothing from 2 before.
    alone = nnx.jit(lambda layer, x: layer(x, mask=attnjax.Causal()))
    same = np.isclose(alone(first, x), alone(first, x.at[:, 2].set(_normal(1, B, F)))).all(-1)
    np.testing.assert_array_equal(same, np.broadcast_to([1, 1, 0, 0, 1, 1], (B, T)))


@pytest.mark.parametrize("scan_layers", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_table_for_all_layers(scan_layers):
    config = _config(
        attention=_options(position=BIAS), shared_position=True, scan_layers=scan_layers
    )
    decoder, x = Decoder(config, rngs=nnx.Rngs(0)), _normal(0, B, T, F)
    tables = [p for p, v in nnx.to_flat_state(nnx.state(decoder)) if v.shape == (2, 8)]
    assert tables == [("inputs", "table")]
    own = dataclasses.replace(config, shared_position=False, scan_layers=False)
    apart = Decoder(own, rngs=nnx.Rngs(1))
    for n, layer in enumerate(apart.stack.layers):
        state = nnx.state(decoder.stack.layers if scan_layers else decoder.stack.layers[n])
        nnx.update(layer, jax.tree.map(lambda a, n=n: a[n], state) if scan_layers else state)
        layer.attention.position_table[...] = decoder.inputs.table[...]
    whole = _run(decoder, x)
    np.testing.assert_allclose(whole, _run(apart, x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(_steps(decoder, x), whole, rtol=1e-4, atol=1e-5)
    if not scan_layers:
        with pytest.raises(ValueError, match="positions: expected None with RelativeBias"):
            decoder(x, positions=jnp.arange(T))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_layers": (AttentionOptions(),)}, "expected 2, one for each layer, got 1"),
        (
            {"attention_layers": (AttentionOptions(),) * 2, "scan_layers": True},
            "scan_layers: expected False with attention_layers",
        ),
        (
            {"attention_layers": (AttentionOptions(position=LearnedPositions(4)),) * 2},
            "attention_layers: expected positions that each layer applies itself",
        ),
        ({"shared_position": True}, "shared_position: expected attention.position to be a Rel"),
        ({"norm_epsilon": 0.0}, "norm_epsilon: expected a positive number"),
    ],
)
def test_refuses_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        _config(**options)
