"""The TPU kernel of decoding, in the interpreter, against the full pass; and compiled for chips."""

import functools
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

import attnjax
from attnjax.ops.decode import dispatch, tpu
from attnjax.platform import Platform
from tests.ops.decode import compiled
from tests.ops.decode.cases import (
    CAPACITY,
    LENGTHS,
    OPTIONS,
    B,
    K,
    N,
    arrays,
    assert_equal,
    full_pass,
    last,
    spoil_beyond,
)


@pytest.fixture(params=["by head", "turned"])
def form(request: Any, monkeypatch: Any) -> str:
    """Either form in which the kernel reads a cache, as the name of an implementation."""
    attend = functools.partial(tpu.attend, turned=request.param == "turned")
    kernel = dispatch.Implementation(attend, tpu.check)
    monkeypatch.setitem(dispatch.IMPLEMENTATIONS, request.param, kernel)
    return request.param


def run(q: jax.Array, k: jax.Array, v: jax.Array, form: str = "tpu", **options: Any) -> Any:
    options = {"length": LENGTHS, "stats": True, "implementation": form} | options
    with attnjax.emulate("tpu"):
        return jax.jit(lambda q, k, v: attnjax.decode(q, k, v, **options))(q, k, v)


@pytest.mark.first(8)
@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_equals_the_full_pass(name: str, form: str) -> None:
    q, k, v = arrays()
    got = run(last(q, 2, 1), spoil_beyond(k), v, form, **OPTIONS[name])
    assert_equal(got, full_pass(q, k, v, 2, **OPTIONS[name]))


def long(S: int, dtype: Any = jnp.float32, heads: tuple[int, int] = (N, K)) -> list[jax.Array]:
    rng = np.random.default_rng(S)
    sizes = ((3, heads[0]), (S, heads[1]), (S, heads[1]))
    return [jnp.asarray(rng.normal(size=(2, *size, 7)), dtype) for size in sizes]


@pytest.mark.first(2)
# 700 slots are not whole blocks.
@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize(("S", "splits", "block_k"), [(512, 1, 128), (700, 3, 128)])
def test_blocks_and_splits_are_merged(
    S: int, splits: int, block_k: int, turned: bool, monkeypatch: Any
) -> None:
    q, k, v = long(S)
    length = np.array([S - 5, 130])
    mask = (attnjax.Causal() & attnjax.Window(200, 0)) | attnjax.Prefix(3)
    options: dict[str, Any] = {"length": length, "mask": mask, "sinks": jnp.linspace(-1, 1, N)}
    want = attnjax.decode(q, k, v, stats=True, implementation="xla", **options)
    attend = functools.partial(tpu.attend, block_k=block_k, splits=splits, turned=turned)
    name = f"{splits} splits of {block_k}, {turned}"
    monkeypatch.setitem(dispatch.IMPLEMENTATIONS, name, dispatch.Implementation(attend))
    hidden = np.arange(S) >= length[:, None]
    spoilt = jnp.where(hidden[..., None, None], jnp.nan, k)
    got = run(q, spoilt, v, name, **options)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)


def visited(problem_of: dict[str, Any], S: int, length: Any) -> tuple[np.ndarray, list]:
    """How many blocks of 128 slots are visited, and which."""
    q, k, v = long(S, heads=(2, 1))
    found = []

    def look(problem: Any) -> tuple[jax.Array, None]:
        blocks = tpu.blocks_of(problem, tpu.flat_of(problem), 128)
        found.append((blocks, tpu.visits_of(problem, blocks)))
        return jnp.zeros((*q.shape[:3], v.shape[3])), None

    with pytest.MonkeyPatch.context() as patch:
        implementation = dispatch.Implementation(look)
        patch.setitem(dispatch.IMPLEMENTATIONS, "look", implementation)
        with jax.disable_jit():
            attnjax.decode(q, k, v, length=length, implementation="look", **problem_of)
    ((_, visits),) = found
    order, total = np.asarray(visits.order), np.asarray(visits.total)
    return total, [sorted(row[:n].tolist()) for row, n in zip(order, total, strict=True)]


