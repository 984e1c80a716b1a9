"""Rollout and flow equal products of dense matrices, in memory that grows with the length only."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

import attnjax
from attnjax.focus import maps
from tests.focus.maps import dense

CAUSAL, PADDED = attnjax.Causal(), attnjax.Causal() & attnjax.Lengths(60, 60)
ALLOWED = {
    CAUSAL: lambda b, h, i, j: i >= j,
    PADDED: lambda b, h, i, j: (i >= j) & (i < 60) & (j < 60),
}
SINKS = np.array([0.5, -2], np.float32)


def drawn(layers: int, T: int, H: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(T)
    q, k = (2 * rng.normal(size=(layers, 2, T, n, H)).astype(np.float32) for n in (2, 1))
    return q, k


def mixing(
    q: np.ndarray, k: np.ndarray, mask: attnjax.Mask, *, share: float, renormalise: bool, sinks: Any
) -> list[np.ndarray]:
    """The matrices `[B, T, T]` of all layers, the first layer first."""
    found = []
    for one_q, one_k in zip(q, k, strict=True):
        scores = dense.products(one_q, one_k) / np.sqrt(q.shape[-1])
        x, _ = dense.softmax(scores, ALLOWED[mask], (), sinks)
        matrix = share * x.mean(1) + (1 - share) * np.eye(q.shape[2])
        sums = matrix.sum(-1, keepdims=True)
        found.append(matrix / np.where(sums, sums, 1) if renormalise else matrix)
    return found


def product(matrices: list[np.ndarray]) -> np.ndarray:
    """`M_L ... M_1`."""
    whole = matrices[0]
    for matrix in matrices[1:]:
        whole = matrix @ whole
    return whole


@pytest.mark.first(1)
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_rollout_is_the_product_of_mixing_matrices(share: float, renormalise: bool) -> None:
    (q, k), how = drawn(3, 67), {"share": share, "renormalise": renormalise}
    start = np.random.default_rng(1).normal(size=(2, 67, 4)).astype(np.float32)
    layers = [maps.weights(*x, mask=PADDED, sinks=SINKS) for x in zip(q, k, strict=True)]
    matrices = mixing(q, k, PADDED, sinks=SINKS, **how)
    whole = product(matrices)
    inputs = maps.flow(layers, start, **how)
    expected = [start.astype(np.float64)]
    for matrix in reversed(matrices):
        expected.append(np.swapaxes(matrix, 1, 2) @ expected[-1])
    np.testing.assert_allclose(inputs, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(maps.rollout(layers, start, **how), inputs[-1])
    outputs = maps.rollout(layers, start, towards="outputs", **how)
    np.testing.assert_allclose(outputs, whole @ start, rtol=1e-5, atol=1e-5)
    rows = maps.rollout_rows(layers, np.array([66, 5]), **how)
    np.testing.assert_allclose(rows, whole[:, [66, 5]], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_gradient_weighted_rollout() -> None:
    (q, k), rng = drawn(2, 67), np.random.default_rng(2)
    v = rng.normal(size=(2, 67, 1, 3)).astype(np.float32)
    d_out = rng.normal(size=(2, 67, 2, 3)).astype(np.float32)
    slopes = np.maximum(np.einsum("btnd,bsd->bnts", d_out, v[:, :, 0].astype(np.float64)), 0)
    layers, matrices = [], []
    for one_q, one_k in zip(q, k, strict=True):
        plain = maps.weights(one_q, one_k, mask=CAUSAL)
        layers.append(maps.by_gradient(plain, v, d_out, positive=True))
        x, _ = dense.softmax(dense.products(one_q, one_k) / np.sqrt(5), ALLOWED[CAUSAL])
        matrix = (x * slopes).mean(1) / 2 + np.eye(67) / 2
        matrices.append(matrix / matrix.sum(-1, keepdims=True))
    rows = maps.rollout_rows(layers, np.array([66, 5]))
    np.testing.assert_allclose(rows, product(matrices)[:, [66, 5]], rtol=1e-5, atol=1e-5)


def rolled(q: jax.Array, k: jax.Array, start: jax.Array) -> jax.Array:
    """Rollout of layers `[L, B, T, N, H]`, scanned."""

    def step(vectors: jax.Array, layer: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return maps.rollout_step(maps.weights(*layer, mask=CAUSAL), vectors), None

    return jax.lax.scan(step, start, (q, k), reverse=True)[0]


def test_rollout_of_twelve_scanned_layers_is_the_dense_product() -> None:
    q, k = drawn(12, 512)
    start = np.random.default_rng(1).normal(size=(2, 512, 3)).astype(np.float32)
    matrices = mixing(q, k, CAUSAL, share=0.5, renormalise=True, sinks=None)
    expected = np.swapaxes(product(matrices), 1, 2) @ start
    np.testing.assert_allclose(jax.jit(rolled)(q, k, start), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_memory_of_a_long_rollout_grows_with_the_length() -> None:
    def temporaries(T: int) -> int:
        x = jax.ShapeDtypeStruct((12, 1, T, 8, 64), jnp.float32)
        start = jax.ShapeDtypeStruct((1, T, 4), jnp.float32)
        compiled = jax.jit(rolled).lower(x, x, start).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    half, whole, twice = (temporaries(T) for T in (8192, 16384, 32768))
    # What grows is O(T), what does not are tiles.
    np.testing.assert_allclose(twice - whole, 2 * (whole - half), rtol=0.1)
    assert whole < 2.1 * half
    # One T-by-T array would be 1 GiB.
    assert whole < 300 << 20


def test_flow_is_a_lower_bound_of_the_maximum_flow() -> None:
    T, (q, k) = 5, drawn(3, 5)
    layers = [maps.weights(*x, mask=CAUSAL) for x in zip(q, k, strict=True)]
    matrices = mixing(q, k, CAUSAL, share=0.5, renormalise=True, sinks=None)
    last = np.broadcast_to(np.eye(T)[:, -1:], (2, T, 1))
    reached = np.asarray(maps.flow(layers, last))[-1, 0, :, 0]
    np.testing.assert_allclose(reached.sum(), 1, rtol=1e-5)
    for j in range(T):
        most = maximum_flow([m[0] for m in reversed(matrices)], T - 1, j)
        assert reached[j] <= most + 1e-6
        assert most <= min(1, matrices[0][0, :, j].sum()) + 1e-6


def maximum_flow(matrices: list[np.ndarray], source: int, sink: int) -> float:
    """The most that gets from one position through layers of edges to another."""
    T, L = len(matrices[0]), len(matrices)
    edge = np.arange(L * T * T).reshape(L, T, T)
    kept = np.zeros(((L - 1) * T, edge.size))
    for layer, node in np.ndindex(L - 1, T):
        kept[layer * T + node, edge[layer, :, node]] = 1
        kept[layer * T + node, edge[layer + 1, node]] = -1
    most = np.array(matrices)
    most[0, np.arange(T) != source] = 0
    gain = np.zeros(edge.size)
    gain[edge[-1, :, sink]] = -1
    solved = linprog(
        gain, A_eq=kept, b_eq=np.zeros(len(kept)), bounds=[(0, c) for c in most.ravel()]
    )
    assert solved.success
    return -solved.fun


@pytest.mark.slow
def test_gradients_stop_and_traced_positions_out_of_range_give_nan() -> None:
    q, k = (x[:, :, :7] for x in drawn(1, 67))
    start = np.ones((2, 7, 1), np.float32)

    def layers(q: jax.Array, k: jax.Array) -> list[maps.Weights]:
        return [maps.weights(q, k, mask=CAUSAL, sinks=SINKS)]

    for towards in ("inputs", "outputs"):
        slopes = jax.grad(
            lambda q, k, start, share, towards=towards: maps.rollout(
                layers(q, k), start, towards=towards, share=share
            ).sum(),
            argnums=(0, 1, 2, 3),
        )(q[0], k[0], start, 0.3)
        for slope in slopes:
            np.testing.assert_array_equal(slope, 0)
    rows = jax.jit(lambda at: maps.rollout_rows(layers(q[0], k[0]), at))(np.array([3, 7, -1]))
    np.testing.assert_array_equal(np.isnan(rows).all((0, 2)), [False, True, True])
    assert np.isfinite(rows[:, 0]).all()
