"""The policy of `--steady auto`: levels rise and sink as they should, and nothing acts unseen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from attnjax.focus.heads import HeadStats
from attnjax.focus.steady import Auto, Heads, act, all_heads, remedies
from attnjax.nn import MultiHeadAttention

N = 3
HEADS = {"a": Heads(N, N), "stack.layers.b": Heads(N, 1, stack="stack.layers", num_layers=2)}
ONE = jnp.float32(1.0)


def stats_of(a, b=None):
    """Statistics with these largest logits, `[N]` and `[2, N]`."""
    b = np.ones((2, N)) if b is None else b
    logits = {"a": a, "stack.layers.0.b": b[0], "stack.layers.1.b": b[1]}
    nan = jnp.full(N, jnp.nan)
    return {
        path: HeadStats(*(nan for _ in HeadStats._fields))._replace(
            max_logit=jnp.asarray(x, jnp.float32)
        )
        for path, x in logits.items()
    }


@functools.partial(jax.jit, static_argnums=0)
def decide(policy, state, stats, loss=ONE, grad_norm=ONE):
    return policy.decide(state, stats, HEADS, loss=loss, grad_norm=grad_norm)


def test_healthy_heads_are_left_alone_and_say_so():
    policy = Auto(growth=50)
    state = policy.init(HEADS)
    for _ in range(3):
        state, actions = decide(policy, state, stats_of([1.0, 49.9, -jnp.inf]))
        assert remedies(actions, HEADS) == []
    assert all((x == 0).all() for x in state.level.values())
    assert all((x == 1).all() for x in [*actions.clip.values(), *actions.slow.values()])


def test_levels_rise_one_by_one_and_sink_when_calm():
    policy = Auto(growth=50, tighten=0.5, slow=0.25, levels=3, memory=4, calm=6)
    state, told, levels = policy.init(HEADS), [], []
    high = np.ones((2, N))
    high[1, 2] = 200.0
    for step in range(40):
        state, actions = decide(policy, state, stats_of([1.0] * N, high if step < 12 else None))
        assert int(sum(jnp.sum(x > 0) for x in actions.level.values())) <= 1
        found = remedies(actions, HEADS)
        assert all((x.module, x.head) == ("stack.layers.1.b", 2) for x in found)
        told += [(step, x.what, x.strength) for x in found]
        levels.append(int(actions.level["stack.layers.b"][1, 2]))
    # Up at once, then whenever more than half of about four records were over.
    assert levels[:12] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3]
    assert levels[12:] == [3] * 5 + [2] * 6 + [1] * 6 + [0] * 11
    assert told == [
        (0, "qk_clip", 50.0),
        (3, "qk_clip", 25.0),
        (3, "slow_query_key", 0.25),
        (6, "qk_clip", 12.5),
        (6, "slow_query_key", 0.0625),
        (17, "qk_clip", 25.0),
        (17, "slow_query_key", 0.25),
        (23, "qk_clip", 50.0),
        (23, "slow_query_key", 1.0),
        (29, "qk_clip", float("inf")),
    ]


def test_clip_follows_the_limit_of_the_level():
    policy = Auto(growth=50, tighten=0.5, memory=1)
    state = policy.init(HEADS)
    for limit in (50, 25, 12.5):
        state, actions = decide(policy, state, stats_of([100.0, 30.0, jnp.nan]))
        np.testing.assert_allclose(actions.limit["a"][0], limit)
        np.testing.assert_allclose(actions.clip["a"], [limit / 100, 1, 1])
    assert (state.level["a"] == jnp.array([3, 0, 3])).all()  # NaN counts as too large


def test_the_same_bits_whether_resumed_or_not():
    policy = Auto(growth=2.0, memory=3, calm=4)
    logits = np.random.default_rng(0).lognormal(0.7, 1.0, (30, N))
    state, seen = policy.init(HEADS), []
    for row in logits:
        state, actions = decide(policy, state, stats_of(row))
        seen.append((state, actions))
    assert len({int(x.level["a"][0]) for x, _ in seen}) > 2
    saved = jax.tree.map(np.asarray, seen[9][0])
    for row, expected in zip(logits[10:], seen[10:], strict=True):
        found = decide(policy, saved, stats_of(row))
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        saved = found[0]


@pytest.mark.parametrize(("loss", "norm"), [(jnp.nan, 1.0), (1.0, jnp.inf)])
def test_steps_that_are_not_finite_change_nothing(loss, norm):
    policy = Auto()
    _, actions = decide(policy, policy.init(HEADS), stats_of([1.0] * N), loss, jnp.float32(norm))
    (line,) = remedies(actions, HEADS)
    assert (line.module, line.head, line.what) == (None, None, "skip_update")
    model = MultiHeadAttention(4, num_heads=1, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    updates = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)
    heads = all_heads(model)
    assert set(heads) == {""}
    skip = actions._replace(clip={"": jnp.ones(1)}, slow={"": jnp.ones(1)})
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), act(updates, params, skip, heads))


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_acting_touches_what_the_actions_name(kv_heads):
    model = nnx.Dict(
        inner=MultiHeadAttention(8, num_heads=4, num_kv_heads=kv_heads, rngs=nnx.Rngs(0))
    )
    heads = all_heads(model)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    updates = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size) * 1.0).reshape(p.shape), params)
    policy = Auto(growth=10, slow=0.5, memory=1)
    stats = {"inner": stats_of([1.0])["a"]._replace(max_logit=jnp.array([1.0, 20.0, 3.0, 4.0]))}
    state = policy.init(heads)
    state, first = policy.decide(state, stats, heads, loss=ONE, grad_norm=ONE)
    _, second = policy.decide(state, stats, heads, loss=ONE, grad_norm=ONE)
    acts = jax.jit(functools.partial(act, heads=heads))
    none = second._replace(clip={"inner": jnp.ones(4)}, slow={"inner": jnp.ones(4)})
    jax.tree.map(np.testing.assert_array_equal, acts(updates, params, none), updates)
    slowed = second._replace(clip={"inner": jnp.ones(4)})
    found = acts(updates, params, slowed)["inner"]
    same, others = updates["inner"], np.array([0, 2, 3])
    np.testing.assert_allclose(found["query"]["kernel"][:, 1], same["query"]["kernel"][:, 1] / 2)
    np.testing.assert_array_equal(
        found["query"]["kernel"][:, others], same["query"]["kernel"][:, others]
    )
    key = np.array([1, 0.5, 1, 1]) if kv_heads == 4 else np.array([0.5, 1])
    np.testing.assert_allclose(found["key"]["kernel"], same["key"]["kernel"] * key[:, None])
    for side in ("value", "out"):
        jax.tree.map(np.testing.assert_array_equal, found[side], same[side])
    clipped = optax.apply_updates(params, acts(updates, params, first))["inner"]
    plain = optax.apply_updates(params, updates)["inner"]
    share = 0.5 if kv_heads == 2 else 0.5**0.5
    np.testing.assert_allclose(
        clipped["query"]["kernel"][:, 1], share * plain["query"]["kernel"][:, 1], rtol=1e-5
    )


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"Auto\.growth"):
        Auto(growth=0)
    with pytest.raises(ValueError, match=r"Auto\.slow"):
        Auto(slow=1.5)
    with pytest.raises(ValueError, match=r"Auto\.calm"):
        Auto(calm=0)
    with pytest.raises(ValueError, match=r"expected an array of shape \[2, 3\]"):
        decide(Auto(), Auto().init(HEADS), {"a": stats_of([1.0] * N)["a"]})
