"""What every implementation of the attention call must pass.

`IMPLEMENTATIONS` lists what is checked: a new implementation is added to it, with the options that
make it run through several blocks at the small sizes of these tests, and runs every drawn case.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import attnjax
from attnjax.dropout import keep
from attnjax.ops.softmax.dispatch import IMPLEMENTATIONS as REGISTERED
from attnjax.typing import Index
from attnjax.validate import make_problem
from tests import oracle
from tests.drawing import SIZES, Draw, MaskCase, Sizes, masks
from tests.drawing_scores import ScoreCase, score_mods

Attend = Callable[..., tuple[jax.Array, attnjax.AttentionStats]]

TOLERANCE = {jnp.float32: 2e-5, jnp.bfloat16: 2e-2}

# Compiling takes most of the time of these tests, and small cases need no fast code.
COMPILER = {"xla_backend_optimization_level": 0}

# The options with which each implementation is checked, block sizes above all.
IMPLEMENTATIONS: dict[str, tuple[dict[str, int], ...]] = {
    "blockwise": (
        {"block_q": 4, "block_k": 3},
        {"block_q": 4, "block_k": 5, "block_n": 1, "streams": 2},
        {"block_q": 5, "block_k": 8},
        {"block_q": 512, "block_k": 512},
    ),
    "tpu": (
        {"block_q": 4, "block_k": 4},
        {"block_q": 4, "block_k": 8, "block_q_backward": 6, "block_k_backward": 3},
        {"block_q": 8, "block_k": 4, "block_q_backward": 3, "block_k_backward": 6},
        {"block_q": 128, "block_k": 128},
    ),
}

# Those whose kernels run in an interpreter where their device is not at hand.
KERNELS = {"tpu": "tpu"}


class Case(NamedTuple):
    """One call: float64 arrays by name, and everything that is not differentiated."""

    size: Sizes
    mask: MaskCase
    scores: tuple[ScoreCase, ...]
    arrays: dict[str, np.ndarray]
    dropout: attnjax.Dropout | None
    traced: bool
    seed: int

    def __repr__(self) -> str:
        mods = [score.name for score in self.scores]
        others = sorted(name for name in self.arrays if "." not in name)
        return (
            f"Case({self.size}, {self.mask.mask!r}, score_mods={mods}, arrays={others}, "
            f"dropout={self.dropout is not None}, traced={self.traced}, seed={self.seed})"
        )


@st.composite
def cases(draw: Draw, sizes: st.SearchStrategy[Sizes] = SIZES, depth: int = 3) -> Case:
    """Draws a call over all masks, score_mods, sinks, dropout and scales."""
    size = draw(sizes)
    mask = draw(masks(size, depth))
    scores = draw(score_mods(size))
    seed = draw(st.integers(0, 2**31 - 1))
    rng = np.random.default_rng(seed)
    arrays = {
        "q": rng.normal(size=(size.B, size.T, size.N, size.H)),
        "k": rng.normal(size=(size.B, size.S, size.K, size.H)),
        "v": rng.normal(size=(size.B, size.S, size.K, size.D)),
    }
    if draw(st.booleans()):
        arrays["sinks"] = rng.normal(size=size.N)
    if draw(st.booleans()):
        arrays["scale"] = np.asarray(rng.uniform(0.3, 1.2))
    for n, score in enumerate(scores):
        arrays |= {f"{n}.{name}": array for name, array in score.arrays.items()}
    dropout = None
    if draw(st.booleans()):
        rate = draw(st.sampled_from([0.1, 0.6]))
        shared = draw(st.sampled_from(["", "BN", "T"]))
        dropout = attnjax.Dropout(rate, jax.random.key(seed), shared)
    return Case(size, mask, scores, arrays, dropout, draw(st.booleans()), seed)


def implementation(name: str, **options: int) -> Attend:
    """Returns a call of one implementation, with options that the public call does not have."""
    attend = _implementation(name, **options)
    if KERNELS.get(name, jax.default_backend()) == jax.default_backend():
        return attend

    def emulated(*arrays: jax.Array, **arguments: Any) -> tuple[jax.Array, attnjax.AttentionStats]:
        with attnjax.emulate(KERNELS[name]):
            return attend(*arrays, **arguments)

    return emulated


def _implementation(name: str, **options: int) -> Attend:
    if not options:
        return functools.partial(attnjax.attention, implementation=name, stats=True)

    def attend(
        q: jax.Array, k: jax.Array, v: jax.Array, **arguments: Any
    ) -> tuple[jax.Array, attnjax.AttentionStats]:
        unset = dict.fromkeys(("mask", "score_mod", "scale", "sinks", "dropout", "precision"), None)
        problem = make_problem(q, k, v, **(unset | arguments), stats=True)
        return REGISTERED[name].attend(problem, **options)

    return attend


def call(
    attend: Attend,
    case: Case,
    arrays: dict[str, Any],
    mask: attnjax.Mask,
    dropout: attnjax.Dropout | None,
) -> tuple[jax.Array, ...]:
    """Calls with the case's arguments; returns the output and the five statistics."""
    mods = tuple(
        score.build({name: arrays[f"{n}.{name}"] for name in score.arrays})
        for n, score in enumerate(case.scores)
    )
    out, stats = attend(
        arrays["q"],
        arrays["k"],
        arrays["v"],
        mask=mask,
        score_mod=mods,
        scale=arrays.get("scale"),
        sinks=arrays.get("sinks"),
        dropout=dropout,
    )
    return (out, *stats)