def test_blocks_beyond_the_length_and_outside_the_mask_are_not_read() -> None:
    total, blocks = visited({}, 1024, np.array([1024, 129]))
    assert blocks == [list(range(8)), [0, 1]]
    window = attnjax.Causal() & attnjax.Window(100, 0)
    _, blocks = visited({"mask": window | attnjax.Prefix(1)}, 1024, np.array([1024, 500]))
    assert blocks == [[0, 7], [0, 2 + 1]]
    total, _ = visited({"mask": ~attnjax.Full()}, 1024, 700)
    np.testing.assert_array_equal(total, 0)


@pytest.mark.parametrize("splits", [1, 2, 3])
def test_every_visited_block_is_somebodys_and_no_other_is_read(splits: int) -> None:
    blocks = tpu.Blocks(128, 8, 1, False)
    order = np.stack([np.random.default_rng(n).permutation(8) for n in range(9)])
    visits = tpu.Visits(
        jnp.asarray(order), jnp.arange(9), jnp.zeros(9, jnp.int32), jnp.zeros((9, 1), jnp.int32)
    )
    for b in range(9):
        seen = []
        for p in range(splits):
            steps = [blocks.visited(visits, splits, b, p, s) for s in range(-(-8 // splits))]
            work = [int(j) for j, active in steps if active]
            idle = {int(j) for j, active in steps if not active}
            # Idle steps stay at the last block, so that they fetch nothing.
            assert not work or idle <= {work[-1]}
            seen += work
        assert sorted(seen) == sorted(order[b, :b].tolist())


def test_a_ring() -> None:
    q, k, v = arrays()
    slots, T = 11, 3
    mask = attnjax.Causal() & attnjax.Window(slots - T, 0)
    rings = []
    for cache in (k, v):
        ring = np.full((B, slots, *cache.shape[2:]), np.nan, np.float32)
        for b in range(B):
            for p in range(LENGTHS[b]):
                ring[b, p % slots] = cache[b, p]
        rings.append(jnp.asarray(ring))
    table = jnp.asarray(np.random.default_rng(1).normal(size=(N, 17)), jnp.float32)
    options = {"mask": mask, "score_mod": attnjax.relative_bias(table)}
    got = run(last(q, T, 1), *rings, layout=attnjax.Ring(), **options)
    assert_equal(got, full_pass(q, k, v, T, **options))


@pytest.mark.first(1)
@pytest.mark.parametrize("dtype", [None, jnp.int8])
def test_pages_in_any_order(dtype: Any) -> None:
    rng = np.random.default_rng(2)
    length, size, M = np.array([150, 70]), 16, 10
    q, k, v = (jnp.asarray(rng.normal(size=(2, size * M, n, 7)), jnp.float32) for n in (12, 4, 4))
    layout, pages = attnjax.Paged(jnp.asarray(rng.permutation(20).reshape(2, M))), []
    options: dict[str, Any] = {}
    for name, x in (("k", k), ("v", v)):
        if dtype is not None:
            x, scale = attnjax.quantize_kv(x, dtype)
            stored = jnp.zeros((20, size, 4)).at[layout.table].set(scale.reshape(2, M, size, 4))
            options[f"{name}_scale"] = stored
        empty = jnp.zeros((20, size, 4, 7), x.dtype)
        pages.append(empty.at[layout.table].set(x.reshape(2, M, size, 4, 7)))
    options |= {"length": length, "layout": layout, "score_mod": attnjax.alibi(12)}
    got = run(q[:, :2], *pages, **options)
    want = attnjax.decode(q[:, :2], *pages, stats=True, implementation="xla", **options)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)


@pytest.mark.first(1)
def test_eight_bits(form: str) -> None:
    q, k, v = arrays()
    (k8, k_scale), (v8, v_scale) = (attnjax.quantize_kv(x, jnp.float8_e5m2) for x in (k, v))
    options = {"k_scale": k_scale, "v_scale": v_scale}
    got = run(last(q, 2, 1), k8, v8, form, **options)
    want = attnjax.decode(
        last(q, 2, 1), k8, v8, length=LENGTHS, stats=True, implementation="xla", **options
    )
    assert_equal(got, (want[0], *want[1]))


def test_sixteen_bits() -> None:
    q, k, v = arrays(jnp.bfloat16)
    got = run(last(q, 2, 1), k, v)
    assert got[0].dtype == jnp.bfloat16
    assert_equal(got, full_pass(*(x.astype(jnp.float32) for x in (q, k, v)), 2), 2e-2)


def races() -> bool:
    """Whether the simulated TPU found two cores at one place."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    assert interpret_pallas_call.races is not None, "nothing was simulated"
    return interpret_pallas_call.races.races_found


@pytest.mark.first(1)
@pytest.mark.parametrize(
    "layout", ["contiguous", "pages", pytest.param("ring", marks=pytest.mark.slow)]
)
def test_on_a_simulated_tpu_nothing_is_read_before_it_is_written(
    layout: str, monkeypatch: Any
) -> None:
    rng = np.random.default_rng(4)
    S, pages, window = 300, rng.permutation(20), attnjax.Causal() & attnjax.Window(250, 0)
    q, k, v = (
        jnp.asarray(rng.normal(size=(2, *s, 8)), jnp.float32) for s in ((1, 4), (S, 2), (S, 2))
    )
    options: dict[str, Any] = {"length": np.array([290, 3]), "mask": window, "stats": True}
    if layout == "ring":
        options |= {"layout": attnjax.Ring(), "length": np.array([1000, 3])}
    if layout == "pages":
        k, v = (jnp.asarray(rng.normal(size=(20, 32, 2, 8)), jnp.float32) for _ in range(2))
        options |= {"layout": attnjax.Paged(jnp.asarray(pages.reshape(2, 10)))}
    want = attnjax.decode(q, k, v, implementation="xla", **options)
    simulated = pltpu.InterpretParams(
        detect_races=True, num_cores_or_threads=2, uninitialized_memory="nan"
    )
    monkeypatch.setattr(tpu, "platform", lambda: Platform("tpu", simulated, False))
    kernel = dispatch.Implementation(lambda problem: tpu.attend(problem, block_k=128, splits=2))
    monkeypatch.setitem(dispatch.IMPLEMENTATIONS, f"simulated {layout}", kernel)
    got = attnjax.decode(q, k, v, implementation=f"simulated {layout}", **options)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)
    assert not races()


@pytest.mark.first(2)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_nan_reaches_the_rows_that_see_it_and_no_other(value: float, form: str) -> None:
    q, k, v = arrays()
    heads = np.arange(N).reshape(1, N, 1, 1)
    # Of the two heads that read key head 1, one may look at position 7.
    mask = attnjax.Causal() & attnjax.Dense((heads != 3) | (np.arange(CAPACITY) != 7))
    options = {"mask": mask, "score_mod": attnjax.soft_cap(5.0)}
    want = np.asarray(full_pass(q, k, v, 2, **options)[0])
    spoilt = np.zeros((B, 2, N), bool)
    spoilt[0, :, 2] = True
    for bad_k, bad_v in ((k.at[0, 7, 1, 2].set(value), v), (k, v.at[0, 7, 1, 2].set(value))):
        out, stats = run(last(q, 2, 1), bad_k, spoil_beyond(bad_v), form, **options)
        assert np.isnan(np.asarray(out)[spoilt]).all()
        np.testing.assert_allclose(np.asarray(out)[~spoilt], want[~spoilt], rtol=2e-5, atol=2e-5)
        bad_rows = np.moveaxis(spoilt, 1, 2)
        assert all((np.isnan(np.asarray(x)) == bad_rows).all() for x in stats)


def test_gradients_are_those_of_plain_xla() -> None:
    q, k, v = arrays()
    slopes = jnp.linspace(0.1, 1, N)

    def total(implementation: str, given: tuple) -> jax.Array:
        q, k, v, slopes = given
        out, stats = attnjax.decode(
            last(q, 2, 1),
            spoil_beyond(k),
            v,
            length=LENGTHS,
            score_mod=(attnjax.alibi(slopes), lambda s, b, h, i, j: s * slopes[h]),
            stats=True,
            implementation=implementation,
        )
        return jnp.sum(jnp.sin(out)) + jnp.sum(stats.entropy * stats.logsumexp)

    with attnjax.emulate("tpu"):
        got = jax.jit(jax.grad(lambda x: total("tpu", x)))((q, k, v, slopes))
    want = jax.jit(jax.grad(lambda x: total("xla", x)))((q, k, v, slopes))
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


def test_a_traced_length_that_is_wrong_gives_nan() -> None:
    q, k, v = arrays()
    step = jax.jit(
        lambda n: attnjax.decode(q[:, :2], k, v, length=n, stats=True, implementation="tpu")
    )
    for wrong in ([1, 5], [5, CAPACITY + 1], [0, 5]):
        with attnjax.emulate("tpu"):
            out, stats = step(np.array(wrong))
        for x in (out, *stats):
            assert (np.isnan(x).reshape(B, -1).all(-1) == (np.array(wrong) != 5)).all()


def test_examples_may_be_mapped_over() -> None:
    q, k, v = arrays()
    with attnjax.emulate("tpu"):
        got = jax.vmap(lambda q, k, v, n: attnjax.decode(q, k, v, length=n))(
            last(q, 1, 1)[:, None], k[:, None], v[:, None], LENGTHS
        )
    want = attnjax.decode(last(q, 1, 1), k, v, length=LENGTHS, implementation="xla")
    np.testing.assert_allclose(got[:, 0], want, rtol=2e-5, atol=2e-5)


def test_none_takes_the_kernel_on_a_tpu_where_it_can(monkeypatch: Any) -> None:
    q, k, v = arrays()
    with pytest.raises(NotImplementedError, match=r"need a TPU.*on the cpu.*emulate"):
        attnjax.decode(q[:, :1], k, v, length=7, implementation="tpu")
    attnjax.decode(q[:, :1], k, v, length=7)
    called = []

    def attend(problem: Any) -> Any:
        called.append(problem)
        return tpu.attend(problem)

    kernel = dispatch.Implementation(attend, tpu.check)
    monkeypatch.setitem(dispatch.IMPLEMENTATIONS, "tpu", kernel)

    def over_keys(score: jax.Array, *index: jax.Array) -> jax.Array:
        return score + jnp.cumsum(score, -1)

    with attnjax.emulate("tpu"):
        jax.eval_shape(lambda: attnjax.decode(q[:, :1], k, v, length=7))
        assert len(called) == 1
        jax.eval_shape(lambda: attnjax.decode(q[:, :1], k, v, length=7, score_mod=over_keys))
        assert len(called) == 1


Z = jnp.zeros
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"dtype": jnp.float16}, "q is of dtype float16"),
    "eight bits": ({"cache": jnp.float8_e4m3b11fnuz}, "k is of dtype float8_e4m3b11fnuz"),
    "rows": ({"T": 70}, "560 rows .* are more than the 512"),
    "width": ({"H": 264}, "264 wide"),
    "pages": ({"page": 3}, "pages of 3 slots and 8 key heads"),
    "scalar memory": ({"page": 4, "S": 1 << 20}, "scalar memory"),
    "precision": ({"precision": "high"}, "precision=.*HIGH"),
    "lookup": (
        {"score_mod": lambda s, b, h, i, j: s + Z((4096, 4096))[i, j]},
        "cannot index an array by position.*implementation='xla'",
    ),
    "not elementwise": (
        {"mask": attnjax.Where(lambda b, h, i, j: jnp.sort(i + j, -1) > 3)},
        "cannot do on a tile",
    ),
    "narrow integers": (
        {"mask": attnjax.Where(lambda b, h, i, j, x: x > 3, per_key=Z(4096, jnp.int8))},
        "is of dtype int8",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_with_a_reason(name: str) -> None:
    options, message = REFUSED[name]
    call, arrays = compiled.case(**options)
    given = {n: jax.ShapeDtypeStruct(*a) for n, a in arrays.items()}
    with attnjax.emulate("tpu"), pytest.raises(NotImplementedError, match=message):
        jax.eval_shape(call, given)


def compile_for(chips: list[str], cases: list[str]) -> None:
    """Compiles in a process of its own, because libtpu reads its settings once."""
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install libtpu")
    script = pathlib.Path(compiled.__file__)
    settings = {"JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    done = subprocess.run(
        [sys.executable, str(script), ",".join(chips), *cases],
        env=os.environ | settings | {"PYTHONPATH": str(script.parents[3])},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert [chip for chip in found if found[chip].keys() == set(cases)] == chips
    for chip in chips:
        for name, (error, temporaries) in found[chip].items():
            assert error is None, f"{chip}, {name}: {error}"
            # A copy of the cache would take 8 MiB and more.
            assert temporaries < 2**20, f"{chip}, {name}: {temporaries}"


CORE = [
    "plain",
    "groups, stats and sinks",
    "small pages of int8",
    "ring of odd size",
    "odd capacity",
    "width 80, groups, four queries",
]


def test_compiles() -> None:
    compile_for(["v5e:2x2"], CORE)


@pytest.mark.slow
def test_every_case_compiles() -> None:
    compile_for(["v5e:2x2", "v6e:2x2"], list(compiled.CASES))
