"""Documents on the TPU kernels, with boundaries anywhere: values, statistics and gradients."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from attnjax.ops.softmax import tpu
from attnjax.validate import make_problem
from tests.transforming import assert_trees_close, compiled

T, S, BLOCK = 30, 30, 4
# Boundaries inside blocks and between them; documents of several blocks, and several in a block.
LENGTHS = ((1, 13, 2, 9, 5), (30, 0, 0, 0, 0))
IDS = np.stack([np.repeat(np.arange(3, 8, dtype=np.int32), n) for n in LENGTHS])
MASKS: dict[str, Callable[[Any], attnjax.Mask]] = {
    "causal": lambda ids: attnjax.Causal() & attnjax.Segments(ids),
    "one batch element, window": lambda ids: attnjax.Segments(ids[0]) & attnjax.Window(9, 2),
    "function of ids": lambda ids: (
        attnjax.Causal()
        & attnjax.Segments(ids)
        & attnjax.Where(lambda b, h, q, k, x: (q == k) | ((x + k) % 3 > 0), per_key=ids)
    ),
}
# Compiling takes seconds; with ids that are traced, with statistics.
QUICK = {
    ("causal", False, False),
    ("causal", True, True),
    ("one batch element, window", True, False),
}
CASES = [
    pytest.param(*case, marks=[pytest.mark.slow] * (case not in QUICK))
    for case in itertools.product(MASKS, (False, True), (False, True))
]


def kernels(q: Any, k: Any, v: Any, *, mask: attnjax.Mask, stats: bool) -> Any:
    unset = dict.fromkeys(("score_mod", "scale", "sinks", "dropout", "precision"), None)
    problem = make_problem(q, k, v, mask=mask, stats=stats, **unset)
    with attnjax.emulate("tpu"):
        return tpu.attend(problem, block_q=BLOCK, block_k=BLOCK)


def reference(q: Any, k: Any, v: Any, *, mask: attnjax.Mask, stats: bool) -> Any:
    found = attnjax.attention(q, k, v, mask=mask, stats=stats, implementation="reference")
    return found if stats else (found, None)


@pytest.mark.first(1)
@pytest.mark.parametrize(("name", "traced", "stats"), CASES)
def test_documents_are_kept_apart(name: str, traced: bool, stats: bool) -> None:
    rng = np.random.default_rng(0)
    shapes = {"q": (2, T, 4, 3), "k": (2, S, 2, 3), "v": (2, S, 2, 5)}
    arrays = {n: jnp.asarray(rng.normal(size=shape), jnp.float32) for n, shape in shapes.items()}

    def gradients(attend: Callable[..., Any], x: dict[str, Any], ids: Any) -> Any:
        def loss(x: dict[str, Any]) -> Any:
            out, found = attend(**x, mask=MASKS[name](ids), stats=stats)
            some = (out,) if found is None else (out, found.entropy, found.logsumexp)
            return sum(jnp.sum(jnp.sin(y)) for y in some), (out, found)

        return jax.value_and_grad(loss, has_aux=True)(x)

    run = functools.partial(gradients, kernels)
    if traced:
        found = compiled(run)(arrays, jnp.asarray(IDS))
    else:
        found = compiled(lambda x: run(x, IDS))(arrays)
    want = compiled(functools.partial(gradients, reference))(arrays, jnp.asarray(IDS))
    assert_trees_close(found, want)
