"""What samplers leave to draw from, against NumPy, and what they draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.models.decode import GREEDY, Sampling
from attnjax.models.decode.sampling import choose, filtered, penalised

V = 13
LOGITS = np.random.default_rng(0).normal(0, 2, (5, V)).astype(np.float32)


def _distribution(logits, sampling):
    """The distribution that is drawn from, token by token, in float64."""
    scaled = logits.astype(np.float64) / sampling.temperature
    shares = np.exp(scaled - scaled.max())
    shares /= shares.sum()
    order = sorted(range(len(logits)), key=lambda token: -shares[token])
    kept = order[: sampling.top_k or len(order)]
    if sampling.top_p is not None:
        total, mass, few = sum(shares[kept]), 0.0, []
        for token in kept:
            few.append(token)
            mass += shares[token] / total
            if mass >= sampling.top_p:
                break
        kept = few
    if sampling.min_p is not None:
        kept = [token for token in kept if shares[token] >= sampling.min_p * shares.max()]
    result = np.zeros(len(logits))
    result[kept] = shares[kept] / shares[kept].sum()
    return result


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.3),
        Sampling(temperature=1e-30),
        Sampling(top_k=1),
        Sampling(top_k=4, temperature=2.0),
        Sampling(top_k=100),
        Sampling(top_p=1e-6),
        Sampling(top_p=0.6),
        Sampling(top_p=0.9, temperature=3.0),
        Sampling(top_p=1.0),
        Sampling(min_p=0.2),
        Sampling(min_p=0.0),
        Sampling(min_p=1.0),
        Sampling(top_k=6, top_p=0.8, min_p=0.15, temperature=1.7),
    ],
)
def test_filters_leave_the_distribution_of_their_definition(sampling):
    got = jax.nn.softmax(filtered(jnp.asarray(LOGITS), sampling))
    wanted = np.stack([_distribution(row, sampling) for row in LOGITS])
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)
    assert np.array_equal(np.asarray(got) > 0, wanted > 1e-40)


def test_tokens_as_likely_as_the_last_one_stay():
    logits = jnp.asarray([[1.0, 2.0, 1.0, 0.0, 1.0]])
    for sampling in (Sampling(top_k=2), Sampling(top_p=0.5)):
        kept = filtered(logits, sampling)[0] > -jnp.inf
        assert kept.tolist() == [True, True, True, False, True]


def test_what_is_not_allowed_is_never_kept():
    logits = jnp.asarray([[1.0, -jnp.inf, 0.5, -jnp.inf]])
    for sampling in (Sampling(), Sampling(top_k=3), Sampling(top_p=0.999), Sampling(min_p=0.0)):
        assert (filtered(logits, sampling)[0] > -jnp.inf).tolist() == [True, False, True, False]


def test_draws_stay_inside_the_support_and_reach_all_of_it():
    sampling, count = Sampling(top_k=5, top_p=0.95), 400
    keys = jax.random.split(jax.random.key(1), count)
    for row in LOGITS:
        logits = jnp.broadcast_to(jnp.asarray(row), (count, V))
        drawn = choose(logits, sampling, keys, jnp.arange(count))
        support = np.flatnonzero(_distribution(row, sampling))
        assert set(drawn.tolist()) <= set(support.tolist())
        # What has a share above 5 % is missed by all of 400 draws once in 800 million times.
        assert set(np.flatnonzero(_distribution(row, sampling) > 0.05)) <= set(drawn.tolist())


def test_draws_depend_on_key_and_position_alone():
    keys = jax.random.split(jax.random.key(2), 5)
    together = choose(jnp.asarray(LOGITS), Sampling(), keys, jnp.arange(5))
    for b in range(5):
        one = slice(b, b + 1)
        alone = choose(jnp.asarray(LOGITS[one]), Sampling(), keys[one], jnp.arange(5)[one])
        assert alone[0] == together[b]
    flat = jnp.zeros((64, V))
    keys = jnp.broadcast_to(keys[0], 64)
    assert len(set(choose(flat, Sampling(), keys, jnp.arange(64)).tolist())) > 5
    assert len(set(choose(flat, Sampling(), keys, jnp.full(64, 7)).tolist())) == 1


def test_greedy_takes_the_largest_whatever_the_filters():
    for sampling in (GREEDY, Sampling(temperature=0, top_k=3, top_p=0.2, min_p=0.9)):
        got = choose(jnp.asarray(LOGITS), sampling, None, jnp.zeros(5, jnp.int32))
        np.testing.assert_array_equal(got, LOGITS.argmax(axis=1))


def test_the_repetition_penalty_makes_seen_tokens_less_likely():
    seen = np.random.default_rng(1).random((5, V)) < 0.5
    got = penalised(jnp.asarray(LOGITS), jnp.asarray(seen), 1.5)
    wanted = np.where(LOGITS > 0, LOGITS / 1.5, LOGITS * 1.5)
    np.testing.assert_allclose(got, np.where(seen, wanted, LOGITS), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"Sampling\.temperature: expected a number from 0"),
        ({"temperature": float("nan")}, r"Sampling\.temperature"),
        ({"top_k": 0}, r"Sampling\.top_k: expected at least 1, or None for all tokens; got 0"),
        ({"top_p": 0.0}, r"Sampling\.top_p: expected a number in \(0, 1\]"),
        ({"top_p": 1.1}, r"Sampling\.top_p"),
        ({"min_p": -0.1}, r"Sampling\.min_p: expected a number in \[0, 1\]"),
        ({"repetition_penalty": 0.0}, r"Sampling\.repetition_penalty: expected a positive number"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)
