"""Wrong arguments are refused with what was expected and what came."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest

from attnjax.focus import maps

Q, K, V = jnp.ones((2, 7, 4, 3)), jnp.ones((2, 5, 2, 3)), jnp.ones((2, 5, 2, 6))
ROWS, D_OUT = jnp.zeros((2, 4, 7)), jnp.ones((2, 7, 4, 6))
FOUND = maps.weights(Q, K, logsumexp=ROWS)
OWN = maps.weights(Q, Q, logsumexp=ROWS)
START = jnp.ones((2, 7, 1))

WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "shape of the logsumexp": (
        lambda: maps.weights(Q, K, logsumexp=ROWS[:, :2]),
        r"logsumexp: expected shape \[B, N, T\] = \(2, 4, 7\), got \(2, 2, 7\)",
    ),
    "integer logsumexp": (
        lambda: maps.weights(Q, K, logsumexp=ROWS.astype(int)),
        "logsumexp: expected a float array",
    ),
    "no keys": (lambda: maps.weights(Q, K[:, :0]), "got none along S"),
    "no queries": (
        lambda: maps.additive_weights(Q[:, :0], K, jnp.ones((4, 3))),
        "got none along T",
    ),
    "values of other keys": (
        lambda: maps.by_values(FOUND, V[:, :3]),
        r"v: expected shape \[B, S, K, D\] with \(2, 5, 2\), got \(2, 3, 2, 6\)",
    ),
    "projection of other heads": (
        lambda: maps.by_values(FOUND, V, jnp.ones((2, 6, 8))),
        r"out: expected a kernel \[N=4, D=6, O\], got shape \(2, 6, 8\)",
    ),
    "gradient of another shape": (
        lambda: maps.by_gradient(FOUND, V, D_OUT[..., :5]),
        r"d_out: expected shape \(2, 7, 4, 6\)",
    ),
    "gradients twice": (
        lambda: maps.by_gradient(maps.by_gradient(FOUND, V, D_OUT), V, D_OUT),
        "found: expected weights without gradients",
    ),
    "no readings": (lambda: maps.look(FOUND), "readings: expected at least one"),
    "not a reading": (lambda: maps.look(FOUND, 3), "readings: expected .*, got int"),
    "too many rows": (lambda: maps.pooled(FOUND, 8, 5), "integer from 1 to T=7, got 8"),
    "too many columns": (lambda: maps.pooled(FOUND, 7, 6), "integer from 1 to S=5, got 6"),
    "no column": (lambda: maps.pooled(FOUND, 7, 0), "integer from 1 to S=5, got 0"),
    "too many edges": (lambda: maps.top_edges(FOUND, 6), "integer from 1 to S=5, got 6"),
    "half an edge": (lambda: maps.top_edges(FOUND, 0.5), "integer from 1 to S=5, got 0.5"),
    "start for keys": (
        lambda: maps.look(FOUND, maps.Received(V[..., 0])),
        r"Received.start: expected shape \[B=2, T=7, d\], got \(2, 5, 2\)",
    ),
    "vectors for queries": (
        lambda: maps.look(FOUND, maps.Gathered(START)),
        r"Gathered.vectors: expected shape \[B=2, S=5, d\]",
    ),
    "row out of range": (
        lambda: maps.rows(FOUND, [0, 7]),
        "queries: expected positions from 0 to T - 1 = 6, got 0 to 7",
    ),
    "negative column": (lambda: maps.columns(FOUND, [-1]), "keys: expected .* got -1 to -1"),
    "a single row": (lambda: maps.rows(FOUND, 3), "integers in one dimension"),
    "broken rows": (lambda: maps.rows(FOUND, [0.5]), "integers in one dimension"),
    "rollout across": (
        lambda: maps.rollout_step(FOUND, START),
        "expected self-attention, T = S, got T=7 and S=5",
    ),
    "rollout of no layers": (lambda: maps.rollout([], START), "layers: expected a sequence"),
    "rollout of one layer": (lambda: maps.rollout(OWN, START), "layers: expected a sequence"),
    "rollout to nowhere": (
        lambda: maps.rollout([OWN], START, towards="input"),
        "towards: expected 'inputs' or 'outputs', got 'input'",
    ),
    "share above 1": (
        lambda: maps.rollout([OWN], START, share=1.5),
        "share: expected a number from 0 to 1",
    ),
    "share that is NaN": (
        lambda: maps.rollout([OWN], START, share=float("nan")),
        "share: expected a number from 0 to 1",
    ),
    "share of each sequence": (
        lambda: maps.rollout([OWN], START, share=jnp.ones((2, 1, 1))),
        "share: expected a number from 0 to 1",
    ),
    "start of one sequence": (
        lambda: maps.rollout([OWN], START[:1]),
        r"start: expected shape \[B=2, T=7, d\], got \(1, 7, 1\)",
    ),
    "position out of range": (
        lambda: maps.rollout_rows([OWN], [7]),
        "positions: expected positions from 0 to T - 1 = 6",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()
