"""Transformer layers, encoder and decoder: scanned or not, rematerialised or not, step by step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import attnjax
from attnjax.nn import (
    Alibi,
    AttentionOptions,
    Decoder,
    Encoder,
    EncoderDecoder,
    LearnedPositions,
    RelativeBias,
    Rotary,
    SinusoidalPositions,
    TransformerBlock,
    TransformerConfig,
    sinusoids,
)

B, T, S, F, LAYERS = 2, 5, 7, 11, 3
OPTIONS = ("position", "qk_norm", "soft_cap", "window")
LOUD = jax.nn.initializers.normal(1.0)


def _config(**kwargs):
    options = {k: kwargs.pop(k) for k in tuple(kwargs) if k in OPTIONS}
    return TransformerConfig(
        features=F,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        hidden=13,
        num_layers=kwargs.pop("num_layers", LAYERS),
        attention=AttentionOptions(implementation="reference", **options),
        **kwargs,
    )


def _normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def _stacked(states):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_block_is_its_formula(norm_position):
    config = _config(norm_position=norm_position, norm="rms", activation="swiglu")
    block = TransformerBlock(config, cross=True, rngs=nnx.Rngs(0))
    x, memory, mask = _normal(0, B, T, F), _normal(1, B, S, F), attnjax.Causal()
    want = x
    for sublayer, norm in (
        (lambda x: block.attention(x, mask=mask), block.attention_norm),
        (lambda x: block.cross(x, memory, mask=attnjax.Prefix(3)), block.cross_norm),
        (block.feed_forward, block.feed_forward_norm),
    ):
        if norm_position == "pre":
            want = want + sublayer(norm(want))
        else:
            want = norm(want + sublayer(want))
    got = block(x, memory, mask=mask, memory_mask=attnjax.Prefix(3))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    out, stats = block(x, memory, mask=mask, memory_mask=attnjax.Prefix(3), stats=True)
    np.testing.assert_array_equal(out, got)
    assert stats.entropy.shape == (B, 4, T)


@pytest.mark.slow
def test_scanned_and_rematerialised_layers_equal_a_list_of_them():
    config = _config(position=RelativeBias(reach=2, init_fn=LOUD), num_layers=2)
    listed = Encoder(config, rngs=nnx.Rngs(0))
    scanned = Encoder(dataclasses.replace(config, scan_layers=True), rngs=nnx.Rngs(1))
    nnx.update(scanned.inputs, nnx.state(listed.inputs, nnx.Param))
    nnx.update(scanned.norm, nnx.state(listed.norm, nnx.Param))
    states = [nnx.state(layer, nnx.Param) for layer in listed.stack.layers]
    nnx.update(scanned.stack.layers, _stacked(states))
    x, weight = _normal(0, B, T, F), _normal(1, B, T, F)

    @nnx.jit
    def run(model):
        def loss(model):
            out, stats = model(x, mask=attnjax.Prefix(4), stats=True)
            return jnp.sum(weight * out), stats

        return nnx.value_and_grad(loss, has_aux=True)(model)

    (want, want_stats), want_grads = run(listed)
    want_grads = _stacked([want_grads["stack"]["layers"][n] for n in range(2)])
    for model, remat in ((scanned, "none"), (scanned, "full"), (listed, "dots")):
        model.stack.remat = remat
        (got, stats), grads = run(model)
        np.testing.assert_allclose(got, want, rtol=1e-5)
        assert stats.entropy.shape == (2, B, 4, T)
        np.testing.assert_allclose(stats.entropy, want_stats.entropy, rtol=1e-4, atol=1e-5)
        grads = grads["stack"]["layers"]
        if model is listed:
            grads = _stacked([grads[n] for n in range(2)])
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(want_grads), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def _gradient_program(config):
    """The jaxpr of a loss's gradient, without ever making a parameter."""
    model = nnx.eval_shape(lambda: Encoder(config, rngs=nnx.Rngs(0)))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, rest, x):
        return jnp.sum(nnx.merge(graphdef, params, rest)(x) ** 2)

    x = jax.ShapeDtypeStruct((B, T, F), jnp.float32)
    return str(jax.make_jaxpr(jax.grad(loss))(params, rest, x))


def test_programs_do_not_grow_with_scanned_layers():
    def size(layers, scan):
        return len(_gradient_program(_config(num_layers=layers, scan_layers=scan)))

    assert size(7, True) < 1.02 * size(2, True)
    assert size(7, False) > 2 * size(2, False)


