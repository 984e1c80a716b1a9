"""All maps of some weights, held to those of a dense array."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.focus import maps
from tests.focus.maps import dense
from tests.focus.maps.cases import B, D, H, N, S, T

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
# Neither length is a multiple, so that last tiles overlap the ones before.
BLOCK = 96
QUERIES, KEYS = np.array([0, 100, T - 1, 100]), np.array([S - 1, 3])


def arrays(K: int) -> dict[str, np.ndarray]:
    """Arrays of a call with K key heads."""
    rng = np.random.default_rng(0)
    shapes = {
        "q": (B, T, N, H),
        "k": (B, S, K, H),
        "v": (B, S, K, D),
        "d_out": (B, T, N, D),
        "out": (N, D, 7),
        "start": (B, T, 3),
        "vectors": (B, S, 2),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def dense_call(
    a: dict[str, np.ndarray], allowed: Any, mods: Any = (), sinks: Any = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, logsumexp, and where the mask lets a query see a key."""
    scores = dense.products(a["q"], a["k"]) / np.sqrt(H)
    x, logsumexp = dense.softmax(scores, allowed, mods, sinks)
    seen = np.broadcast_to(allowed(*dense.indices(scores.shape)), scores.shape)
    return x, logsumexp.astype(np.float32), seen


def check(
    found: maps.Weights, x: np.ndarray, seen: np.ndarray, a: dict[str, np.ndarray], *, every: bool
) -> None:
    """Asserts that maps of `found` are those of the dense `x`, of which `seen` is visible.

    Every map, in one pass, or those whose code differs most: fewer take less time to compile.
    """
    found = dataclasses.replace(found, block=BLOCK)

    @jax.jit
    def run(start: Any, vectors: Any) -> dict[str, Any]:
        readings = {
            "pooled": maps.Pooled(11, 6),
            "of start together": maps.Received(start, together=True),
            "edges": maps.TopEdges(9),
        }
        if every:
            readings |= {
                "summed": maps.Pooled(17, S, mean=False),
                "received": maps.Received(),
                "of start": maps.Received(start),
                "gathered": maps.Gathered(vectors),
                "gathered together": maps.Gathered(vectors, together=True),
            }
        got = dict(zip(readings, maps.look(found, *readings.values()), strict=True))
        return got | {"rows": maps.rows(found, QUERIES), "columns": maps.columns(found, KEYS)}

    got = run(a["start"], a["vectors"])
    # NaN counts as nothing here: what the mask hides must not matter.
    start, vectors = (np.nan_to_num(a[name]).astype(np.float64) for name in ("start", "vectors"))
    of_start = np.einsum("bnts,btd->bnsd", x, start)
    gathered = np.einsum("bnts,bsd->bntd", x, vectors)
    expected = {
        "pooled": dense.pooled(x, 11, 6, mean=True),
        "summed": dense.pooled(x, 17, S, mean=False),
        "received": x.sum(2),
        "of start": of_start,
        "of start together": of_start.mean(1),
        "gathered": gathered,
        "gathered together": gathered.mean(1),
        "rows": x[:, :, QUERIES],
        "columns": x[..., KEYS],
    }
    dense.check_edges(got.pop("edges"), x, seen, TOLERANCE)
    assert len(got) == (len(expected) if every else 4)
    for name, value in got.items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected[name], err_msg=name, **TOLERANCE)
