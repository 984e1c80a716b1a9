"""Penalties beside short float64 computations, and what their gradients do to attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import attnjax
from attnjax.focus.heads import HeadStats
from attnjax.focus.steady import entropy_penalty, z_loss

B, T, S, N, H = 2, 5, 7, 3, 4


def stats_of(scale=1.0, mask=None, sinks=None):
    q, k, v = (jax.random.normal(jax.random.key(n), (B, x, N, H)) for n, x in enumerate((T, S, S)))
    return attnjax.attention(q, k, v, mask=mask, sinks=sinks, scale=scale, stats=True)[1]


def heads(**given):
    fields = {name: jnp.zeros(N) for name in HeadStats._fields}
    return HeadStats(**{**fields, **{name: jnp.asarray(x) for name, x in given.items()}})


def expected(rows, used, weight=None):
    """Mean over heads of the weighted mean over rows."""
    mass = np.broadcast_to(used, rows.shape).astype(np.float64)
    if weight is not None:
        mass = mass * np.asarray(weight)[:, None]
    return np.mean((rows * mass).sum((0, 2)) / np.maximum(mass.sum((0, 2)), 1e-30))


def test_floor_and_ceiling_of_rows():
    stats = stats_of(3.0)
    entropy = np.asarray(stats.entropy, np.float64)
    weight = jnp.array([[1, 1, 0.5, 0, 0], [1, 1, 1, 1, 0]])
    low, high = (0.8 - entropy).clip(0) ** 2, (entropy - 0.3).clip(0) ** 2
    assert (low > 0).any() and (high > 0).any()
    every = np.ones_like(entropy, bool)
    close = np.testing.assert_allclose
    close(entropy_penalty(stats, floor=0.8), expected(low, every), rtol=1e-5)
    close(entropy_penalty(stats, ceiling=0.3), expected(high, every), rtol=1e-5)
    close(
        entropy_penalty(stats, floor=0.8, ceiling=0.3, weight=weight),
        expected(low + high, every, weight),
        rtol=1e-5,
    )
    strength = jnp.array([0.0, 2.0, 0.0])
    only = entropy_penalty(stats, floor=jnp.array([9.0, 0.8, 9.0]), strength=strength)
    close(only, 2 * low[:, 1].mean() / N, rtol=1e-5)


def test_shares_count_the_keys_that_a_query_may_see():
    mask = attnjax.Causal() & attnjax.Prefix(jnp.array([0, 4]))
    stats = stats_of(3.0, mask)
    keys = np.minimum(np.arange(T) + 1, np.array([0, 4])[:, None])[:, None]
    used = keys > 1
    most = np.log(np.where(used, keys, 2))
    entropy = np.asarray(stats.entropy, np.float64)
    found = entropy_penalty(stats, floor=0.9, share=True, keys=jnp.asarray(keys))
    rows = (0.9 - entropy / most).clip(0) ** 2
    np.testing.assert_allclose(found, expected(rows, used), rtol=1e-5)
    # In nats, nobody asks for more than the mask allows; and rows that see nothing cost nothing.
    found = entropy_penalty(stats, floor=1.2, keys=jnp.asarray(keys))
    rows = (np.minimum(1.2, most) - entropy).clip(0) ** 2
    np.testing.assert_allclose(found, expected(rows, used), rtol=1e-5)
    without = entropy_penalty(stats, floor=1.2)
    rows = (1.2 - entropy).clip(0) ** 2
    np.testing.assert_allclose(without, expected(rows, keys > 0), rtol=1e-5)


def test_z_loss_leaves_out_rows_that_see_nothing():
    stats = stats_of(1.0, attnjax.Prefix(jnp.array([0, 3])))
    lse = np.asarray(stats.logsumexp, np.float64)[1]
    np.testing.assert_allclose(z_loss(stats), np.mean(lse**2), rtol=1e-5)
    weight = jnp.zeros((B, T)).at[1, 2].set(3.0)
    np.testing.assert_allclose(z_loss(stats, weight=weight), np.mean(lse[:, 2] ** 2), rtol=1e-5)
    assert float(z_loss(stats, weight=jnp.zeros((B, T)))) == 0


def test_layers_and_means_of_heads():
    one, other = stats_of(1.0), stats_of(2.0)
    both = attnjax.AttentionStats(*(jnp.stack(x) for x in zip(one, other, strict=True)))
    strength = jnp.array([[1.0, 2.0, 0.0], [0.5, 1.0, 3.0]])
    for f in (functools.partial(entropy_penalty, floor=1.5), z_loss):
        parts = [f(s, strength=w) for s, w in zip((one, other), strength, strict=True)]
        np.testing.assert_allclose(f(both, strength=strength), np.mean(parts), rtol=1e-5)
    means = heads(entropy=[0.5, 1.0, jnp.nan], share=[0.1, 0.4, jnp.nan], logsumexp_sq=[2.0, 4, 6])
    np.testing.assert_allclose(entropy_penalty(means, floor=0.75), 0.0625 / 3, rtol=1e-5)
    np.testing.assert_allclose(entropy_penalty(means, floor=0.2, share=True), 0.01 / 3, rtol=1e-5)
    np.testing.assert_allclose(z_loss(means, strength=jnp.array([1.0, 0, 1])), 8 / 3, rtol=1e-5)
    grad = jax.grad(lambda x: entropy_penalty(means._replace(share=x), floor=0.2, share=True))
    np.testing.assert_allclose(grad(means.share), [-0.2 / 3, 0, 0], rtol=1e-5)


def test_gradients_are_finite_and_raise_the_entropy():
    mask = attnjax.Causal(offset=-1)  # the first query sees nothing
    schedule = optax.linear_schedule(0.0, 0.9, 10)

    def cost(q, step):
        k = jax.random.normal(jax.random.key(1), (B, S, N, H))
        _, stats = attnjax.attention(q, k, k, mask=mask, stats=True)
        keys = jnp.arange(T)
        return entropy_penalty(stats, floor=schedule(step), share=True, keys=keys) + 1e-4 * z_loss(
            stats
        )

    q = 2 * jax.random.normal(jax.random.key(0), (B, T, N, H))
    costs = []
    step = jax.jit(jax.value_and_grad(cost))
    for _ in range(30):
        value, grad = step(q, 10)
        assert np.isfinite(np.asarray(grad)).all()
        costs.append(float(value))
        q = q - 3.0 * grad
    assert costs[-1] < 0.5 * costs[0]
    assert float(cost(q, 0)) < float(cost(q, 10))


def test_errors_say_what_is_missing():
    stats = stats_of()
    with pytest.raises(ValueError, match="got neither"):
        entropy_penalty(stats)
    with pytest.raises(ValueError, match="expected keys"):
        entropy_penalty(stats, floor=0.1, share=True)
    with pytest.raises(ValueError, match="expected weight=None with HeadStats"):
        z_loss(heads(), weight=jnp.ones((B, T)))
    with pytest.raises(ValueError, match="expected keys=None with HeadStats"):
        entropy_penalty(heads(), floor=0.1, keys=3)
