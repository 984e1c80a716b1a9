"""Kernels divided by their spectral norm: sigma against an SVD, gradients against formulas."""

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax.nn import SigmaLinear, SigmaLinearGeneral
from attnjax.nn.sigma import kernel_of, sigma_kernel, sigma_vector

# Shape, axes of inputs, axes of outputs; axes in front hold a matrix each.
SHAPES = {
    "query": ((7, 3, 5), 1, 2),
    "out": ((3, 5, 11), 2, 1),
    "layers": ((2, 7, 3, 5), 1, 2),
    "one row": ((1, 3, 5), 1, 2),
    "one column": ((13, 1), 1, 1),
    "one number": ((1, 1), 1, 1),
}


def normal(seed, shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def matrices(kernel, inputs, outputs):
    """float64 `[L, X, Y]`; one matrix if there are no axes in front."""
    wide = np.asarray(kernel, np.float64)
    lead = wide.ndim - inputs - outputs
    size = int(np.prod(wide.shape[lead : lead + inputs]))
    return wide.reshape(-1, size, int(np.prod(wide.shape[lead + inputs :])))


def norms(kernel, inputs, outputs):
    return np.linalg.svd(matrices(kernel, inputs, outputs), compute_uv=False)[:, 0]


@pytest.mark.first(3)
@pytest.mark.parametrize("case", SHAPES)
def test_the_result_has_the_spectral_norm_gamma(case):
    shape, inputs, outputs = SHAPES[case]
    axes, kernel = {"inputs": inputs, "outputs": outputs}, normal(0, shape)
    vector = sigma_vector(kernel, **axes, steps=1000)
    gamma = jnp.full(vector.shape[:-1], 1.7)
    scaled, _ = sigma_kernel(kernel, gamma, vector, **axes, steps=0)
    np.testing.assert_allclose(norms(scaled, inputs, outputs), 1.7, rtol=1e-5)
    ratio = matrices(scaled, inputs, outputs) / matrices(kernel, inputs, outputs)
    expected = 1.7 / norms(kernel, inputs, outputs)[:, None, None]
    np.testing.assert_allclose(ratio, np.broadcast_to(expected, ratio.shape), rtol=1e-5)


def test_estimates_grow_up_to_the_norm():
    kernel = normal(1, (31, 37))

    def step(vector, _):
        scaled, vector = sigma_kernel(kernel, jnp.ones(()), vector)
        return vector, kernel[0, 0] / scaled[0, 0]

    _, found = jax.lax.scan(step, sigma_vector(kernel, steps=0), length=300)
    exact = norms(kernel, 1, 1)[0]
    assert found[0] < 0.95 * exact and (np.diff(found) > -1e-5 * exact).all()
    np.testing.assert_allclose(found[-1], exact, rtol=1e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize("case", ["layers", "query", "out", "one row"])
def test_values_and_gradients_are_those_of_float64(case):
    shape, inputs, outputs = SHAPES[case]
    axes, kernel, weight = (
        {"inputs": inputs, "outputs": outputs},
        normal(2, shape),
        normal(3, shape),
    )
    vector = sigma_vector(kernel, **axes, steps=1)
    gamma = 1 + 0.5 * jnp.arange(1.0, 1 + vector[..., 0].size).reshape(vector.shape[:-1])

    def total(kernel, gamma):
        scaled, after = sigma_kernel(kernel, gamma, vector, **axes)
        return jnp.sum(scaled * weight), (scaled, after)

    grads, (scaled, after) = jax.jit(jax.grad(total, (0, 1), has_aux=True))(kernel, gamma)
    W, C = (matrices(x, inputs, outputs) for x in (kernel, weight))
    g = np.asarray(gamma, np.float64).reshape(-1, 1, 1)
    v = np.asarray(vector, np.float64).reshape(len(W), -1)
    v = np.einsum("lxy,ly->lx", W, np.einsum("lxy,lx->ly", W, v))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    image = np.einsum("lxy,lx->ly", W, v)
    sigma = np.linalg.norm(image, axis=1)[:, None, None]
    slope = v[:, :, None] * image[:, None, :] / sigma  # of v W u, with v and u held
    inner = np.sum(C * W, axis=(1, 2), keepdims=True)
    compare = dict(rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(np.reshape(after, v.shape), v, **compare)
    np.testing.assert_allclose(matrices(scaled, inputs, outputs), g / sigma * W, **compare)
    expected = g / sigma * C - g / sigma**2 * inner * slope
    np.testing.assert_allclose(matrices(grads[0], inputs, outputs), expected, **compare)
    np.testing.assert_allclose(np.ravel(grads[1]), np.ravel(inner / sigma), **compare)


def test_gradients_are_true_ones_where_the_vector_has_settled():
    kernel, weight = normal(4, (5, 8)), normal(5, (5, 8), np.float64)
    vector = sigma_vector(kernel, steps=1000)

    @jax.jit
    @jax.grad
    def slope(kernel):
        return jnp.sum(sigma_kernel(kernel, jnp.ones(()), vector)[0] * weight)

    def exact(w):
        return np.sum(weight * w) / np.linalg.svd(w, compute_uv=False)[0]

    wide, step, slopes = kernel.astype(np.float64), 1e-6, np.zeros(kernel.shape)
    for at in np.ndindex(*kernel.shape):
        change = np.zeros(kernel.shape)
        change[at] = step
        slopes[at] = (exact(wide + change) - exact(wide - change)) / (2 * step)
    np.testing.assert_allclose(slope(kernel), slopes, rtol=1e-4, atol=1e-5)


def test_zeros_stay_zeros_and_can_be_learnt_away_from():
    weight, gamma = normal(6, (4, 3)), jnp.float32(1.5)
    vector = sigma_vector(jnp.zeros((4, 3)))
    np.testing.assert_allclose(jnp.linalg.norm(vector), 1, rtol=1e-6)

    def total(kernel, gamma):
        scaled, after = sigma_kernel(kernel, gamma, vector)
        return jnp.sum(scaled * weight), (scaled, after)

    zeros = jnp.zeros((4, 3))
    grads, (scaled, after) = jax.jit(jax.grad(total, (0, 1), has_aux=True))(zeros, gamma)
    np.testing.assert_array_equal(scaled, np.zeros((4, 3)))
    np.testing.assert_array_equal(after, vector)
    np.testing.assert_allclose(grads[0], 1.5 * weight, rtol=1e-6)
    assert grads[1] == 0


@pytest.mark.first(1)
@pytest.mark.parametrize("size", [1e-30, 1e-15, 1e15, 1e30])
def test_small_and_large_kernels(size):
    kernel = normal(7, (6, 9))
    expected = sigma_kernel(kernel, jnp.ones(()), sigma_vector(kernel))
    large = (kernel * np.float32(size)).astype(np.float32)
    found = sigma_kernel(large, jnp.ones(()), sigma_vector(large))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_what_is_not_finite_reaches_the_result_and_not_the_vector():
    kernel = normal(8, (4, 5))
    vector = sigma_vector(kernel)
    spoilt = kernel.copy()
    spoilt[1, 2] = np.nan
    scaled, after = sigma_kernel(spoilt, jnp.ones(()), vector)
    assert np.isnan(scaled[1, 2])
    np.testing.assert_array_equal(after, vector)


def test_bfloat16_is_measured_in_float32():
    kernel = jnp.asarray(normal(9, (64, 48)), jnp.bfloat16)
    vector = sigma_vector(kernel, steps=500)
    assert vector.dtype == jnp.float32
    scaled, after = sigma_kernel(kernel, jnp.float32(1), vector)
    assert scaled.dtype == jnp.bfloat16 and after.dtype == jnp.float32
    wide, _ = sigma_kernel(kernel.astype(jnp.float32), jnp.float32(1), vector)
    np.testing.assert_array_equal(scaled, wide.astype(jnp.bfloat16))
    np.testing.assert_allclose(norms(wide, 1, 1), 1, rtol=1e-5)


def test_layers_are_plain_ones_with_another_kernel():
    options = {"axis": (-2, -1), "dtype": jnp.bfloat16}
    for kind, plain, sizes, shape in (
        (SigmaLinear, nnx.Linear, (6, 4), (3, 6)),
        (SigmaLinearGeneral, nnx.LinearGeneral, ((2, 3), (4, 5)), (7, 2, 3)),
    ):
        more = options if kind is SigmaLinearGeneral else {}
        layer, other = (k(*sizes, **more, rngs=nnx.Rngs(3)) for k in (kind, plain))
        np.testing.assert_array_equal(layer.kernel[...], other.kernel[...])  # the same draws
        layer.gamma[...] = jnp.float32(0.6)
        layer.bias[...] = other.bias[...] = jnp.cos(jnp.arange(other.bias.size)).reshape(
            other.bias.shape
        )
        layer.eval()
        other.kernel[...] = kernel_of(layer)
        x = jnp.asarray(normal(10, shape))
        np.testing.assert_array_equal(layer(x), other(x))


def test_the_vector_moves_in_training_alone():
    layer, x = SigmaLinear(30, 20, rngs=nnx.Rngs(0)), jnp.ones((2, 30))
    start = np.asarray(layer.vector[...])
    layer.eval()
    first = layer(x)
    np.testing.assert_array_equal(layer(x), first)
    np.testing.assert_array_equal(layer.vector[...], start)
    layer.train()
    trained = nnx.jit(lambda layer, x: layer(x))(layer, x)
    moved = np.asarray(layer.vector[...])
    assert (moved != start).any()
    layer.eval()  # what is evaluated is what was trained last
    np.testing.assert_allclose(layer(x), trained, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(layer.vector[...], moved)


def test_a_call_in_training_inside_a_scan_says_so():
    layer = SigmaLinear(3, 3, rngs=nnx.Rngs(0))
    with pytest.raises(flax.errors.TraceContextError):
        jax.lax.scan(lambda x, _: (layer(x), None), jnp.ones((1, 3)), length=2)
    layer.eval()
    jax.lax.scan(lambda x, _: (layer(x), None), jnp.ones((1, 3)), length=2)


def test_wrong_arguments():
    kernel, vector = jnp.ones((4, 3)), jnp.ones(4)
    with pytest.raises(ValueError, match=r"gamma: expected shape \[\] .* got \[3\]"):
        sigma_kernel(kernel, jnp.ones(3), vector)
    with pytest.raises(ValueError, match=r"vector: expected shape \[4\] .* got \[3\]"):
        sigma_kernel(kernel, jnp.ones(()), jnp.ones(3))
    with pytest.raises(ValueError, match="kernel: expected floating point with at least 2 axes"):
        sigma_vector(kernel, inputs=2)
    with pytest.raises(ValueError, match=r"kernel: expected floating point .* got int32"):
        sigma_vector(jnp.ones((4, 3), jnp.int32))