@pytest.mark.parametrize("scan", [False, True])
def test_remat_recomputes(scan):
    def count(remat, operation):
        config = _config(num_layers=1, remat=remat, soft_cap=2.0, scan_layers=scan)
        return _gradient_program(config).count(f" {operation}")

    # The soft cap's tanh is recomputed by both, products without batch axes by `full` alone.
    assert count("full", "tanh ") == count("dots", "tanh ") == 2 * count("none", "tanh ")
    assert (
        count("full", "dot_general") > count("dots", "dot_general") > count("none", "dot_general")
    )


@pytest.mark.first(1)
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_dropout_differs_between_layers_and_calls(scan, remat):
    # Layers of equal parameters that only drop their input: what they drop tells them apart.
    config = _config(num_layers=2, dropout_rate=0.5, scan_layers=scan, remat=remat)
    encoder = Encoder(config, rngs=nnx.Rngs(0))
    masks = []

    def record(block, x, _):
        dropped = block.dropout(jnp.ones((B, 101)))
        return x, dropped

    for _ in range(2):
        _, found = encoder.stack.run(record, jnp.zeros(()), None)
        masks += [np.asarray(found[0]), np.asarray(found[1])]
    for n, mask in enumerate(masks):
        assert set(np.unique(mask)) == {0.0, 2.0}
        for other in masks[:n]:
            assert 0.3 < np.mean(mask != other) < 0.7


@pytest.mark.first(1)
@pytest.mark.parametrize("scan", [False, True])
def test_dropout_in_training_and_not_in_evaluation(scan):
    config = _config(dropout_rate=0.3, scan_layers=scan)
    with_attention = dataclasses.replace(
        config, attention=dataclasses.replace(config.attention, dropout_rate=0.3)
    )
    encoder, x = Encoder(with_attention, rngs=nnx.Rngs(0)), _normal(0, B, T, F)
    run = nnx.jit(lambda model, x: model(x))
    first, second = run(encoder, x), run(encoder, x)
    assert not np.allclose(first, second)
    encoder.eval()
    quiet = run(encoder, x)
    np.testing.assert_array_equal(quiet, run(encoder, x))
    assert not np.allclose(quiet, first)


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("scan", "position"),
    [
        (False, Rotary()),
        (True, Alibi()),
        (True, LearnedPositions(9, LOUD)),
        (False, SinusoidalPositions()),
    ],
    ids=["rotary", "scanned_alibi", "scanned_learned", "sinusoidal"],
)
def test_decoder_steps_equal_the_full_pass(scan, position):
    config = _config(position=position, scan_layers=scan, window=(3, 0))
    decoder = Decoder(config, cross=True, rngs=nnx.Rngs(0))
    x, memory, memory_mask = _normal(0, B, T, F), _normal(1, B, S, F), attnjax.Prefix(6)
    graphdef, state = nnx.split(decoder)

    @jax.jit
    def both(state):
        model = nnx.merge(graphdef, state)
        full = model(x, memory, memory_mask=memory_mask)
        cache = model.init_cache(B, 6, memory=memory)
        prompt, cache = model.decode(x[:, :2], cache, memory_mask=memory_mask)

        def step(cache, x):
            out, cache = model.decode(x[:, None], cache, memory_mask=memory_mask)
            return cache, out[:, 0]

        cache, rest = jax.lax.scan(step, cache, jnp.swapaxes(x[:, 2:], 0, 1))
        over, _ = model.decode(x[:, :2], cache, memory_mask=memory_mask)
        return full, jnp.concatenate((prompt, jnp.swapaxes(rest, 0, 1)), axis=1), cache, over

    full, got, cache, over = both(state)
    np.testing.assert_allclose(got, full, rtol=1e-4, atol=1e-5)
    assert cache.length == T and cache.capacity == 6
    assert {k[n].shape for k in cache.layers for n in range(LAYERS)} == {(B, 6, 2, 6)}
    assert np.all(np.isnan(over))
    assert cache.rewind(jnp.asarray([2, 4])).length.tolist() == [2, 4]
    with pytest.raises(ValueError, match="room for 2 more positions, got 5 of 6 slots filled"):
        decoder.decode(x[:, :2], cache, memory_mask=memory_mask)


@pytest.mark.slow
def test_decoder_without_cross_attention_goes_on_from_lengths_of_each_example():
    decoder = Decoder(_config(position=LearnedPositions(9, LOUD)), rngs=nnx.Rngs(0))
    x, lengths = _normal(0, B, T, F), jnp.asarray([3, 2])
    full = decoder(x)
    _, cache = decoder.decode(x[:, :3], decoder.init_cache(B, 6))
    rows = jnp.arange(B), lengths
    out, cache = decoder.decode(x[rows][:, None], cache.rewind(lengths))
    np.testing.assert_allclose(out[:, 0], full[rows], rtol=1e-4, atol=1e-5)
    assert cache.memory is None and cache.length.tolist() == [4, 3]