def cotangents(case: Case, dtype: Any) -> tuple[jax.Array, ...]:
    """Draws cotangents of the output and of all statistics, in rows with nothing to see too."""
    rng = np.random.default_rng(case.seed + 1)
    B, T, _, N, _, _, D = case.size
    shapes = ((B, T, N, D), *((B, N, T),) * 5)
    out, *stats = (rng.normal(size=shape) for shape in shapes)
    return (jnp.asarray(out, dtype), *(jnp.asarray(x, jnp.float32) for x in stats))


def evaluate(
    attend: Attend, case: Case, dtype: Any = jnp.float32, rounded_to: Any = None
) -> dict[str, np.ndarray]:
    """Computes the output, the statistics and the gradients of every float array of a case.

    Args:
      attend: the implementation.
      case: the call.
      dtype: of all arrays.
      rounded_to: a narrower dtype that inputs are rounded to first.

    Returns:
      Arrays by name; the gradient of `x` is called `d x`.
    """
    narrow = dtype if rounded_to is None else rounded_to
    arrays = {name: jnp.asarray(x, narrow).astype(dtype) for name, x in case.arrays.items()}
    pulled = cotangents(case, narrow)
    pulled = (pulled[0].astype(dtype), *pulled[1:])

    def run(
        arrays: dict[str, Any], mask: attnjax.Mask, dropout: attnjax.Dropout | None
    ) -> tuple[tuple[jax.Array, ...], dict[str, jax.Array]]:
        results, pull = jax.vjp(lambda x: call(attend, case, x, mask, dropout), arrays)
        return results, pull(pulled)[0]

    results, gradients = _compiled(run, case)(arrays)
    return _named(results) | {
        f"d {name}": np.asarray(x.astype(jnp.float32)) for name, x in gradients.items()
    }


def values(attend: Attend, case: Case) -> dict[str, np.ndarray]:
    """Computes the output and the statistics of a case in float32."""
    arrays = {name: jnp.asarray(x, jnp.float32) for name, x in case.arrays.items()}
    return _named(_compiled(functools.partial(call, attend, case), case)(arrays))


def _compiled(run: Callable[..., Any], case: Case) -> Callable[..., Any]:
    mask, dropout = case.mask.mask, case.dropout
    if case.traced:
        compiled = jax.jit(run, compiler_options=COMPILER)
        return lambda arrays: compiled(arrays, mask, dropout)
    return jax.jit(lambda arrays: run(arrays, mask, dropout), compiler_options=COMPILER)


def _named(results: tuple[jax.Array, ...]) -> dict[str, np.ndarray]:
    names = ("out", *attnjax.AttentionStats._fields)
    return {n: np.asarray(x.astype(jnp.float32)) for n, x in zip(names, results, strict=True)}


def assert_close(
    actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float, size: Sizes
) -> None:
    """Compares arrays by name, relative to each entry and to the array's magnitude."""
    assert sorted(actual) == sorted(expected)
    scores = size.B * size.N * size.T * size.S
    for name, want in expected.items():
        finite = np.abs(want[np.isfinite(want)])
        # Inputs and cotangents are of order 1, so a small result is what is left over from larger
        # terms; an entry of a gradient sums many, and rounding grows with the root of their number.
        terms = scores / max(want.size, 1) if name.startswith("d ") else 1
        magnitude = max(finite.max(initial=0.0), 0.1 * max(terms, 1) ** 0.5)
        np.testing.assert_allclose(
            actual[name], want, rtol=tolerance, atol=tolerance * magnitude, err_msg=name
        )


def check(attend: Attend, case: Case, dtype: Any) -> None:
    """Holds an implementation against the reference in float32 with inputs upcast."""
    expected = evaluate(implementation("reference"), case, jnp.float32, rounded_to=dtype)
    assert_close(evaluate(attend, case, dtype), expected, TOLERANCE[dtype], case.size)


def loops(
    case: Case, arrays: dict[str, np.ndarray], pattern: np.ndarray | None = None
) -> oracle.Expected:
    """Computes a case by loops in float64, with other values of its arrays."""
    pattern = dropout_pattern(case) if pattern is None else pattern
    mods = [
        score.plain({name: arrays[f"{n}.{name}"] for name in score.arrays})
        for n, score in enumerate(case.scores)
    ]
    return oracle.attention(
        arrays["q"],
        arrays["k"],
        arrays["v"],
        allowed=case.mask.allowed,
        score_mods=mods,
        scale=arrays.get("scale"),
        sinks=arrays.get("sinks"),
        rate=case.dropout.rate if case.dropout is not None else 0.0,
        kept=lambda *at: bool(pattern[at]),
    )


def judge(case: Case) -> dict[str, np.ndarray]:
    """Computes what `evaluate` computes by loops in float64 and finite differences."""
    pulled = [np.asarray(x, np.float64) for x in cotangents(case, jnp.float32)]
    pattern = dropout_pattern(case)

    def loss(arrays: dict[str, np.ndarray]) -> float:
        found = loops(case, arrays, pattern)
        logsumexp = np.where(np.isfinite(found.logsumexp), found.logsumexp, 0)
        return float(
            np.sum(found.out * pulled[0])
            + np.sum(logsumexp * pulled[1])
            + np.sum(found.entropy * pulled[3])
        )

    gradients = oracle.gradient(loss, case.arrays)
    values = loops(case, case.arrays)._asdict()
    return values | {f"d {name}": x for name, x in gradients.items()}


def dropout_pattern(case: Case) -> np.ndarray:
    """Returns which weights of a case stay, bool `[B, N, T, S]`."""
    shape = (case.size.B, case.size.N, case.size.T, case.size.S)
    if case.dropout is None:
        return np.ones(shape, bool)
    index = Index(*np.meshgrid(*(np.arange(n) for n in shape), indexing="ij", sparse=True))
    kept = keep(case.dropout.words(), case.dropout.rate, index, case.dropout.shared)
    return np.broadcast_to(np.asarray(kept), shape)
