"""What the tests of the edge rules share: small arrays, gradients, and the empty row."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import attnjax
from tests.conformance import COMPILER, Attend, implementation

B, T, S, N, K, H, D = 2, 7, 5, 4, 2, 3, 6

# Every implementation, so small in its blocks that some are empty and some are whole.
ATTENDS: dict[str, Attend] = {
    "reference": implementation("reference"),
    "blockwise": implementation("blockwise", block_q=3, block_k=2, block_n=1, streams=2),
    "tpu": implementation("tpu", block_q=3, block_k=3),
}


def arrays(T: int = T, S: int = S, dtype: Any = jnp.float32, seed: int = 0) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    shapes = ((B, T, N, H), (B, S, K, H), (B, S, K, D))
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def differentiate(f: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of the primals and weights of the query rows, compiled once.

    It gives f's results, and gradients for cotangents of 1 to 2 times those weights.
    """

    def run(primals: tuple[Any, ...], rows: jax.Array) -> tuple[Any, tuple[Any, ...]]:
        rng = np.random.default_rng(1)
        (out, stats), vjp = jax.vjp(f, *primals)
        pulled_out = jnp.asarray(rng.uniform(1, 2, out.shape) * rows[:, None, None], out.dtype)
        pulled = (jnp.asarray(rng.uniform(1, 2, x.shape) * rows, x.dtype) for x in stats)
        return (out, stats), vjp((pulled_out, type(stats)(*pulled)))

    compiled = jax.jit(run, compiler_options=COMPILER)

    def call(*primals: Any, rows: Any = None) -> tuple[Any, tuple[Any, ...]]:
        length = primals[0].shape[1]
        return compiled(primals, jnp.ones(length) if rows is None else jnp.asarray(rows, float))

    return call


def assert_empty(out: jax.Array, stats: attnjax.AttentionStats, rows: Any) -> None:
    np.testing.assert_array_equal(out[:, rows], 0)
    np.testing.assert_array_equal(stats.logsumexp[:, :, rows], -np.inf)
    np.testing.assert_array_equal(stats.max_logit[:, :, rows], -np.inf)
    for x in (stats.entropy, stats.sink_mass, stats.distance):
        np.testing.assert_array_equal(x[:, :, rows], 0)
