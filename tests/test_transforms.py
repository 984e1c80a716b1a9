"""JAX's transformations of the call, on every implementation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from tests.conformance import COMPILER, Attend, implementation

B, T, S, N, K, H, D = 2, 7, 5, 4, 2, 3, 6
CLOSE = {"rtol": 2e-5, "atol": 5e-6}

reference = implementation("reference")
blockwise = implementation("blockwise", block_q=3, block_k=2)


def arguments(seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    shapes = {
        "q": (B, T, N, H),
        "k": (B, S, K, H),
        "v": (B, S, K, D),
        "sinks": (N,),
        "table": (N, 7),
        "cap": (),
    }
    drawn = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    drawn["cap"] = np.asarray(1.5 + abs(drawn["cap"]))
    return {name: jnp.asarray(x, jnp.float32) for name, x in drawn.items()}


def call(attend: Attend, x: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
    """Calls with a mask of all kinds of blocks; returns what is differentiable."""
    out, stats = attend(
        x["q"],
        x["k"],
        x["v"],
        mask=attnjax.Causal(1) | attnjax.Prefix(x.get("length", 2)),
        sinks=x["sinks"],
        score_mod=(
            attnjax.relative_bias(x["table"]),
            attnjax.soft_cap(x["cap"]),
            lambda s, b, h, q, k: s * jnp.cos(x["cap"] * (q - k)),
        ),
        dropout=attnjax.Dropout(0.2, x.get("key", jax.random.key(0))),
    )
    return out, stats.logsumexp, stats.entropy


def loss(attend: Attend, x: dict[str, jax.Array]) -> jax.Array:
    out, logsumexp, entropy = call(attend, x)
    return jnp.sum(jnp.sin(out)) + jnp.sum(logsumexp**2) + jnp.sum(entropy**3)


def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(f, compiler_options=COMPILER)


def assert_same(transform: Callable[[Attend], Callable[..., Any]], *primals: Any) -> None:
    """Checks that a transformation of blockwise gives what it gives of the reference."""
    found = compiled(transform(blockwise))(*primals)
    want = compiled(transform(reference))(*primals)
    for path, x in jax.tree_util.tree_leaves_with_path(want):
        assert np.isfinite(x).all(), path
    assert_trees_close(found, want)


def assert_trees_close(found: Any, want: Any, tolerance: float = 2e-5) -> None:
    """Compares arrays relative to each entry and to the array's largest."""

    def compare(x: Any, y: Any) -> None:
        atol = tolerance * max(0.1, float(np.abs(y).max()))
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=atol)

    jax.tree.map(compare, found, want)


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


def test_linearize_and_its_transpose() -> None:
    def transform(attend: Attend) -> Callable[..., Any]:
        def run(x: Any, t: Any) -> Any:
            out, linear = jax.linearize(lambda y: loss(attend, y), x)
            return out, linear(t), jax.linear_transpose(linear, x)(out)

        return run

    assert_same(transform, arguments(), arguments(1))


MAPPED = {
    "q": ("q",),
    "values": ("v",),
    "sinks": ("sinks",),
    "score_mod arrays": ("table", "cap"),
    "mask": ("length",),
    "dropout key": ("key",),
    "everything": ("q", "k", "v", "sinks", "table", "cap", "length", "key"),
}


def stack(names: tuple[str, ...]) -> tuple[list[Any], Any, Any]:
    """Returns three calls that differ in the named arguments, stacked, and their vmap axes."""
    members = [arguments(n) | {"length": jnp.int32(n), "key": jax.random.key(n)} for n in (0, 1, 2)]
    members = [{key: m[key] if key in names else members[0][key] for key in m} for m in members]
    stacked = {
        key: jnp.stack([m[key] for m in members]) if key in names else x
        for key, x in members[0].items()
    }
    return members, stacked, {key: 0 if key in names else None for key in stacked}


@pytest.mark.parametrize("name", sorted(MAPPED))
def test_vmap(name: str) -> None:
    members, stacked, axes = stack(MAPPED[name])
    found = compiled(jax.vmap(lambda x: call(blockwise, x), in_axes=(axes,)))(stacked)
    one = compiled(lambda x: call(blockwise, x))
    for n, member in enumerate(members):
        assert_trees_close(jax.tree.map(lambda x, n=n: x[n], found), one(member))


def test_gradient_of_each_member_and_of_their_sum() -> None:
    members, stacked, axes = stack(MAPPED["everything"])
    floats = ("q", "k", "v", "sinks", "table", "cap")

    def gradient(x: dict[str, Any]) -> Any:
        rest = {key: y for key, y in x.items() if key not in floats}
        return jax.grad(lambda y: loss(blockwise, {**y, **rest}))({key: x[key] for key in floats})

    def of_sum(x: dict[str, Any]) -> Any:
        rest = {key: y for key, y in x.items() if key not in floats}
        return jax.grad(lambda y: jnp.sum(jax.vmap(lambda z: loss(blockwise, z))({**y, **rest})))(
            {key: x[key] for key in floats}
        )

    one = compiled(gradient)
    want = jax.tree.map(lambda *x: jnp.stack(x), *map(one, members))
    assert_trees_close(compiled(jax.vmap(gradient, in_axes=(axes,)))(stacked), want, 1e-4)
    assert_trees_close(compiled(of_sum)(stacked), want, 1e-4)


@pytest.mark.parametrize("attend", [reference, blockwise], ids=["reference", "blockwise"])
def test_vmap_over_the_arrays_of_masks(attend: Attend) -> None:
    x = arguments()
    rng = np.random.default_rng(0)
    members = [
        (attnjax.Segments(jnp.asarray(a), jnp.asarray(b)) | attnjax.Lengths(None, jnp.int32(n)))
        & jnp.asarray(rng.random((T, S)) < 0.8)
        for n, (a, b) in enumerate((rng.integers(0, 3, T), rng.integers(0, 3, S)) for _ in range(3))
    ]
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *members)

    def f(mask: attnjax.Mask) -> Any:
        return jax.value_and_grad(
            lambda q: jnp.sum(jnp.sin(attend(q, x["k"], x["v"], mask=mask)[0]))
        )(x["q"])

    found = compiled(jax.vmap(f))(stacked)
    one = compiled(f)
    for n, member in enumerate(members):
        jax.tree.map(
            lambda a, b, n=n: np.testing.assert_allclose(a[n], b, **CLOSE), found, one(member)
        )


def test_vmap_over_other_axes() -> None:
    x = arguments()
    q = jnp.stack([x["q"], 2 * x["q"]], axis=3)
    found = jax.vmap(lambda q: attnjax.attention(q, x["k"], x["v"]), in_axes=3, out_axes=1)(q)
    for n in range(2):
        want = attnjax.attention(q[:, :, :, n], x["k"], x["v"])
        np.testing.assert_allclose(found[:, n], want, **CLOSE)


def test_checkpoint_changes_nothing() -> None:
    x = arguments()
    plain = compiled(jax.grad(lambda y: loss(blockwise, y)))(x)
    for policy in (None, jax.checkpoint_policies.dots_saveable):
        saved = jax.checkpoint(lambda y: loss(blockwise, y), policy=policy)
        assert_trees_close(compiled(jax.grad(saved))(x), plain)


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
