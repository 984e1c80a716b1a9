"""`attnjax.explain_decode` says what `decode` does, and runs nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax


def shapes(S: int = 4096, H: int = 128, dtype: Any = jnp.float32) -> list[jax.ShapeDtypeStruct]:
    sizes = ((1, 8), (S, 4), (S, 4))
    return [jax.ShapeDtypeStruct((2, *size, H), dtype) for size in sizes]


def test_plain_xla_reads_the_cache_once() -> None:
    q, k, v = shapes()
    plan = attnjax.explain_decode(q, k, v, length=700)
    assert plan.implementation == "xla"
    assert "jax runs on the cpu" in plan.reasons["tpu"]
    assert plan.cost.flops_forward == 2 * 2 * 8 * 4096 * 256
    assert plan.cost.bytes_moved == 2 * 4 * (k.size + q.size)
    assert "xla" in str(plan)


def test_the_kernel_visits_what_holds_something() -> None:
    mask = attnjax.Causal() & attnjax.Window(100, 0)
    with attnjax.emulate("tpu"):
        whole = attnjax.explain_decode(*shapes(), length=4096)
        some = attnjax.explain_decode(*shapes(), length=np.array([4096, 1500]))
        near = attnjax.explain_decode(*shapes(), length=np.array([4096, 1500]), mask=mask)
        traced = attnjax.explain_decode(*shapes(), length=jax.ShapeDtypeStruct((2,), jnp.int32))
    assert whole.implementation == "tpu"
    (visited, _, total), cost = whole.cost.blocks, whole.cost
    assert visited == total and total % 2 == 0
    part = some.cost.blocks.visited
    assert part == total // 2 + -(-1500 * total // 2 // 4096)
    assert near.cost.blocks.visited == 2 < part
    assert traced.cost.blocks == (None, None, total)
    assert traced.cost.flops_forward == cost.flops_forward > some.cost.flops_forward


def test_copies_are_said() -> None:
    for H in (64, 128):
        assert attnjax.explain_decode(*shapes(H=H), length=9).notes == ()
        with attnjax.emulate("tpu"):
            assert attnjax.explain_decode(*shapes(H=H), length=9).notes == ()
    layout = attnjax.Paged(jax.ShapeDtypeStruct((2, 64), jnp.int32))
    q, *_ = shapes(H=64)
    pages = [jax.ShapeDtypeStruct((128, 64, 4, 64), jnp.float32)] * 2
    options: dict[str, Any] = {"length": 9, "layout": layout, "score_mod": lambda s, *_: s}
    plan = attnjax.explain_decode(q, *pages, **options)
    assert "gathered into a copy" in plan.notes[0] and "a function of yours" in plan.notes[1]
    with attnjax.emulate("tpu"):
        plan = attnjax.explain_decode(q, *pages, **options)
    assert "copy it for the kernel" in plan.notes[0] and "a function of yours" in plan.notes[1]


def test_temporaries_are_about_what_the_compiler_allots() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in shapes(S=32768, H=8))
    plan = attnjax.explain_decode(q, k, v, length=32768)
    compiled = jax.jit(lambda *x: attnjax.decode(*x, length=32768)).lower(q, k, v).compile()
    allotted = compiled.memory_analysis().temp_size_in_bytes
    assert 0.3 < plan.cost.temporaries_forward / allotted < 2


def test_raises_as_the_call_would() -> None:
    q, k, v = shapes()
    with pytest.raises(ValueError, match="length: expected at least T=1"):
        attnjax.explain_decode(q, k, v, length=0)
    with pytest.raises(ValueError, match="implementation: expected None or one of tpu, xla"):
        attnjax.explain_decode(q, k, v, length=1, implementation="fast")
    with pytest.raises(NotImplementedError, match="jax runs on the cpu"):
        attnjax.explain_decode(q, k, v, length=1, implementation="tpu")
