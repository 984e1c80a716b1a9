"""cuDNN: what is taken and what is refused, what is done around the kernel, and what XLA gets."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from attnjax.bench import cuda_aot
from attnjax.ops.softmax import vendor
from attnjax.validate import make_problem
from tests.conformance import COMPILER

B, T, N, K, H = 2, 12, 4, 2, 8
SHAPES = {"q": (B, T, N, H), "k": (B, T, K, H), "v": (B, T, K, H)}
UNSET = dict.fromkeys(("mask", "score_mod", "scale", "sinks", "dropout", "precision"))

LENGTHS = np.array([9, 0], np.int32)
TAKEN: dict[str, Any] = {
    "none": None,
    "causal": attnjax.Causal(),
    "open window": attnjax.Window(1000, 1000),
    "window": attnjax.Window(3, 0),
    "window and causal": attnjax.Causal() & attnjax.Window(4, 2),
    "keys": attnjax.Lengths(None, LENGTHS),
    "lengths": attnjax.Lengths(jnp.array([7, 12]), jnp.array([5, 40])),
    "prefix and causal": attnjax.Prefix(jnp.array([-1, 6])) & attnjax.Causal(),
}


def problem(
    dtype: Any = jnp.bfloat16, shapes: dict[str, tuple[int, ...]] = SHAPES, **kw: Any
) -> Any:
    arrays = (jax.ShapeDtypeStruct(shapes[name], dtype) for name in "qkv")
    stats = kw.pop("stats", False)
    return make_problem(*arrays, **(UNSET | kw), stats=stats)


@pytest.mark.parametrize("how", sorted(TAKEN))
def test_taken_for_a_gpu(how: str) -> None:
    with attnjax.emulate("gpu", interpret=False):
        vendor.check(problem(mask=TAKEN[how]))
        plan = attnjax.explain(
            *(jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in SHAPES.values()), mask=TAKEN[how]
        )
    assert plan.implementation == "cudnn"
    assert "order that changes from run to run" in str(plan)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "stats": ({"stats": True}, "statistics"),
    "score_mod": ({"score_mod": attnjax.soft_cap(3.0)}, "score_mods"),
    "bias": ({"score_mod": attnjax.bias(jnp.zeros((T, T), jnp.bfloat16))}, "score_mods"),
    "sinks": ({"sinks": jnp.zeros(N)}, "sinks"),
    "dropout": ({"dropout": attnjax.Dropout(0.5, jax.random.key(0))}, "dropout"),
    "precision": ({"precision": "highest"}, "precision"),
    "float32": ({"dtype": jnp.float32}, "float32"),
    "float16": ({"dtype": jnp.float16}, "float16"),
    "wide values": ({"shapes": SHAPES | {"v": (B, T, K, 16)}}, "H=8 and D=16"),
    "head width": ({"shapes": {n: (*s[:3], 20) for n, s in SHAPES.items()}}, "multiple of 8"),
    "wide head": ({"shapes": {n: (*s[:3], 256) for n, s in SHAPES.items()}}, "up to 128"),
    "offset": ({"mask": attnjax.Causal(offset=2)}, "causal ones only"),
    "traced offset": ({"mask": attnjax.Causal(jnp.array([0, 1]))}, "has an array"),
    "traced window": ({"mask": attnjax.Window(jnp.array(3), 0)}, "has an array"),
    "right window": ({"mask": attnjax.Window(3, 2)}, "causal ones only"),
    "empty rows": ({"mask": attnjax.Window(-1, 0)}, "nothing to attend to"),
    "window, lengths": (
        {"mask": attnjax.Window(3, 0) & attnjax.Lengths(None, LENGTHS)},
        "nothing to attend to",
    ),
    "corner": (
        {"mask": attnjax.Causal(), "shapes": SHAPES | {"q": (B, 5, N, H)}},
        "T=5 and S=12",
    ),
    "segments": ({"mask": attnjax.Segments(jnp.zeros(T, jnp.int32))}, "no such mask"),
    "or": ({"mask": attnjax.Causal() | attnjax.Prefix(2)}, "no such mask"),
    "dense": ({"mask": jnp.ones((T, T), bool)}, "no such mask"),
}


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_refused_by_name_with_a_remedy(what: str) -> None:
    arguments, reason = REFUSED[what]
    with (
        attnjax.emulate("gpu", interpret=False),
        pytest.raises(NotImplementedError, match=reason) as refusal,
    ):
        vendor.check(problem(**arguments))
    assert "Use implementation=None or 'blockwise'" in str(refusal.value)


def test_needs_a_gpu_and_has_no_interpreter() -> None:
    arrays = [jnp.zeros(shape, jnp.bfloat16) for shape in SHAPES.values()]
    with attnjax.emulate("cpu"), pytest.raises(NotImplementedError, match="jax runs on the cpu"):
        attnjax.attention(*arrays, implementation="cudnn")
    with attnjax.emulate("gpu"), pytest.raises(NotImplementedError, match="no interpreter"):
        attnjax.attention(*arrays, implementation="cudnn")


def kernel(q: Any, k: Any, v: Any, form: Any, q_length: Any, kv_length: Any) -> jax.Array:
    """JAX's own dense attention, with NaN in rows and gradients that lengths leave undefined."""

    def dense(q: Any, k: Any, v: Any, lengths: Any) -> jax.Array:
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            is_causal=form.causal,
            query_seq_lengths=lengths[0],
            key_value_seq_lengths=lengths[1],
            local_window_size=None if form.left is None else (form.left, 0),
        )

    def inside(length: Any) -> jax.Array:
        whole = jnp.full(B, T, jnp.int32) if length is None else length
        return (jnp.arange(T) < whole[:, None])[..., None, None]

    @jax.custom_vjp
    def careless(q: Any, k: Any, v: Any, lengths: Any) -> jax.Array:
        return jnp.where(inside(lengths[0]), dense(q, k, v, lengths), jnp.nan)

    def forward(*args: Any) -> tuple[jax.Array, Any]:
        return careless(*args), args

    def backward(args: Any, d_out: Any) -> Any:
        *qkv, lengths = args
        rows, keys = map(inside, lengths)
        grads = jax.vjp(lambda *x: dense(*x, lengths), *qkv)[1](jnp.where(rows, d_out, 0))
        dq, dk, dv = (
            jnp.where(own, g, jnp.nan) for own, g in zip((rows, keys, keys), grads, strict=True)
        )
        return dq, dk, dv, None

    careless.defvjp(forward, backward)
    return careless(q, k, v, (q_length, kv_length))


