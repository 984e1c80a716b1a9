"""A call over a mesh equals the call on one device: every method, mask, score_mod and option."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jaxtyping import Array

import attnjax
from attnjax import (
    Causal,
    Dense,
    Full,
    Lengths,
    Partition,
    Prefix,
    Segments,
    Strided,
    Where,
    Window,
)
from tests.pairs import spread

pytestmark = pytest.mark.mesh

B, T, N, H, D = 2, 24, 4, 5, 7
METHODS = ("ring", "ulysses", "allgather")


def _random(seed: int, *shape: int) -> Array:
    return jax.random.normal(jax.random.key(seed), shape)


_IDS = jnp.asarray(np.sort(np.random.default_rng(0).integers(0, 4, (B, T)), axis=1))
_DENSE = jnp.asarray(np.random.default_rng(1).random((B, 1, T, T)) > 0.4)
_SHIFT = jnp.arange(N)
MASKS = {
    "full": Full(),
    "causal": Causal(),
    "causal by batch": Causal(offset=jnp.array([-2, 3])),
    "window": Window(5, 2),
    "prefix": Prefix(jnp.array([3, 11])),
    "segments": Segments(_IDS),
    "segments of keys": Segments(_IDS, _IDS[:, ::-1]),
    "lengths": Lengths(jnp.array([20, 24]), jnp.array([9, 23])),
    "strided": Strided(3),
    "where": Where(lambda b, h, q, k: (3 * q + k + _SHIFT[h] + b) % 4 != 0),
    "where by key": Where(
        lambda b, h, q, k, x, y: x + y > 0, per_query=_random(7, B, T), per_key=_random(8, B, N, T)
    ),
    "dense": Dense(_DENSE),
    "prefix | causal": Prefix(7) | Causal(),
    "documents": Causal() & Segments(_IDS),
    "~window & causal": ~Window(3, None) & Causal(),
    "strided | window": (Strided(4) | Window(2, 0)) & Causal(),
    "lengths & dense": Lengths(None, jnp.array([20, 24])) & Dense(_DENSE) & ~Strided(5),
}
MODS = {
    "none": lambda w: None,
    "alibi": lambda w: attnjax.alibi(w["slopes"]),
    "bias": lambda w: attnjax.bias(w["bias"]),
    "soft cap": lambda w: attnjax.soft_cap(w["cap"]),
    "relative bias": lambda w: attnjax.relative_bias(w["table"]),
    "function": lambda w: lambda s, b, h, q, k: s + w["slopes"][h] * jnp.cos(q - 2.0 * k + b),
    "declared": lambda w: (
        attnjax.score_mod(
            lambda s, b, h, q, k, x, y: s * x + y * w["cap"],
            per_head=w["slopes"],
            per_query=w["rows"],
        ),
        attnjax.temperature(w["slopes"]),
    ),
}
OPTIONS = {
    "plain": {},
    "sinks": {"sinks": True},
    "dropout": {"dropout": True},
    "stats": {"stats": True},
    "grouped": {"K": 2},
    "one key head": {"K": 1},
    "all": {"sinks": True, "dropout": True, "stats": True, "K": 2},
}
WEIGHTS = {
    "slopes": jnp.linspace(0.1, 1.3, N),
    "bias": _random(3, 1, N, T, T),
    "cap": jnp.float32(3.0),
    "table": _random(4, N, 9),
    "rows": _random(5, B, T),
}
# The factors that the issue of sharding names.
PRODUCT = {
    "mask": [*MASKS],
    "mod": ["none", "alibi", "bias", "soft cap"],
    "option": ["sinks", "dropout", "stats", "grouped"],
}


@functools.cache
def mesh_of(*sizes: int) -> Mesh:
    names = ("data", "model", "seq")
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * 3)


def result(mask, mod, option, partition, dtype="float32", implementation=None):
    """Values, statistics and all gradients of a call."""
    chosen = OPTIONS[option]
    K = chosen.get("K", N)
    q, k, v = (
        _random(seed, B, T, *shape).astype(dtype)
        for seed, shape in ((0, (N, H)), (1, (K, H)), (2, (K, D)))
    )
    towards = _random(6, B, T, N, D)

    def loss(q, k, v, weights, sinks):
        found = attnjax.attention(
            q,
            k,
            v,
            mask=MASKS[mask],
            score_mod=MODS[mod](weights),
            sinks=sinks if chosen.get("sinks") else None,
            dropout=attnjax.Dropout(0.3, jax.random.key(9)) if chosen.get("dropout") else None,
            stats=chosen.get("stats", False),
            partition=partition,
            implementation=implementation,
        )
        out, stats = found if chosen.get("stats") else (found, None)
        total = jnp.sum(out * towards)
        if stats is not None:
            finite = jnp.where(jnp.isfinite(stats.logsumexp), stats.logsumexp, 0)
            total += jnp.sum(finite * jnp.cos(jnp.arange(T)))
            total += jnp.sum(stats.entropy * jnp.sin(jnp.arange(T)))
        return total, (out, stats)

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True))
    (_, values), grads = run(q, k, v, WEIGHTS, jnp.linspace(-1.0, 1.0, N))
    return values, grads


def check(mask, mod, option, *methods, mesh=(2, 1, 4), **kwargs):
    want = result(mask, mod, option, None, **kwargs)
    largest = max(_largest(x) for x in jax.tree.leaves(want[1]))
    tolerance = 3e-5 if kwargs.get("dtype", "float32") == "float32" else 2e-2
    for method in methods:
        with jax.set_mesh(mesh_of(*mesh)):
            got = result(mask, mod, option, Partition("data", "model", "seq", method), **kwargs)
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            # The gradient of a number is a sum over all scores, whose terms may cancel.
            scale = max(1.0, _largest(y) if y.ndim else largest)
            np.testing.assert_allclose(
                np.asarray(x, np.float32),
                np.asarray(y, np.float32),
                rtol=tolerance,
                atol=tolerance * scale,
                err_msg=method,
            )


def _largest(x: Array) -> float:
    return float(np.max(np.abs(np.where(np.isfinite(x), x, 0)), initial=0.0))


def _some(count: int, skipped: int = 0) -> list[tuple]:
    factors = {"mask": [*MASKS], "mod": [*MODS], "option": [*OPTIONS], "method": METHODS}
    return spread(factors, count)[skipped:]


@pytest.mark.parametrize(("mask", "mod", "option", "method"), _some(4))
def test_equals_the_call_on_one_device(mask, mod, option, method):
    check(mask, mod, option, method)


@pytest.mark.slow
@pytest.mark.parametrize("mod", PRODUCT["mod"])
@pytest.mark.parametrize("mask", PRODUCT["mask"])
def test_every_combination(mask, mod):
    for option in PRODUCT["option"]:
        check(mask, mod, option, *METHODS)


@pytest.mark.slow
@pytest.mark.parametrize(("mask", "mod", "option", "method"), _some(50, skipped=4))
def test_equals_the_call_on_one_device_in_more_cases(mask, mod, option, method):
    check(mask, mod, option, method)


def test_two_by_two_by_two():
    check("documents", "relative bias", "all", "ring", mesh=(2, 2, 2))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ulysses", "allgather"])
def test_other_methods_on_two_by_two_by_two(method):
    check("documents", "relative bias", "all", method, mesh=(2, 2, 2))


def test_bfloat16():
    check("causal", "alibi", "stats", "ring", dtype="bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ulysses", "allgather"])
def test_bfloat16_by_other_methods(method):
    check("causal", "alibi", "stats", method, dtype="bfloat16")


def test_key_heads_that_do_not_divide_over_the_heads_axis():
    check("causal", "none", "one key head", "allgather", mesh=(1, 4, 2))


def test_key_heads_that_lie_across_query_heads_of_a_device():
    q, kv = _random(0, 1, 8, 6, 4), _random(1, 1, 8, 3, 4)
    want = attnjax.attention(q, kv, kv, mask=Causal())
    mesh = jax.make_mesh((2, 4), ("seq", "rest"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        got = attnjax.attention(
            q, kv, kv, mask=Causal(), partition=Partition(sequence="seq", method="ulysses")
        )
    np.testing.assert_allclose(got, want, atol=3e-6)


def test_dropout_drops_the_same_weights():
    # Values that tell which keys were kept: row s of v is the s-th unit vector.
    q, k = _random(0, B, T, N, H), _random(1, B, T, N, H)
    v = jnp.broadcast_to(jnp.eye(T)[None, :, None], (B, T, N, T))
    dropout = attnjax.Dropout(0.5, jax.random.key(3))
    want = attnjax.attention(q, k, v, dropout=dropout) == 0
    assert 0.4 < np.mean(want) < 0.6
    for method in METHODS:
        with jax.set_mesh(mesh_of(2, 1, 4)):
            partition = Partition("data", None, "seq", method)
            got = attnjax.attention(q, k, v, dropout=dropout, partition=partition) == 0
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "method", ["ring", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS[1:])]
)
def test_a_sequence_that_attends_to_another(method):
    S = 16
    q, k, v = _random(0, B, T, N, H), _random(1, B, S, 2, H), _random(2, B, S, 2, D)
    mask = (Causal(offset=S - T) | Prefix(3)) & Segments(_IDS, _IDS[:, 4 : 4 + S])

    def loss(q, k, v, table, partition=None):
        out, stats = attnjax.attention(
            q,
            k,
            v,
            mask=mask,
            score_mod=attnjax.relative_bias(table),
            stats=True,
            partition=partition,
        )
        return jnp.sum(jnp.sin(out)) + jnp.sum(stats.entropy), stats

    grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True), static_argnames="partition")
    given = q, k, v, WEIGHTS["table"]
    want = grad(*given)
    with jax.set_mesh(mesh_of(2, 1, 4)):
        got = grad(*given, partition=Partition("data", None, "seq", method))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=3e-5, atol=3e-5)
