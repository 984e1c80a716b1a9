"""The TPU kernels in a simulated memory full of NaNs, on two cores, with a detector of races."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

import attnjax
from attnjax.ops.softmax import tpu, tpu_backward, tpu_call
from attnjax.validate import make_problem

B, T, N, H, BLOCK = 1, 14, 2, 8, 8
Arrays = dict[str, jax.Array]


class Shape(NamedTuple):
    """A call: what is differentiated, and the rest of its arguments."""

    arrays: dict[str, tuple[int, ...]]
    options: Callable[[Arrays], dict[str, Any]] = lambda x: {"mask": attnjax.Causal()}
    K: int = 2
    fused: bool = True


IDS = jnp.asarray(np.repeat([0, 1, 2], [7, 3, 4])[None], jnp.int32)
KEY = jax.random.key(0)
SHAPES = {
    "plain": Shape({}),
    "statistics": Shape({}, lambda x: {"mask": attnjax.Causal(), "stats": True}),
    "backward in two kernels": Shape({}, fused=False),
    "grouped heads, sinks and segments": Shape(
        {"sinks": (N,)}, lambda x: {"mask": attnjax.Segments(IDS), "sinks": x["sinks"]}, K=1
    ),
    "relative bias": Shape(
        {"table": (N, 7)}, lambda x: {"score_mod": attnjax.relative_bias(x["table"])}
    ),
    "dense bias": Shape(
        {"bias": (1, N, T, T)},
        lambda x: {"mask": attnjax.Causal(), "score_mod": attnjax.bias(x["bias"])},
    ),
    "numbers by query and key, in two kernels": Shape(
        {"rows": (T,), "columns": (T,)},
        lambda x: {"score_mod": lambda s, b, h, q, k: s * x["rows"][q] + x["columns"][k]},
        fused=False,
    ),
    "dropout": Shape({}, lambda x: {"dropout": attnjax.Dropout(0.3, KEY)}),
}

# The simulator is slow; the others are run by `make test-all`.
QUICK = {"statistics"}


def gradients(shape: Shape, *, interpret: bool) -> Callable[[Arrays], Any]:
    def loss(x: Arrays) -> jax.Array:
        unset = dict.fromkeys(("mask", "score_mod", "scale", "sinks", "dropout", "precision"), None)
        options = unset | {"stats": False} | shape.options(x)
        problem = make_problem(x["q"], x["k"], x["v"], **options)
        with attnjax.emulate("tpu", interpret=interpret):
            out, stats = tpu.attend(problem, block_q=BLOCK, block_k=BLOCK)
        total = jnp.sum(jnp.sin(out))
        if stats is not None:
            total += jnp.sum(jnp.sin(stats.entropy)) + jnp.sum(stats.logsumexp)
        return total

    return jax.jit(jax.value_and_grad(loss))


def arrays(shape: Shape) -> Arrays:
    rng = np.random.default_rng(0)
    shapes = {"q": (B, T, N, H), "k": (B, T, shape.K, H), "v": (B, T, shape.K, H)} | shape.arrays
    return {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}


def races(run: Callable[[], Any], capture: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """Runs kernels in the simulator; returns their results, and what it says of races."""
    params = pltpu.InterpretParams(
        detect_races=True, num_cores_or_threads=2, uninitialized_memory="nan"
    )
    try:
        with pltpu.force_tpu_interpret_mode(params):
            found = jax.block_until_ready(run())
    except Exception as error:  # jax 0.12 raises, in a callback, where 0.10 prints and goes on.
        pltpu.reset_tpu_interpret_mode_state()
        assert "race" in str(error).lower(), error
        return None, str(error)
    said = capture.readouterr().out
    return found, said if "RACE DETECTED" in said else ""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in SHAPES]
)
def test_kernels_do_not_race_or_read_what_nobody_wrote(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = SHAPES[name]
    if not shape.fused:
        monkeypatch.setattr(tpu_backward, "_SUMS_BUDGET", 0)
    x = arrays(shape)
    found, said = races(lambda: gradients(shape, interpret=False)(x), capsys)
    assert not said
    want = gradients(shape, interpret=True)(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, want)


def test_the_detector_sees_steps_that_may_not_run_side_by_side(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps of one row of blocks write one output block: on two cores at once they race."""

    def parallel(self: Any, *semantics: str, **_: Any) -> Any:
        return pltpu.CompilerParams(dimension_semantics=("parallel",) * len(semantics))

    monkeypatch.setattr(tpu_call.Call, "compiler_params", parallel)
    shape = SHAPES["plain"]
    _, said = races(lambda: gradients(shape, interpret=False)(arrays(shape)), capsys)
    assert "race" in said.lower()
