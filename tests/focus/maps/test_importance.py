"""Importance of heads, held to what is done to one head, by hand, in the projection's kernel."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax.focus import maps
from attnjax.nn import Encoder, MultiHeadAttention, TransformerConfig

F, N, L, BATCH = 12, 3, 2, 4


def encoder(*, scanned: bool) -> nnx.Module:
    config = TransformerConfig(features=F, num_heads=N, num_layers=L, hidden=8, scan_layers=scanned)
    model = Encoder(config, rngs=nnx.Rngs(0))
    model.eval()
    return model


def batch() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(BATCH, 5, F)).astype(np.float32) for _ in range(2))
    return jnp.asarray(x), jnp.asarray(y)


def loss(model: nnx.Module, example: tuple[jax.Array, jax.Array]) -> jax.Array:
    x, y = example
    return jnp.mean((model(x) - y) ** 2)


def kernels(model: nnx.Module, *, scanned: bool) -> dict[str, tuple[Any, Any]]:
    """The kernel that holds each layer's heads, and the layer's index in it."""
    layers = model.stack.layers
    return {
        f"stack.layers.{layer}.attention": (
            (layers if scanned else layers[layer]).attention.out.kernel,
            layer if scanned else ...,
        )
        for layer in range(L)
    }


@pytest.mark.first(1)
@pytest.mark.parametrize("scanned", [False, True])
def test_importance_by_gradient(scanned: bool) -> None:
    model, examples = encoder(scanned=scanned), batch()
    found = maps.gradient_importance(model, loss, examples)
    total = {path: np.zeros(N) for path in kernels(model, scanned=scanned)}
    slope = nnx.jit(nnx.grad(loss))
    for b in range(BATCH):
        slopes = slope(model, jax.tree.map(lambda x, b=b: x[b : b + 1], examples))
        by_path = kernels(model, scanned=scanned)
        for path, (by, at) in kernels(slopes, scanned=scanned).items():
            kernel, by_kernel = (np.asarray(x[...], np.float64)[at] for x in (by_path[path][0], by))
            total[path] += abs((kernel * by_kernel).sum((-1, -2))) / BATCH
    assert set(found) == set(total)
    for path, want in total.items():
        np.testing.assert_allclose(found[path], want, rtol=1e-4, atol=1e-6)


@pytest.mark.first(1)
@pytest.mark.parametrize("scanned", [True, False])
def test_importance_by_ablation(scanned: bool) -> None:
    model, examples = encoder(scanned=scanned), batch()
    found = maps.ablation_importance(model, loss, examples)
    compute = nnx.jit(loss)
    whole = compute(model, examples)
    for path, (kernel, at) in kernels(model, scanned=scanned).items():
        before, growth = kernel[...], []
        for head in range(N):
            where = (at, head) if scanned else head
            kernel[...] = before.at[where].set(0)
            growth.append(compute(model, examples) - whole)
        kernel[...] = before
        np.testing.assert_allclose(found[path], growth, rtol=1e-4, atol=1e-6)
        assert np.abs(found[path]).max() > 1e-4
    assert len(found) == L


def test_wrong_arguments() -> None:
    model, (x, y) = MultiHeadAttention(F, num_heads=N, rngs=nnx.Rngs(0)), batch()
    with pytest.raises(ValueError, match="found none in Linear"):
        maps.gradient_importance(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), loss, (x, y))
    with pytest.raises(ValueError, match="found none in Linear"):
        maps.ablation_importance(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), loss, (x, y))
    with pytest.raises(ValueError, match="same number of examples"):
        maps.gradient_importance(model, loss, (x, y[:2]))
    with pytest.raises(ValueError, match="same number of examples"):
        maps.gradient_importance(model, loss, (x[:0], y[:0]))
    with pytest.raises(ValueError, match="loss: expected a scalar"):
        maps.gradient_importance(model, lambda model, example: model(example[0]), (x, y))
    with pytest.raises(ValueError, match="loss: expected a scalar"):
        maps.ablation_importance(model, lambda model, example: model(example[0]), (x, y))
