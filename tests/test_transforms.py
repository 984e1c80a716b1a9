"""JAX's transformations of the call, on every implementation; `test_vmap.py` has vmap."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from tests.conformance import Attend
from tests.transforming import (
    CLOSE,
    D,
    H,
    arguments,
    assert_same,
    assert_trees_close,
    blockwise,
    call,
    compiled,
    loss,
    reference,
)


def test_jvp() -> None:
    def transform(attend: Attend) -> Callable[..., Any]:
        return lambda x, t: jax.jvp(lambda y: call(attend, y), (x,), (t,))

    assert_same(transform, arguments(), arguments(1))


def test_jvp_of_the_reference_is_the_difference_quotient() -> None:
    with jax.enable_x64(True):
        x, t = (
            {name: jnp.asarray(np.asarray(y), jnp.float64) for name, y in arguments(n).items()}
            for n in (0, 1)
        )
        step = 1e-4

        def move(sign: float) -> dict[str, jax.Array]:
            return jax.tree.map(lambda a, b: a + sign * step * b, x, t)

        # The statistics are float32, so the output alone is differenced.
        out = compiled(lambda y: call(reference, y)[0])
        ends = [out(move(sign)) for sign in (1, -1)]
        _, tangent = compiled(lambda x, t: jax.jvp(lambda y: call(reference, y)[0], (x,), (t,)))(
            x, t
        )
        np.testing.assert_allclose(tangent, (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-6)


def test_jacfwd_over_one_argument() -> None:
    x = arguments()

    def transform(attend: Attend) -> Callable[..., Any]:
        return jax.jacfwd(lambda sinks: call(attend, {**x, "sinks": sinks}))

    assert_same(transform, x["sinks"])


@pytest.mark.slow
def test_linearize_and_its_transpose() -> None:
    def transform(attend: Attend) -> Callable[..., Any]:
        def run(x: Any, t: Any) -> Any:
            out, linear = jax.linearize(lambda y: loss(attend, y), x)
            return out, linear(t), jax.linear_transpose(linear, x)(out)

        return run

    assert_same(transform, arguments(), arguments(1))


@pytest.mark.slow
def test_checkpoint_changes_nothing() -> None:
    x = arguments()
    plain = compiled(jax.grad(lambda y: loss(blockwise, y)))(x)
    for policy in (None, jax.checkpoint_policies.dots_saveable):
        saved = jax.checkpoint(lambda y: loss(blockwise, y), policy=policy)
        assert_trees_close(compiled(jax.grad(saved))(x), plain)


@pytest.mark.slow
def test_grad_of_vmap_of_checkpoint_of_scan() -> None:
    x = arguments()
    layers = jnp.stack([jnp.eye(H, D) + 0.1 * n for n in range(3)])

    def transform(attend: Attend) -> Callable[..., Any]:
        def f(q: jax.Array, k: jax.Array, layers: jax.Array) -> jax.Array:
            @jax.checkpoint
            def layer(carry: jax.Array, weight: jax.Array) -> tuple[jax.Array, None]:
                out, stats = attend(carry, k, k @ weight, mask=attnjax.Causal())
                return carry + out[..., :H] + stats.entropy.swapaxes(1, 2)[..., None], None

            return jnp.sum(jax.lax.scan(layer, q, layers)[0] ** 2)

        def total(qs: jax.Array, k: jax.Array, layers: jax.Array) -> jax.Array:
            return jnp.sum(jax.vmap(f, in_axes=(0, None, None))(qs, k, layers))

        return jax.grad(total, argnums=(0, 1, 2))

    qs = jnp.stack([x["q"], -x["q"]])
    found = compiled(transform(blockwise))(qs, x["k"], layers)
    want = compiled(transform(reference))(qs, x["k"], layers)
    assert_trees_close(found, want, 1e-4)


def test_forward_over_reverse() -> None:
    def transform(attend: Attend) -> Callable[..., Any]:
        def product(x: Any, t: Any) -> Any:
            return jax.jvp(jax.grad(lambda y: loss(attend, y)), (x,), (t,))[1]

        return product

    x, t = arguments(), arguments(1)
    assert_trees_close(
        compiled(transform(blockwise))(x, t), compiled(transform(reference))(x, t), 1e-4
    )


def test_reverse_over_reverse_on_the_reference() -> None:
    x, t = arguments(), arguments(1)

    def product(y: Any) -> Any:
        gradient = jax.grad(lambda z: loss(reference, z))(y)
        return sum(jnp.vdot(gradient[name], t[name]) for name in gradient)

    found = compiled(jax.grad(product))(x)
    forward = compiled(lambda x, t: jax.jvp(jax.grad(lambda z: loss(reference, z)), (x,), (t,))[1])
    assert_trees_close(found, forward(x, t), 1e-4)


def test_reverse_over_reverse_on_blockwise_says_what_to_do() -> None:
    x = arguments()
    with pytest.raises(NotImplementedError, match=r"(?s)second.*derivative.*reference"):
        jax.eval_shape(
            jax.grad(lambda q: jnp.sum(jax.grad(lambda y: loss(blockwise, {**x, "q": y}))(q) ** 2)),
            x["q"],
        )


def test_jit_with_a_traced_mask_is_the_concrete_call() -> None:
    x = arguments()
    mask = attnjax.Segments(np.array([0, 0, 1, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 2])) & (
        attnjax.Causal(jnp.array([0, 1])) | attnjax.Window(jnp.int32(2), None)
    )

    def f(q: jax.Array, mask: attnjax.Mask) -> jax.Array:
        return blockwise(q, x["k"], x["v"], mask=mask)[0]

    concrete = compiled(lambda q: f(q, mask))(x["q"])
    traced = compiled(f)(x["q"], mask)
    np.testing.assert_allclose(traced, concrete, **CLOSE)
    assert np.asarray(concrete).any()


def test_eager_and_jitted_calls_agree() -> None:
    x = arguments()
    for name in ("reference", "blockwise", None):

        def f(x: dict[str, jax.Array], name: str | None = name) -> jax.Array:
            mask = attnjax.Causal() | attnjax.Where(lambda b, h, q, k: (q + k + h) % 3 == 0)
            return attnjax.attention(x["q"], x["k"], x["v"], mask=mask, implementation=name)

        np.testing.assert_allclose(jax.jit(f)(x), f(x), **CLOSE)


def test_the_same_call_gives_the_same_bits() -> None:
    x = arguments()
    run = compiled(jax.grad(lambda y: loss(blockwise, y)))
    jax.tree.map(np.testing.assert_array_equal, run(x), run(x))


def test_functions_may_close_over_tracers() -> None:
    """A mask's and a score_mod's closures are looked at anew in every call."""

    def transform(attend: Attend) -> Callable[..., Any]:
        def f(x: dict[str, jax.Array], shift: jax.Array) -> jax.Array:
            slope = jnp.exp(x["cap"])
            mask = attnjax.Where(lambda b, h, q, k: q + shift >= k)
            out, stats = attend(
                x["q"],
                x["k"],
                x["v"],
                mask=mask,
                score_mod=lambda s, b, h, q, k: s - slope * x["table"][h, jnp.abs(q - k)],
            )
            return jnp.sum(jnp.sin(out)) + jnp.sum(stats.entropy)

        return jax.grad(f)

    assert_same(transform, arguments(), jnp.int32(1))


def test_changed_closures_are_seen_by_eager_calls() -> None:
    x = arguments()
    outs = []
    for slope in (0.0, 1.0):
        outs.append(
            attnjax.attention(
                x["q"],
                x["k"],
                x["v"],
                score_mod=lambda s, b, h, q, k, slope=slope: s - slope * jnp.abs(q - k),
            )
        )
    np.testing.assert_allclose(outs[0], attnjax.attention(x["q"], x["k"], x["v"]), **CLOSE)
    assert np.abs(np.asarray(outs[1] - outs[0])).max() > 1e-2


def test_gradients_stop_where_the_contract_says() -> None:
    x = arguments()
    for attend in (reference, blockwise):

        def f(q: jax.Array, attend: Attend = attend) -> jax.Array:
            stats = attend(q, x["k"], x["v"])[1]
            return jnp.sum(stats.max_logit + stats.sink_mass + stats.distance)

        np.testing.assert_array_equal(compiled(jax.grad(f))(x["q"]), 0)