def by_kernel(q: Any, k: Any, v: Any, **kw: Any) -> jax.Array:
    return vendor.attend(make_problem(q, k, v, **(UNSET | kw), stats=False), kernel=kernel)[0]


def by_reference(q: Any, k: Any, v: Any, **kw: Any) -> jax.Array:
    return attnjax.attention(q, k, v, implementation="reference", **kw)


def results(attend: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
    """Returns a compiled function of q, k, v, scale and mask: the output and four gradients."""

    def run(q: Any, k: Any, v: Any, scale: Any, mask: Any) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(lambda *x: attend(*x[:3], scale=x[3], mask=mask), q, k, v, scale)
        rng = np.random.default_rng(1)
        return out, *pull(jnp.asarray(rng.uniform(1, 2, out.shape), out.dtype))

    return jax.jit(run, compiler_options=COMPILER)


SPOILED = (
    {},
    {"k": (0, 3, 1, 2)},
    {"v": (1, 8, 0)},
    {"q": (0, 8, 2), "k": (1, 2, 0), "v": (0, 10, 1)},
)


@pytest.mark.parametrize("how", sorted(TAKEN))
def test_around_the_kernel_all_edge_rules_hold(how: str) -> None:
    found, wanted = results(by_kernel), results(by_reference)
    for spoiled in SPOILED:
        rng = np.random.default_rng(0)
        arrays = {name: rng.normal(size=s).astype(np.float32) for name, s in SHAPES.items()}
        for name, at in spoiled.items():
            arrays[name][at] = np.nan
        given = (*arrays.values(), np.float32(0.4), TAKEN[how])
        for x, want in zip(found(*given), wanted(*given), strict=True):
            np.testing.assert_allclose(x, want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_default_scale_changes_no_bit_of_the_queries() -> None:
    rng = np.random.default_rng(0)
    for width in (8, 24, 40, 64, 96, 128):
        shapes = {name: (*shape[:3], width) for name, shape in SHAPES.items()}
        q, k, v = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in shapes.values())
        handed = vendor.attend(make_problem(q, k, v, **UNSET, stats=False), kernel=lambda q, *_: q)[
            0
        ]
        np.testing.assert_array_equal(*(np.asarray(x, np.float32) for x in (handed, q)))


def test_forward_mode_goes_through_blockwise() -> None:
    rng = np.random.default_rng(0)
    x, dx, ddx = (
        {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in SHAPES.items()}
        for _ in range(3)
    )

    def twice(attend: Callable[..., jax.Array]) -> Any:
        def loss(x: dict[str, jax.Array]) -> jax.Array:
            return jnp.sum(jnp.sin(attend(**x, mask=attnjax.Causal())))

        def run(x: Any, dx: Any, ddx: Any) -> Any:
            return jax.jvp(loss, (x,), (dx,)), jax.jvp(jax.grad(loss), (x,), (ddx,))

        return jax.jit(run, compiler_options=COMPILER)(x, dx, ddx)

    found, wanted = (jax.tree.leaves(twice(f)) for f in (by_kernel, by_reference))
    for x, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(x, want, rtol=1e-3, atol=1e-4)


def test_vmap_over_a_batch_of_calls() -> None:
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=(3, *s)), jnp.float32) for s in SHAPES.values()]
    found, wanted = (
        jax.vmap(lambda *x, f=f: f(*x, mask=TAKEN["window"]))(*arrays)
        for f in (by_kernel, by_reference)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", sorted(TAKEN))
def test_an_h100_gets_a_call_of_cudnn(how: str) -> None:
    if why := cuda_aot.missing():
        pytest.skip(why)
    arrays = [jax.ShapeDtypeStruct((B, 256, n, 64), jnp.bfloat16) for n in (N, K, K)]
    leaves, structure = jax.tree.flatten(TAKEN[how])

    def run(d_out: Any, mask: Any, *x: Any) -> Any:
        mask = jax.tree.unflatten(structure, mask)
        out, pull = jax.vjp(lambda *x: attnjax.attention(*x, mask=mask), *x)
        return out, pull(d_out)

    with attnjax.emulate("gpu", interpret=False):
        compiled = cuda_aot.compile_for_h100(run, arrays[0], leaves, *arrays)
    called = re.findall(r'custom_call_target="__cudnn\$(\w+)"', compiled.as_text())
    assert sorted(called) == ["fmhaSoftmax", "fmhaSoftmaxBackward"]
