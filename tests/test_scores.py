"""score_mods by themselves; `tests/ops/softmax` checks them inside attention, with gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import attnjax
from attnjax.scores import t5_bucket
from tests.drawing import SIZES
from tests.drawing_scores import SCORE_MODS


@pytest.mark.parametrize("name", sorted(SCORE_MODS))
@given(data=st.data())
def test_a_score_mod_can_be_called_at_single_positions(name: str, data: st.DataObject) -> None:
    size = data.draw(SIZES)
    case = SCORE_MODS[name](data.draw, size)
    mod = case.build({n: jnp.asarray(x, jnp.float32) for n, x in case.arrays.items()})
    plain = case.plain(case.arrays)
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    at = [rng.integers(0, n, 6) for n in (size.B, size.N, size.T, size.S)]
    scores = rng.normal(size=6)
    want = [
        plain(*values) for values in zip(scores.tolist(), *(x.tolist() for x in at), strict=True)
    ]
    found = mod(jnp.asarray(scores, jnp.float32), *(jnp.asarray(x) for x in at))
    np.testing.assert_allclose(found, want, rtol=2e-5, atol=1e-6)


def test_alibi_has_the_slopes_of_the_paper() -> None:
    np.testing.assert_allclose(attnjax.alibi(8).slopes, [2.0**-n for n in range(1, 9)], rtol=1e-6)
    # For 12 heads: those of 8, then every other one of 16.
    want = [2.0**-n for n in range(1, 9)] + [2.0**-x for x in (0.5, 1.5, 2.5, 3.5)]
    np.testing.assert_allclose(attnjax.alibi(12).slopes, want, rtol=1e-6)
    np.testing.assert_allclose(attnjax.alibi(1).slopes, [2.0**-8], rtol=1e-6)


@pytest.mark.parametrize(
    ("bidirectional", "starts"),
    [
        # Where T5's buckets of 32 with max_distance 128 begin, in distance to the left.
        (True, [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]),
        (False, [*range(16), 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]),
    ],
)
def test_t5_buckets_begin_where_t5_begins_them(bidirectional: bool, starts: list[int]) -> None:
    distance = np.arange(400)
    want = np.searchsorted(starts, distance, side="right") - 1
    left = t5_bucket(
        jnp.asarray(-distance), num_buckets=32, bidirectional=bidirectional, max_distance=128
    )
    np.testing.assert_array_equal(left, want)
    right = t5_bucket(
        jnp.asarray(distance[1:]), num_buckets=32, bidirectional=bidirectional, max_distance=128
    )
    np.testing.assert_array_equal(right, want[1:] + 16 if bidirectional else 0 * want[1:])


def _call(mod: Any, dtype: Any = jnp.float32, **options: Any) -> jax.Array:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 5, 2, 3)), dtype) for _ in range(3))
    return attnjax.attention(q, k, v, score_mod=mod, **options)


@pytest.mark.first(1)
@pytest.mark.parametrize("implementation", ["reference", "blockwise"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_scores_arrive_scaled_in_float32_with_integer_positions(
    implementation: str, dtype: Any
) -> None:
    seen = []

    def mod(score: jax.Array, *index: jax.Array) -> jax.Array:
        seen.append((score.dtype, *(i.dtype for i in index)))
        assert jnp.broadcast_shapes(score.shape, *(i.shape for i in index)) == score.shape
        return score

    _call(mod, dtype, implementation=implementation)
    assert set(seen) == {(jnp.dtype(jnp.float32), *(jnp.dtype(jnp.int32),) * 4)}


def test_a_tuple_applies_from_left_to_right() -> None:
    cap, bias = attnjax.soft_cap(0.5), attnjax.bias(jnp.linspace(0, 3, 5))
    both = _call((cap, bias))
    one = _call(lambda s, b, h, q, k: bias(cap(s, b, h, q, k), b, h, q, k))
    np.testing.assert_allclose(both, one, rtol=2e-5, atol=1e-6)
    assert np.abs(np.asarray(both - _call((bias, cap)))).max() > 1e-2


MODS = {
    "alibi": lambda: attnjax.alibi(2),
    "soft_cap": lambda: attnjax.soft_cap(2.0),
    "temperature": lambda: attnjax.temperature(jnp.array([0.5, 2.0])),
    "bias": lambda: attnjax.bias(jnp.ones((5, 5))),
    "relative_bias": lambda: attnjax.relative_bias(jnp.arange(6.0).reshape(2, 3)),
    "activated": lambda: attnjax.activated("tanh", per_key=jnp.arange(5.0), bias=0.5),
    "declared": lambda: attnjax.score_mod(jnp_add, per_key=jnp.arange(5.0)),
}


def jnp_add(score: jax.Array, b: Any, h: Any, q: Any, k: Any, key: jax.Array) -> jax.Array:
    return score + key


@pytest.mark.parametrize("name", sorted(MODS))
def test_a_score_mod_is_a_pytree(name: str) -> None:
    mod = MODS[name]()
    want = _call(mod)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(mod))
    np.testing.assert_allclose(jax.jit(_call)(mod), want, rtol=2e-5, atol=1e-6)
    doubled = jax.tree.map(lambda x: 2 * x, mod)
    stacked = jax.tree.map(lambda x, y: jnp.stack([x, y]), mod, doubled)
    mapped = jax.vmap(_call)(stacked)
    np.testing.assert_allclose(mapped[0], want, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(mapped[1], _call(doubled), rtol=2e-5, atol=1e-6)


def test_the_general_activated_score() -> None:
    rng = np.random.default_rng(1)
    q, k, v = rng.normal(size=(3, 4)), rng.normal(size=(5, 4)), rng.normal(size=(5, 2))
    h, b_a = rng.normal(size=5), 0.3
    weights = np.exp(1 / (1 + np.exp(-(q @ k.T + h + b_a))))
    want = weights / weights.sum(-1, keepdims=True) @ v
    found = attnjax.attention(
        *(jnp.asarray(x, jnp.float32)[None, :, None] for x in (q, k, v)),
        scale=1.0,
        score_mod=attnjax.activated("sigmoid", per_key=jnp.asarray(h, jnp.float32), bias=b_a),
    )
    np.testing.assert_allclose(found[0, :, 0], want, rtol=2e-5)
