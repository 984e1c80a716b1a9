"""Sigma-reparametrisation of whole models: attention, scanned layers, a training loop, folding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from attnjax import focus
from attnjax.focus import maps
from attnjax.focus.steady import (
    Heads,
    clippable,
    fold_sigma,
    qk_clip,
    refresh_sigma,
    scale_heads,
    sigma_reparam,
)
from attnjax.models import LanguageModelConfig
from attnjax.nn import (
    AdditiveAttention,
    AttentionOptions,
    AttentionPooling,
    Encoder,
    MultiHeadAttention,
    SigmaLinear,
    SigmaLinearGeneral,
    SigmaVector,
    TransformerConfig,
)

B, T, F, N, K, H = 2, 5, 12, 4, 2, 3
PROJECTIONS = ("query", "key", "value", "out")
SIMPLE = AttentionOptions(implementation="reference")
SIGMA = dataclasses.replace(SIMPLE, sigma_reparam=True)
ENCODER = TransformerConfig(
    features=F, num_heads=N, num_kv_heads=K, hidden=7, num_layers=2, attention=SIGMA
)


def attention(options):
    return MultiHeadAttention(F, num_heads=N, num_kv_heads=K, options=options, rngs=nnx.Rngs(0))


def inputs(*shape):
    return jax.random.normal(jax.random.key(5), shape or (B, T, F))


def norm(kernel, axes=1):
    """Spectral norm of a kernel, its first axes being inputs."""
    wide = np.asarray(kernel, np.float64)
    return np.linalg.svd(wide.reshape(np.prod(wide.shape[:axes]), -1), compute_uv=False)[0]


@nnx.jit
def forward(model, x):
    return model(x)


@nnx.jit
def objective(model, x):
    return nnx.value_and_grad(lambda model: jnp.sum(jnp.sin(model(x))))(model)


def shapes(tree):
    return jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(tree)))


def arrays(tree):
    """Parameters and vectors."""
    return [x for kind in (nnx.Param, SigmaVector) for x in jax.tree.leaves(nnx.state(tree, kind))]


def test_attention_divides_each_of_its_kernels():
    module, plain, x = attention(SIGMA), attention(SIMPLE), inputs()
    refresh_sigma(module, steps=500)
    module.eval()
    for number, name in enumerate(PROJECTIONS):
        own, other = getattr(module, name), getattr(plain, name)
        np.testing.assert_array_equal(own.kernel[...], other.kernel[...])  # the same draws
        own.gamma[...] = jnp.float32(number + 0.5)
        other.kernel[...] *= (number + 0.5) / norm(other.kernel[...], 2 if name == "out" else 1)
    np.testing.assert_allclose(forward(module, x), forward(plain, x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_model_is_changed_as_it_would_be_built():
    built = Encoder(ENCODER, rngs=nnx.Rngs(0))
    plain = dataclasses.replace(ENCODER, attention=SIMPLE)
    changed = Encoder(plain, rngs=nnx.Rngs(0))
    assert sigma_reparam(changed) == 4 * 2
    for a, b in zip(arrays(built), arrays(changed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert shapes(built) == shapes(changed)
    everything = Encoder(dataclasses.replace(plain, scan_layers=True), rngs=nnx.Rngs(0))
    assert sigma_reparam(everything, lambda path, layer: "norm" not in path) == 6 * 2
    assert isinstance(everything.stack.layers.feed_forward.up, SigmaLinear)
    with pytest.raises(ValueError, match=r"none in Encoder \(layers that are changed already"):
        sigma_reparam(everything)
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        sigma_reparam(everything, steps=0)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "none", "dots"])
def test_scanned_layers_equal_a_list_of_them(remat):
    listed = Encoder(ENCODER, rngs=nnx.Rngs(0))
    scanned = Encoder(dataclasses.replace(ENCODER, scan_layers=True), rngs=nnx.Rngs(0))
    for at, layer in enumerate(listed.stack.layers):  # gammas that differ
        for name in PROJECTIONS:
            getattr(layer.attention, name).gamma[...] = jnp.float32(1 + at / 2)
    states = [nnx.to_pure_dict(nnx.state(layer)) for layer in listed.stack.layers]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    state = nnx.state(scanned.stack.layers)
    nnx.replace_by_pure_dict(state, stacked)
    nnx.update(scanned.stack.layers, state)
    scanned.stack.remat = remat

    x, found = inputs(), []
    for model in (listed, scanned):
        objective(model, x)  # so that vectors have moved
        found.append((model.stack.layers, *objective(model, x)))
    (layers, loss, grads), (other_layers, other_loss, other_grads) = found
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    vectors = [nnx.to_pure_dict(nnx.state(layer, SigmaVector)) for layer in layers]
    slopes = [nnx.to_pure_dict(grads["stack"]["layers"][at]) for at in range(2)]
    for per_layer, together in (
        (vectors, nnx.to_pure_dict(nnx.state(other_layers, SigmaVector))),
        (slopes, nnx.to_pure_dict(other_grads["stack"]["layers"])),
    ):
        wanted = jax.tree.map(lambda *leaves: np.stack(leaves), *per_layer)
        assert jax.tree.structure(wanted) == jax.tree.structure(together)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize("scan", [None, True, False])
def test_trained_weights_go_on_as_they_were_and_fold_back(scan):
    if scan is None:
        model = attention(SIMPLE)
    else:
        config = dataclasses.replace(ENCODER, attention=SIMPLE, scan_layers=scan)
        model = Encoder(config, rngs=nnx.Rngs(0))
    model.eval()
    x, kernels = inputs(), 4 if scan is None else 8
    expected, before = forward(model, x), shapes(model)
    assert sigma_reparam(model, keep=True) == kernels
    np.testing.assert_allclose(forward(model, x), expected, rtol=1e-5, atol=1e-5)
    for path, layer in nnx.iter_modules(model):  # and as a training would have left it
        if isinstance(layer, SigmaLinearGeneral):
            layer.gamma[...] *= 1.1 + 0.1 * len(path)
    trained = forward(model, x)
    assert np.abs(trained - expected).max() > 0.01
    assert fold_sigma(model) == kernels and shapes(model) == before
    np.testing.assert_allclose(forward(model, x), trained, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(x, SigmaLinearGeneral) for _, x in nnx.iter_modules(model))
    assert fold_sigma(model) == 0


def test_a_folded_module_is_a_plain_one():
    module = attention(SIGMA)
    fold_sigma(module)
    assert type(module.query) is nnx.LinearGeneral and not module.options.sigma_reparam
    np.testing.assert_allclose(norm(module.query.kernel[...]), 1, rtol=0.02)
    assert list(clippable(module)) == [""]

    class Mine(SigmaLinear):
        pass

    with pytest.raises(NotImplementedError, match="Mine: expected SigmaLinear or"):
        fold_sigma(Mine(2, 3, rngs=nnx.Rngs(0)))


def test_a_training_loop_of_ones_own_learns_gamma_and_follows_the_norm():
    model, x = attention(SIMPLE), inputs(8, T, F)
    sigma_reparam(model, steps=8)
    target = 3 * jnp.roll(x, 1, axis=1)
    optimizer = nnx.Optimizer(model, optax.adam(0.02), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda model: jnp.mean((model(x) - target) ** 2))(model)
        optimizer.update(model, grads)
        return loss

    start = {name: getattr(model, name).kernel[...] for name in PROJECTIONS}
    losses = [float(step(model, optimizer)) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    gammas = {name: float(getattr(model, name).gamma[...]) for name in PROJECTIONS}
    assert gammas["value"] > 1.2 and gammas["out"] > 1.2
    for name in PROJECTIONS:
        assert norm(getattr(model, name).kernel[...] - start[name]) > 0.2
    fold_sigma(model)
    for name in PROJECTIONS:
        found = norm(getattr(model, name).kernel[...], 2 if name == "out" else 1)
        np.testing.assert_allclose(found, gammas[name], rtol=0.05)


@pytest.mark.slow
def test_evaluation_changes_nothing_and_repeats_itself():
    model, x = Encoder(ENCODER, rngs=nnx.Rngs(0)), inputs()
    forward(model, x)
    model.eval()
    before = jax.tree.map(np.asarray, arrays(model))
    first = forward(model, x)
    np.testing.assert_array_equal(forward(model, x), first)
    for a, b in zip(arrays(model), before, strict=True):
        np.testing.assert_array_equal(a, b)
    plain = Encoder(dataclasses.replace(ENCODER, attention=SIMPLE), rngs=nnx.Rngs(0))
    plain.eval()
    sigma_reparam(plain)  # keeps the mode of the model
    assert plain.stack.layers[0].attention.query.deterministic


def test_replaced_kernels_can_be_measured_anew():
    module = attention(SIGMA)
    module.value.kernel[...] = inputs(F, K, H)
    assert refresh_sigma(module, steps=500) == 4
    fold_sigma(module)
    np.testing.assert_allclose(norm(module.value.kernel[...]), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="found none in MultiHeadAttention"):
        refresh_sigma(module)


@pytest.mark.slow
def test_other_attention_is_found_too():
    rngs = nnx.Rngs(0)
    additive = AdditiveAttention(F, num_heads=N, rngs=rngs)
    pooling = AttentionPooling(F, num_heads=N, score="additive", rngs=rngs)
    flax = nnx.MultiHeadAttention(N, F, decode=False, rngs=rngs)
    for module, kernels in ((additive, 4), (pooling, 1), (flax, 4)):
        module.eval()
        before = np.asarray(forward(module, inputs()))
        assert sigma_reparam(module, keep=True) == kernels
        np.testing.assert_allclose(forward(module, inputs()), before, rtol=1e-4, atol=1e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize("scan", [True, False])
def test_qk_clip_says_why_not(scan):
    model = Encoder(dataclasses.replace(ENCODER, scan_layers=scan), rngs=nnx.Rngs(0))
    why = "stack.layers.*attention: QK-clip can't hold its logits, for sigma-reparam.*fold_sigma"
    for biased in (True, False):
        with pytest.raises(NotImplementedError, match=why):
            clippable(model, biased=biased)
    path = "stack.layers.attention" if scan else "stack.layers.1.attention"
    stack = {"stack": "stack.layers", "num_layers": 2} if scan else {}
    heads = {path: Heads(N, K, **stack)}
    for params in (nnx.state(model, nnx.Param), nnx.to_pure_dict(nnx.state(model, nnx.Param))):
        with pytest.raises(NotImplementedError, match=why):
            qk_clip(10.0, heads).init(params)
        with pytest.raises(NotImplementedError, match=why):
            scale_heads(params, params, {path: jnp.ones(heads[path].shape)}, heads)


@pytest.mark.slow
def test_watching_sees_what_is_used_and_changes_nothing():
    model, x = Encoder(ENCODER, rngs=nnx.Rngs(0)), inputs()
    quiet = nnx.clone(model)
    focus.watch(model)

    for _ in range(2):
        focus.clear(model)
        np.testing.assert_array_equal(objective(model, x)[0], objective(quiet, x)[0])
    seen = focus.read(model)
    focus.unwatch(model)
    for a, b in zip(arrays(model), arrays(quiet), strict=True):
        np.testing.assert_array_equal(a, b)
    fold_sigma(model)
    focus.watch(model)
    forward(model, x)
    for name, stats in focus.read(model).items():
        np.testing.assert_allclose(seen[name].output, stats.output, rtol=1e-4)
        np.testing.assert_allclose(seen[name].max_logit, stats.max_logit, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_importance_is_that_of_the_folded_model():
    model, x = attention(SIGMA), inputs()
    model.eval()

    def loss(model, batch):
        return jnp.mean(jnp.sin(model(batch)))

    folded = nnx.clone(model)
    fold_sigma(folded)
    for how in (maps.ablation_importance, maps.gradient_importance):
        np.testing.assert_allclose(how(model, loss, x)[""], how(folded, loss, x)[""], rtol=1e-5)
    assert isinstance(model.out, SigmaLinearGeneral)


@pytest.mark.slow
def test_an_output_over_the_vocabulary_is_refused():
    config = LanguageModelConfig(vocabulary=11, decoder=ENCODER, tied=False)
    model = config.build(rngs=nnx.Rngs(0))
    sigma_reparam(model, lambda path, layer: path == "output")
    with pytest.raises(NotImplementedError, match="sigma-reparametrised; leave it out"):
        model(jnp.zeros((1, 3), jnp.int32))
