"""What the tests of JAX's transformations share: one call with everything in it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import attnjax
from tests.conformance import COMPILER, Attend, implementation

B, T, S, N, K, H, D = 2, 7, 5, 4, 2, 3, 6
CLOSE = {"rtol": 2e-5, "atol": 5e-6}

reference = implementation("reference")
blockwise = implementation("blockwise", block_q=3, block_k=2, block_n=1, streams=2)


def arguments(seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    shapes = {
        "q": (B, T, N, H),
        "k": (B, S, K, H),
        "v": (B, S, K, D),
        "sinks": (N,),
        "table": (N, 7),
        "cap": (),
    }
    drawn = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    drawn["cap"] = np.asarray(1.5 + abs(drawn["cap"]))
    return {name: jnp.asarray(x, jnp.float32) for name, x in drawn.items()}


def call(attend: Attend, x: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
    """Calls with a mask of all kinds of blocks; returns what is differentiable."""
    out, stats = attend(
        x["q"],
        x["k"],
        x["v"],
        mask=attnjax.Causal(1) | attnjax.Prefix(x.get("length", 2)),
        sinks=x["sinks"],
        score_mod=(
            attnjax.relative_bias(x["table"]),
            attnjax.soft_cap(x["cap"]),
            lambda s, b, h, q, k: s * jnp.cos(x["cap"] * (q - k)),
        ),
        dropout=attnjax.Dropout(0.2, x.get("key", jax.random.key(0))),
    )
    return out, stats.logsumexp, stats.entropy


def loss(attend: Attend, x: dict[str, jax.Array]) -> jax.Array:
    out, logsumexp, entropy = call(attend, x)
    return jnp.sum(jnp.sin(out)) + jnp.sum(logsumexp**2) + jnp.sum(entropy**3)


def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(f, compiler_options=COMPILER)


def assert_same(transform: Callable[[Attend], Callable[..., Any]], *primals: Any) -> None:
    """Checks that a transformation of blockwise gives what it gives of the reference."""
    found = compiled(transform(blockwise))(*primals)
    want = compiled(transform(reference))(*primals)
    for path, x in jax.tree_util.tree_leaves_with_path(want):
        assert np.isfinite(x).all(), path
    assert_trees_close(found, want)


def assert_trees_close(found: Any, want: Any, tolerance: float = 2e-5) -> None:
    """Compares arrays relative to each entry and to the array's largest."""

    def compare(x: Any, y: Any) -> None:
        atol = tolerance * max(0.1, float(np.abs(y).max()))
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=atol)

    jax.tree.map(compare, found, want)
