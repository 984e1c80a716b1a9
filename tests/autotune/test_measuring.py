"""Measuring block sizes on this CPU, and using what was found."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from attnjax import autotune
from attnjax.autotune import measuring
from attnjax.ops import tuning
from attnjax.ops.softmax.dispatch import IMPLEMENTATIONS
from attnjax.ops.tuning import Key, Stage, Table

T = 300


def arrays(dtype: Any = jnp.float32, T: int = T) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(1, T, 2, 4)), dtype) for _ in range(3)]


def shapes(**options: Any) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays(**options)]


def table(options: dict[str, int], implementation: str = "blockwise", **call: Any) -> Table:
    """A table with one entry, for a call of `arrays` under a causal mask."""
    kind = {
        "dtype": "float32",
        "B": 1,
        "T": 512,
        "S": 512,
        "N": 2,
        "groups": 1,
        "H": 4,
        "D": 4,
        "mask": "Causal",
        "score_mods": False,
        "dropout": False,
        "stats": False,
    }
    key = Key(tuning.device(), implementation, tuple(sorted((kind | call).items())))
    return Table({key: options}, "a table")


@pytest.mark.first(1)
@pytest.mark.parametrize("backward", [True, False])
def test_what_is_measured_is_saved_and_used(backward: bool, tmp_path: Any) -> None:
    mask = attnjax.Causal()
    found = autotune.measure(*arrays(), mask=mask, backward=backward, repeats=1)
    assert found.key == next(iter(table({}).entries))
    (times,) = found.times.values()
    assert [*found.times] == ["backward" if backward else "forward"] and not found.failures
    assert {f"block_q={q}, block_k={k}" for q in (256, T) for k in (256, T)} == times.keys()
    assert all(0 < seconds < 60 for seconds in times.values())
    assert measuring.show(found.options) in times
    assert found.seconds <= found.default_seconds
    assert f"{found.seconds * 1e3:.3g} ms" in str(found)

    path = tmp_path / "blocks.json"
    autotune.save(path, found)
    with autotune.use(path):
        plan = attnjax.explain(*shapes(), mask=mask)
    blocks = f"{found.options['block_q']} queries by {found.options['block_k']} keys"
    assert plan.tiles == f"{blocks}: measured on {tuning.device()}, from {path}"


def test_a_table_holds_where_a_call_is_traced() -> None:
    q, k, v = arrays()
    want = attnjax.attention(q, k, v, mask=attnjax.Causal(), implementation="reference")

    def tiles() -> str:
        return attnjax.explain(q, k, v, mask=attnjax.Causal()).tiles

    def loops() -> int:
        out, _ = attnjax.attention(q, k, v, mask=attnjax.Causal(), stats=True)
        np.testing.assert_allclose(out, want, rtol=2e-5, atol=2e-5)
        return attnjax.explain(q, k, v, mask=attnjax.Causal(), stats=True).cost.blocks.total

    assert tiles() == "300 queries by 300 keys: the default"
    with autotune.use(table({"block_q": 32, "block_k": 64})):
        assert tiles().startswith("32 queries by 64 keys: measured")
        assert loops() == 1  # with statistics it is another kind of call
        with autotune.use(None):
            assert tiles() == "300 queries by 300 keys: the default"
        other = attnjax.explain(q, k, v).tiles
        assert other == "300 queries by 300 keys: the default; a table has none for this call"
    with autotune.use(table({"block_q": 32, "block_k": 64}, stats=True)):
        assert loops() == 10 * 5
    assert loops() == 1


def test_an_eager_call_is_traced_anew_for_another_table(monkeypatch: Any) -> None:
    q, k, v = arrays(T=290)
    seen = []
    blockwise = IMPLEMENTATIONS["blockwise"]

    def attend(problem: Any) -> Any:
        seen.append(blockwise.tiling(problem).block_q)
        return blockwise.attend(problem)

    monkeypatch.setitem(IMPLEMENTATIONS, "blockwise", blockwise._replace(attend=attend))
    small = table({"block_q": 48})
    for used in (None, small, None, small):
        with autotune.use(used):
            out = attnjax.attention(q, k, v, mask=attnjax.Causal(), implementation="blockwise")
        want = attnjax.attention(q, k, v, mask=attnjax.Causal(), implementation="reference")
        np.testing.assert_allclose(out, want, rtol=2e-5, atol=2e-5)
    assert seen == [290, 48]


def test_wrong_numbers_and_failing_compilers_are_left_out(monkeypatch: Any) -> None:
    blockwise = IMPLEMENTATIONS["blockwise"]

    def attend(problem: Any, block_q: int, block_k: int) -> Any:
        if block_q == 256:
            raise MemoryError("out of vector memory\nand more")
        out, stats = blockwise.attend(problem, block_q=block_q, block_k=block_k)
        return out * (1.01 if block_k == 256 else 1), stats

    monkeypatch.setitem(IMPLEMENTATIONS, "blockwise", blockwise._replace(attend=attend))
    found = autotune.measure(*shapes(), backward=False, repeats=1)
    assert found.options == {"block_q": T, "block_k": T}
    assert found.failures["block_q=256, block_k=256"] == "MemoryError: out of vector memory"
    assert "Not equal to tolerance" in found.failures[f"block_q={T}, block_k=256"]
    assert "failed, block_q=256, block_k=256: MemoryError" in str(found)

    def broken(problem: Any, block_q: int, block_k: int) -> Any:
        raise MemoryError("out of vector memory")

    monkeypatch.setitem(IMPLEMENTATIONS, "blockwise", blockwise._replace(attend=broken))
    with pytest.raises(ValueError, match=r"no candidate computes this call.*out of vector memory"):
        autotune.measure(*shapes(), backward=False, repeats=1)


@pytest.mark.parametrize(
    ("second", "chosen"), [(0.5, "b"), (0.98, "a"), (1.5, "a")], ids=["faster", "noise", "slower"]
)
def test_the_default_stays_unless_others_win_twice(
    second: float, chosen: str, monkeypatch: Any
) -> None:
    rounds = [{"size=1": 1.0, "size=2": 0.6}, {"size=1": 1.0, "size=2": second}]
    monkeypatch.setattr(measuring._Search, "time", lambda *_: rounds.pop(0))
    stage = Stage(("size",), lambda _: [{"size": 1}, {"size": 2}])
    blockwise = IMPLEMENTATIONS["blockwise"]._replace(stages=(stage,))
    monkeypatch.setitem(IMPLEMENTATIONS, "blockwise", blockwise)
    found = autotune.measure(*shapes(), repeats=1)
    assert found.options == {"size": {"a": 1, "b": 2}[chosen]}
    assert found.seconds == {"a": 1.0, "b": second}[chosen] and found.default_seconds == 1.0


def test_stages_start_from_the_best_of_those_before(monkeypatch: Any) -> None:
    asked = []

    def time(self: Any, candidates: list[dict[str, int]], backward: bool) -> dict[str, float]:
        asked.append((candidates, backward))
        return {measuring.show(c): 1 / sum(c.values()) for c in candidates}

    monkeypatch.setattr(measuring._Search, "time", time)
    with attnjax.emulate("tpu"):
        found = autotune.measure(*shapes(T=2048), implementation="tpu", repeats=1)
        forward = autotune.measure(*shapes(T=2048), implementation="tpu", repeats=1, backward=False)
    largest = {"block_q": 1024, "block_k": 1024}
    back = {"block_q_backward": 1024, "block_k_backward": 1024}
    assert found.options == largest | back and forward.options == largest
    assert found.key.device == "tpu, emulated"
    (first, one), (second, two), (last, three), *_ = asked
    assert (one, two, three) == (False, True, True)
    assert all(c.keys() == largest.keys() for c in first)
    assert all(c | largest == c for c in second) and len(second) == 9
    assert last[1] == largest | back and last[0].keys() == last[1].keys()
    assert last[0] | largest == second[0] | largest  # the defaults, not what came out of a stage


def test_a_table_serves_the_tpu_kernel() -> None:
    q, k, v = arrays()
    blocks = {"block_q": 128, "block_k": 256, "block_q_backward": 256, "block_k_backward": 128}
    with attnjax.emulate("tpu"):
        used = table(blocks, "tpu")
        with autotune.use(used):
            plan = attnjax.explain(q, k, v, mask=attnjax.Causal())
            out = attnjax.attention(q, k, v, mask=attnjax.Causal())
    assert plan.implementation == "tpu"
    assert plan.tiles == "128 queries by 256 keys: measured on tpu, emulated, from a table"
    want = attnjax.attention(q, k, v, mask=attnjax.Causal(), implementation="reference")
    np.testing.assert_allclose(out, want, rtol=2e-5, atol=2e-5)


SHORT = [jnp.ones((1, 4, 2, 4))] * 3
BAD: list[tuple[Any, str]] = [
    (lambda: autotune.measure(*SHORT, masks=None), "arguments of attnjax.attention, got masks"),
    (lambda: autotune.measure(*SHORT, repeats=0), "repeats: expected a positive integer, got 0"),
    (lambda: autotune.measure(*SHORT, implementation="fast"), "implementation: expected None or"),
    (
        lambda: autotune.measure(*SHORT, implementation="reference", repeats=1),
        "reference has no options to measure; expected one of tpu, blockwise",
    ),
    (lambda: autotune.measure(*(x[:, :0] for x in SHORT)), "expected no empty axis"),
    (
        lambda: autotune.measure(*SHORT, mask=jax.ShapeDtypeStruct((4, 4), jnp.bool_)),
        r"expected the values of arrays of bool.*got shape \(4, 4\) alone",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[m[:30] for _, m in BAD])
def test_errors_say_what_was_expected(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