def test_decoder_is_causal_by_gradient():
    decoder = Decoder(_config(num_layers=2), rngs=nnx.Rngs(0))

    @jax.jit
    def influence(x):
        jacobian = jax.jacrev(lambda x: (decoder(x)[0] * jnp.arange(F)).sum(-1))(x)
        return jnp.abs(jacobian[:, 0]).sum(-1)

    seen = np.asarray(influence(_normal(0, 1, T, F))) > 0
    np.testing.assert_array_equal(seen, np.tril(np.ones((T, T), bool)))


def test_encoder_decoder_is_its_parts():
    config = _config(num_layers=1)
    model = EncoderDecoder(config, _config(num_layers=2, scan_layers=True), rngs=nnx.Rngs(0))
    source, target = _normal(0, B, S, F), _normal(1, B, T, F)
    hide = attnjax.Prefix(jnp.asarray([7, 4]))
    got = model(source, target, source_mask=hide, memory_mask=hide)
    memory = model.encoder(source, mask=hide)
    np.testing.assert_allclose(
        got, model.decoder(target, memory, memory_mask=hide), rtol=1e-5, atol=1e-5
    )
    changed = model(source.at[1, 4:].add(5.0), target, source_mask=hide, memory_mask=hide)
    np.testing.assert_allclose(changed, got, rtol=1e-5, atol=1e-5)  # padding reaches nothing


def test_absolute_positions_are_added_once():
    config = _config(num_layers=2, position=SinusoidalPositions())
    encoder, x = Encoder(config, rngs=nnx.Rngs(0)), _normal(0, B, T, F)
    plain = Encoder(_config(num_layers=2), rngs=nnx.Rngs(0))
    nnx.update(plain, nnx.state(encoder, nnx.Param))
    positions = jnp.asarray([4, 2, 0, 1, 3])
    want = plain(x + sinusoids(positions, F))
    np.testing.assert_allclose(encoder(x, positions=positions), want, rtol=1e-5, atol=1e-5)


def test_cross_attention_has_no_positions_and_no_window():
    config = _config(position=Rotary(), window=(1, 0), soft_cap=3.0)
    block = TransformerBlock(config, cross=True, rngs=nnx.Rngs(0))
    options = block.cross.options
    assert options.position is None and options.window is None and options.soft_cap == 3.0


@pytest.mark.first(1)
@pytest.mark.parametrize("scan", [False, True])
def test_bfloat16_computes_in_bfloat16(scan):
    config = _config(dtype=jnp.bfloat16, position=Rotary(), scan_layers=scan)
    decoder, x = Decoder(config, rngs=nnx.Rngs(0)), _normal(0, B, T, F).astype(jnp.bfloat16)
    assert decoder(x).dtype == jnp.bfloat16
    cache = decoder.init_cache(B, T)
    out, after = decoder.decode(x, cache)
    assert out.dtype == jnp.bfloat16 and after.layers.k[0].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(decoder, nnx.Param))} == {
        jnp.dtype(jnp.float32)
    }


def _block(cross):
    return TransformerBlock(_config(), cross=cross, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: _config(num_layers=0), "num_layers: expected at least 1, got 0"),
        (lambda: _config(norm="batch"), "norm: expected one of layer, rms, rms_offset; got"),
        (lambda: _config(norm_position="mid"), "norm_position: expected one of pre, post, both"),
        (lambda: _config(remat="some"), "remat: expected one of none, full, dots"),
        (lambda: _block(True)(jnp.ones((B, T, F))), "memory: expected what the cross-attention"),
        (
            lambda: _block(False)(jnp.ones((B, T, F)), jnp.ones((B, S, F))),
            "memory: expected None, for there is no cross-attention",
        ),
        (
            lambda: _block(False)(jnp.ones((B, T, F)), memory_mask=attnjax.Prefix(2)),
            "memory_mask: expected None, for there is no cross-attention",
        ),
        (
            lambda: Decoder(_config(), cross=True, rngs=nnx.Rngs(0)).init_cache(B, 3),
            "memory: expected what the cross-attention",
        ),
        (
            lambda: Encoder(_config(), rngs=nnx.Rngs(0))(jnp.ones((B, T, F + 1))),
            r"x: expected an array \[batch, time, 11\]",
        ),
        (
            lambda: EncoderDecoder(
                _config(), dataclasses.replace(_config(), features=8), rngs=nnx.Rngs(0)
            ),
            "decoder.features: expected 11, the encoder's, got 8",
        ),
    ],
)
def test_errors_name_the_argument(build, message):
    with pytest.raises(ValueError, match=message):
        build()
