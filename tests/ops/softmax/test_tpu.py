"""What JAX's transformations and `explain` make of the TPU kernels, in Pallas' interpreter."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from tests.conformance import Attend, implementation
from tests.transforming import arguments, assert_trees_close, call, compiled, loss, reference

tpu = implementation("tpu", block_q=4, block_k=4)


def assert_same(
    transform: Callable[[Attend], Callable[..., Any]], *primals: Any, tolerance: float = 2e-5
) -> None:
    """Checks that a transformation of the kernels gives what it gives of the reference."""
    found = compiled(transform(tpu))(*primals)
    want = compiled(transform(reference))(*primals)
    assert_trees_close(found, want, tolerance)


def test_forward_mode() -> None:
    def transform(attend: Attend) -> Callable[..., Any]:
        return lambda x, t: jax.jvp(lambda y: call(attend, y), (x,), (t,))

    assert_same(transform, arguments(), arguments(1))


@pytest.mark.slow
def test_forward_over_reverse() -> None:
    def transform(attend: Attend) -> Callable[..., Any]:
        return lambda x, t: jax.jvp(jax.grad(lambda y: loss(attend, y)), (x,), (t,))

    assert_same(transform, arguments(), arguments(1), tolerance=1e-4)


def curved(attend: Attend, x: dict[str, Any], look_up: Callable[..., Any]) -> jax.Array:
    """Returns a loss whose score_mod looks a captured array up."""
    out, _ = attend(x["q"], x["k"], x["v"], score_mod=lambda s, b, h, q, k: s + look_up(x, h, k))
    return jnp.sum(jnp.sin(out))


LINEAR = {
    "index first": lambda x, h, k: jnp.exp(x["table"][h, k]) * jnp.sin(x["table"][h, 0]),
    "move only": lambda x, h, k: 3 * x["table"][:, ::-1][h, k],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LINEAR)
def test_forward_over_reverse_by_captured_arrays(name: str) -> None:
    def transform(attend: Attend) -> Callable[..., Any]:
        return lambda x, t: jax.jvp(jax.grad(lambda y: curved(attend, y, LINEAR[name])), (x,), (t,))

    assert_same(transform, arguments(), arguments(1), tolerance=1e-4)


@pytest.mark.slow
def test_forward_over_reverse_of_what_is_computed_before_it_is_indexed() -> None:
    """Kernels and plain JAX would both count how the lookup bends; the gradient itself is right."""

    def look_up(x: dict[str, Any], h: Any, k: Any) -> Any:
        return jnp.exp(x["table"])[h, k]

    def gradient(attend: Attend) -> Callable[..., Any]:
        return jax.grad(lambda y: curved(attend, y, look_up))

    x, t = arguments(), arguments(1)
    assert_same(gradient, x)
    with pytest.raises(NotImplementedError, match=r"(?s)before it indexes.*Index first"):
        compiled(lambda x, t: jax.jvp(gradient(tpu), (x,), (t,))).lower(x, t)
    # Where the array stays, there is nothing to count twice.
    table = x["table"]

    def by_queries(attend: Attend) -> Callable[..., Any]:
        def f(q: jax.Array) -> jax.Array:
            return curved(attend, {**x, "q": q, "table": table}, look_up)

        return lambda q, moved: jax.jvp(jax.grad(f), (q,), (moved,))[1]

    assert_same(by_queries, x["q"], t["q"], tolerance=1e-4)


def test_reverse_over_reverse_says_what_to_do() -> None:
    x = arguments()

    def f(q: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda y: loss(tpu, {**x, "q": y}))(q)
        return jnp.sum(gradient**2)

    with pytest.raises(NotImplementedError, match=r"(?s)second.*derivative.*reference"):
        jax.eval_shape(jax.grad(f), x["q"])


@pytest.mark.slow
def test_vmap_of_values_and_gradients() -> None:
    members: list[dict[str, Any]] = [
        arguments(n) | {"length": jnp.int32(n), "key": jax.random.key(n)} for n in (0, 1)
    ]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *members)
    floats = ("q", "k", "v", "table")

    def both(x: dict[str, Any]) -> Any:
        rest = {name: y for name, y in x.items() if name not in floats}
        some = {name: x[name] for name in floats}
        return jax.value_and_grad(lambda y: loss(tpu, y | rest))(some)

    found = compiled(jax.vmap(both))(stacked)
    one = compiled(both)
    for n, member in enumerate(members):
        assert_trees_close(jax.tree.map(lambda x, n=n: x[n], found), one(member))


@pytest.mark.slow
def test_gradient_of_checkpoint_of_scan() -> None:
    x = arguments()
    layers = jnp.stack([jnp.eye(3, 6) + 0.1 * n for n in range(2)])

    def transform(attend: Attend) -> Callable[..., Any]:
        @jax.checkpoint
        def layer(carry: jax.Array, weight: jax.Array) -> tuple[jax.Array, None]:
            out, stats = attend(carry, x["k"], x["k"] @ weight, mask=attnjax.Causal())
            return carry + out[..., :3] + stats.entropy.swapaxes(1, 2)[..., None], None

        return jax.grad(lambda q, layers: jnp.sum(jax.lax.scan(layer, q, layers)[0] ** 2), (0, 1))

    assert_same(transform, x["q"], layers, tolerance=1e-4)


def test_the_public_call_runs_the_kernels_and_gives_no_stats_unasked() -> None:
    x = arguments()
    with attnjax.emulate("tpu"):
        chosen = attnjax.attention(x["q"], x["k"], x["v"], mask=attnjax.Causal())
        jaxpr = jax.make_jaxpr(lambda q: attnjax.attention(q, x["k"], x["v"]))(x["q"])
    assert "attnjax_forward" in str(jaxpr)
    want = attnjax.attention(
        x["q"], x["k"], x["v"], mask=attnjax.Causal(), implementation="reference"
    )
    np.testing.assert_allclose(chosen, want, rtol=2e-5, atol=2e-5)


def test_explain_counts_the_kernels_blocks() -> None:
    shape = jax.ShapeDtypeStruct((1, 4096, 8, 128), jnp.bfloat16)
    with attnjax.emulate("tpu"):
        plan = attnjax.explain(shape, shape, shape, mask=attnjax.Causal())
        float16 = attnjax.explain(*(jax.ShapeDtypeStruct(shape.shape, jnp.float16),) * 3)
    assert plan.implementation == "tpu"
    assert set(plan.reasons) >= {"blockwise", "reference", "gpu", "cudnn"}
    assert plan.reasons["blockwise"] == "tpu comes first"
    block_q, block_k = (int(n) for n in plan.tiles.split(":")[0].split() if n.isdigit())
    visited, _, total = plan.cost.blocks
    assert total == 4096 // block_q * (4096 // block_k)
    assert visited == sum(-(-(n + 1) * block_q // block_k) for n in range(4096 // block_q))
    assert float16.implementation == "blockwise"
    assert "float16" in float16.reasons["tpu"]
