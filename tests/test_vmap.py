"""vmap over every argument of the call."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from tests.conformance import Attend
from tests.transforming import (
    CLOSE,
    S,
    T,
    arguments,
    assert_trees_close,
    blockwise,
    call,
    compiled,
    loss,
    reference,
)

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


@pytest.mark.first(3)
@pytest.mark.parametrize("name", sorted(MAPPED))
def test_vmap(name: str) -> None:
    members, stacked, axes = stack(MAPPED[name])
    found = compiled(jax.vmap(lambda x: call(blockwise, x), in_axes=(axes,)))(stacked)
    one = compiled(lambda x: call(blockwise, x))
    for n, member in enumerate(members):
        assert_trees_close(jax.tree.map(lambda x, n=n: x[n], found), one(member))


@pytest.mark.slow
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


@pytest.mark.slow
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
