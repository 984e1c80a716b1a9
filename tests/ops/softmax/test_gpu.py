"""The GPU kernels: numbers in the interpreter, what the compiler makes of them, what is refused."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from attnjax.bench import cuda_aot
from attnjax.ops.kernels import mosaic_gpu
from attnjax.ops.softmax import gpu
from attnjax.ops.softmax.problem import Known
from attnjax.validate import make_problem

# float16: 11 bits, and sums of some hundred terms.
CLOSE = 2e-3
UNSET = dict.fromkeys(("mask", "score_mod", "scale", "sinks", "dropout", "precision"))
B, T, S, N, K = 1, 200, 260, 2, 1


@pytest.fixture
def interpreter() -> None:
    with attnjax.emulate("gpu"):
        try:
            gpu.check(problem())
        except NotImplementedError as error:
            pytest.skip(str(error))


def shapes(width: int = 64) -> tuple[tuple[int, ...], ...]:
    return (B, T, N, width), (B, S, K, width), (B, S, K, width)


def problem(dtype: Any = jnp.float16, width: int = 64, **kw: Any) -> Any:
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes(width)]
    arrays[2] = jax.ShapeDtypeStruct((B, S, K, kw.pop("value_width", width)), dtype)
    stats = kw.pop("stats", False)
    return make_problem(*arrays, **(UNSET | kw), stats=stats)


def arrays(width: int, dtype: Any = jnp.float16) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    names = zip("qkv", shapes(width), strict=True)
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in names}


def by_kernels(**arguments: Any) -> Any:
    with attnjax.emulate("gpu"):
        return attnjax.attention(**arguments, implementation="gpu")


def by_reference(**arguments: Any) -> Any:
    return attnjax.attention(**arguments, implementation="reference")


def results(
    attend: Callable[..., Any], given: dict[str, jax.Array], **fixed: Any
) -> dict[str, np.ndarray]:
    """Returns the output, the statistics if they are wanted, and all gradients, in float32."""
    found, pull = jax.vjp(lambda x: attend(**x, **fixed), given)
    rng = np.random.default_rng(1)
    d_found = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float16).astype(x.dtype), found
    )
    (gradients,) = pull(d_found)
    out, stats = found if isinstance(found, tuple) else (found, None)
    named = {"out": out, **(stats._asdict() if stats else {})}
    named |= {f"d {name}": x for name, x in gradients.items()}
    return {name: np.asarray(x, np.float32) for name, x in named.items()}


def assert_same(given: dict[str, jax.Array], **fixed: Any) -> None:
    wide = {name: x.astype(jnp.float32) for name, x in given.items()}
    expected = results(by_reference, wide, **fixed)
    found = results(by_kernels, given, **fixed)
    for name, want in expected.items():
        if name in ("d q", "d k", "d v"):
            # The derivative at an entry that is not finite itself is anybody's guess.
            want = np.where(np.isfinite(wide[name[-1]]), want, found[name])
        magnitude = np.abs(want[np.isfinite(want)]).max(initial=0)
        np.testing.assert_allclose(
            found[name], want, rtol=CLOSE, atol=CLOSE * magnitude, err_msg=name
        )


Q_IDS, K_IDS = jnp.arange(T) // 70, jnp.arange(S) // 70
NUMERIC: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "causal": ({"mask": attnjax.Causal(offset=5)}, {}),
    "statistics": ({"mask": attnjax.Causal(offset=5), "stats": True}, {"sinks": jnp.ones(N)}),
    "documents": ({"mask": attnjax.Segments(Q_IDS, K_IDS), "score_mod": attnjax.alibi(N)}, {}),
    "all": (
        {
            "mask": attnjax.Window(100, 20) & attnjax.Lengths(150, jnp.array([240])),
            "score_mod": (attnjax.soft_cap(20.0), lambda s, b, h, q, k: s - 0.1 * K_IDS[k]),
            "stats": True,
        },
        {"sinks": jnp.ones(N), "scale": jnp.float32(-0.2)},
    ),
}


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(
    ("width", "how"), [(64, "causal"), (64, "documents"), (64, "statistics"), (128, "all")]
)
def test_values_and_gradients_in_the_interpreter(width: int, how: str) -> None:
    fixed, extra = NUMERIC[how]
    assert_same(arrays(width) | extra, **fixed)


MORE: dict[str, dict[str, Any]] = {
    "full": {},
    "window": {"mask": attnjax.Window(40, 0)},
    "prefix": {"mask": attnjax.Prefix(30) | attnjax.Causal()},
    "strided": {"mask": attnjax.Strided(3) & attnjax.Causal()},
    "where": {"mask": attnjax.Where(lambda b, h, q, k: Q_IDS[q] + h != K_IDS[k])},
    "dense": {"mask": jnp.asarray(np.random.default_rng(2).random((N, T, S)) < 0.3)},
    "bias": {"score_mod": attnjax.bias(jnp.sin(jnp.arange(T * S)).reshape(T, S))},
    "division": {"score_mod": lambda s, b, h, q, k: s / (1 + s * s) ** 2 + jnp.sqrt(s * s + 1)},
    "all statistics": {
        "mask": attnjax.Segments(Q_IDS, K_IDS) & attnjax.Causal(),
        "score_mod": attnjax.alibi(N),
        "stats": True,
    },
    "negative scale": {"mask": attnjax.Causal(), "scale": -0.3},
    "zero scale": {"mask": attnjax.Causal(), "scale": 0.0},
}


@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("how", sorted(MORE))
def test_more_masks_and_score_mods_in_the_interpreter(how: str, width: int) -> None:
    assert_same(arrays(width), **MORE[how])


@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
def test_the_gradient_of_an_array_of_a_score_mod() -> None:
    def slopes(attend: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda slopes, **x: attend(**x, score_mod=attnjax.alibi(slopes))

    given = arrays(64)
    extra = {"slopes": jnp.array([0.1, 0.2])}
    found = results(slopes(by_kernels), given | extra, mask=attnjax.Causal())
    wide = {name: x.astype(jnp.float32) for name, x in given.items()}
    for name, want in results(slopes(by_reference), wide | extra, mask=attnjax.Causal()).items():
        np.testing.assert_allclose(
            found[name], want, rtol=CLOSE, atol=CLOSE * np.abs(want).max(), err_msg=name
        )


@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("how", ["alibi", "lookups"])
def test_parts_of_a_call_add_up(how: str) -> None:
    slopes, by_query = jnp.array([0.5, -1.0]), jnp.linspace(-1.0, 1.0, T)
    mods = {
        "alibi": attnjax.alibi(N),
        "lookups": lambda s, b, h, q, k: s * slopes[h] + by_query[q],
    }
    length, half = 192, 96
    given = [x[:, :length] for x in arrays(64).values()]
    towards = jnp.asarray(np.random.default_rng(1).normal(size=given[0].shape), jnp.float16)

    def part(rows: slice, columns: slice, known: Known | None) -> Callable[..., Any]:
        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> Any:
            fixed = UNSET | {"mask": attnjax.Causal(), "score_mod": mods[how]}
            place = jnp.array([0, 0, rows.start or 0, columns.start or 0])
            problem = make_problem(q, k, v, **fixed, stats=False)
            out, stats = gpu.attend(dataclasses.replace(problem, origin=place, known=known))
            return out, stats.logsumexp

        return attend

    every = slice(None)
    with attnjax.emulate("gpu"):
        (out, logsumexp), pull = jax.vjp(part(every, every, None), *given)
        slope = jnp.sin(jnp.arange(logsumexp.size, dtype=jnp.float32)).reshape(logsumexp.shape)
        want = pull((towards, slope))
        totals = [jnp.zeros(x.shape) for x in given]
        for rows in (slice(0, half), slice(half, length)):
            known, total = Known(out[:, rows], logsumexp[:, :, rows], None), jnp.zeros(())
            for columns in (slice(0, half), slice(half, length)):
                places = (rows, columns, columns)
                here = [x[:, at] for x, at in zip(given, places, strict=True)]
                some, of = part(rows, columns, None)(*here)
                share = jnp.swapaxes(jnp.exp(of - known.logsumexp), 1, 2)[..., None]
                total = total + share * some
                grads = jax.vjp(part(rows, columns, known), *here)[1](
                    (towards[:, rows], slope[:, :, rows])
                )
                totals = [
                    x.at[:, at].add(g) for x, at, g in zip(totals, places, grads, strict=True)
                ]
            np.testing.assert_allclose(total, out[:, rows], rtol=CLOSE, atol=CLOSE)
    for got, right in zip(totals, want, strict=True):
        scale = float(jnp.abs(right).max())
        np.testing.assert_allclose(got, right, rtol=CLOSE, atol=CLOSE * scale)


@pytest.mark.usefixtures("interpreter")
def test_nan_and_inf_reach_the_rows_that_see_them_and_no_other() -> None:
    given = arrays(64)
    given["k"] = given["k"].at[:, 30, :, 3].set(jnp.nan).at[:, 255].set(jnp.inf)
    given["v"] = given["v"].at[:, 150, :, 1].set(jnp.inf)
    given["q"] = given["q"].at[:, 20, 1, 0].set(jnp.nan)
    ids = jnp.arange(T) // 60, jnp.where(jnp.arange(S) < 250, jnp.arange(S) // 60, 9)
    assert_same(given, mask=attnjax.Segments(*ids))


@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
def test_score_gradients_that_leave_float16() -> None:
    given = arrays(64)
    given["v"] *= 100
    given["q"] /= 1000
    d_out = jnp.full((B, T, N, 64), 500.0, jnp.float16)

    def gradient(attend: Callable[..., jax.Array], dtype: Any) -> np.ndarray:
        x = {name: y.astype(dtype) for name, y in given.items()}
        _, pull = jax.vjp(lambda k: attend(**(x | {"k": k}), mask=attnjax.Causal()), x["k"])
        return np.asarray(pull(d_out.astype(dtype))[0], np.float32)

    dots = jnp.einsum("btnd,bskd->bnts", d_out.astype(jnp.float32), given["v"])
    assert jnp.abs(dots).max() > 1e5
    want = gradient(by_reference, jnp.float32)
    assert np.abs(want).max() < 6e4
    np.testing.assert_allclose(
        gradient(by_kernels, jnp.float16), want, rtol=CLOSE, atol=CLOSE * np.abs(want).max()
    )


@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
def test_forward_mode_and_vmap() -> None:
    given = arrays(64)
    q, k, v = (jnp.stack([x, 2 * x]) for x in given.values())

    def one(attend: Callable[..., jax.Array]) -> Callable[..., Any]:
        return lambda q, k, v: attend(q=q, k=k, v=v, mask=attnjax.Causal())

    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    want = np.asarray(jax.vmap(one(by_reference))(*wide))
    found = np.asarray(jax.vmap(one(by_kernels))(q, k, v), np.float32)
    np.testing.assert_allclose(found, want, rtol=CLOSE, atol=CLOSE * np.abs(want).max())
    moved, want = (
        np.asarray(jax.jvp(one(f), tuple(x), tuple(x))[1], np.float32)
        for f, x in (
            (by_kernels, given.values()),
            (by_reference, [x.astype(jnp.float32) for x in given.values()]),
        )
    )
    np.testing.assert_allclose(moved, want, rtol=CLOSE, atol=CLOSE * np.abs(want).max())


@pytest.mark.slow
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("how", ["statistics", "documents"])
def test_no_warpgroup_races_another(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, extra = NUMERIC[how]
    careful = dataclasses.replace(mosaic_gpu.interpreter(), detect_races=True)
    monkeypatch.setattr(mosaic_gpu, "interpreter", lambda: careful)
    # The interpreter raises where it finds a race.
    assert_same(arrays(64) | extra, **fixed)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dropout": ({"dropout": attnjax.Dropout(0.5, jax.random.key(0))}, "no dropout"),
    "precision": ({"precision": "highest"}, "precision"),
    "float32": ({"dtype": jnp.float32}, "float32"),
    "width": ({"width": 80}, "H=80"),
    "values": ({"value_width": 128}, "H=64 and D=128"),
    "relative": (
        {"score_mod": attnjax.relative_bias(jnp.ones((N, 9)))},
        "relative_bias.table varies with the relative position",
    ),
    "floor": ({"score_mod": lambda s, b, h, q, k: s + jnp.floor(s)}, "needs floor"),
    "gather": (
        {"score_mod": lambda s, b, h, q, k: s + jnp.arange(500.0)[k - q + 200]},
        "looks an array up",
    ),
}


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_refused_by_name_with_a_remedy(what: str) -> None:
    arguments, reason = REFUSED[what]
    with (
        attnjax.emulate("gpu", interpret=False),
        pytest.raises(NotImplementedError, match=reason) as refusal,
    ):
        gpu.check(problem(**arguments))
    assert re.search("blockwise", str(refusal.value))


def test_says_how_to_run_without_a_gpu() -> None:
    given = {name: x for name, x in arrays(64).items()}
    with attnjax.emulate("cpu"), pytest.raises(NotImplementedError, match=r"emulate\('gpu'\)"):
        attnjax.attention(**given, implementation="gpu")


def test_explain_says_whose_gradients_are_computed_elsewhere() -> None:
    given = {name: x for name, x in arrays(64).items()}
    with attnjax.emulate("gpu", interpret=False):
        plan = attnjax.explain(**given, score_mod=attnjax.alibi(N), implementation="gpu")
        plain = attnjax.explain(**given, implementation="gpu")
    assert "gradients of arrays in score_mods" in str(plan)
    assert "gradients of arrays" not in str(plain)
    # Blocks of 128 by 128.
    assert plain.cost.blocks == (6, 2, 6)
    assert plain.cost.flops_forward == 2 * 6 * N * 128 * 128 * 2 * 64


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("name", ["causal", "documents", "soft cap, sinks", "all"])
def test_compiles_for_an_h100_without_spills_or_serialised_products(name: str, width: int) -> None:
    if why := cuda_aot.missing() or cuda_aot.spills_by_linking():
        pytest.skip(why)
    kernels = cuda_aot.reports(width, jnp.bfloat16, cuda_aot.calls()[name])
    assert {kernel.name for kernel in kernels} == {
        "attnjax_forward",
        "attnjax_d_queries",
        "attnjax_d_keys",
    }
    for kernel in kernels:
        assert (kernel.spilled, kernel.warnings) == (0, ()), kernel
