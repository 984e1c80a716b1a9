"""NaN and infinity reach the rows that see them and nothing else, on every implementation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from tests.conformance import Attend
from tests.edges import ATTENDS, N, T, arrays, assert_empty, differentiate


@pytest.fixture(
    # The interpreter takes its time: by default kernels meet drawn cases only.
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if name == "tpu" else [])
        for name in sorted(ATTENDS)
    ]
)
def attend(request: pytest.FixtureRequest) -> Attend:
    return ATTENDS[request.param]


HIDING = {
    "prefix": attnjax.Prefix(3),
    "lengths": attnjax.Lengths(None, np.array([3, 2])) | attnjax.Lengths(None, 2),
    "dense": attnjax.Dense(np.array([True, True, True, False, False])),
    "segments": attnjax.Segments(np.zeros(T, np.int32), np.array([0, 0, 0, 1, 1], np.int32)),
    "where": attnjax.Where(lambda b, h, q, k: k < 3),
}


@pytest.mark.first(3)
@pytest.mark.parametrize("traced", [False, True], ids=["", "traced"])
@pytest.mark.parametrize("how", sorted(HIDING))
def test_masked_nan_and_inf_reach_nothing(attend: Attend, how: str, traced: bool) -> None:
    q, k, v = arrays()
    table = jnp.linspace(-1, 1, N * 5).reshape(N, 5)

    def f(q: Any, k: Any, v: Any, table: Any, temperature: Any, mask: Any) -> Any:
        mods = (
            attnjax.relative_bias(table),
            attnjax.soft_cap(2.0),
            attnjax.temperature(temperature),
            lambda s, b, h, q, k: jnp.sqrt(jnp.abs(s) + 0.1),
        )
        return attend(q, k, v, score_mod=mods, mask=mask)

    mask = HIDING[how]
    if traced:
        arrays_of_mask, structure = jax.tree.flatten(mask)
        run = differentiate(lambda *x: f(*x[:5], jax.tree.unflatten(structure, x[5:])))
        extra = tuple(map(jnp.asarray, arrays_of_mask))
    else:
        run, extra = differentiate(lambda *x: f(*x, mask)), ()
    rest = (table, jnp.float32(1.5), *extra)
    clean = run(q, k, v, *rest)
    for value in (np.nan, np.inf, -np.inf):
        for spoiled in (
            (k.at[:, 3:].set(value), v),
            (k, v.at[:, 3:, :, 0].set(value)),
            (k.at[:, 4, 1, 2].set(value), v.at[:, 3].set(value)),
        ):
            found = run(q, *spoiled, *rest)
            for x, want in zip(jax.tree.leaves(found), jax.tree.leaves(clean), strict=True):
                if x.dtype != jax.dtypes.float0:
                    np.testing.assert_allclose(x, want, rtol=2e-5, atol=1e-6)


IDS = np.array([0, 0, 1, 1, 1, 2, 2], np.int32)
SEEING_KEY_3 = {
    "causal": (attnjax.Causal(), np.arange(7) >= 3),
    "segments": (attnjax.Segments(IDS), IDS == 1),
    "both": (attnjax.Segments(IDS) & attnjax.Causal(), (IDS == 1) & (np.arange(7) >= 3)),
}


@pytest.mark.first(1)
@pytest.mark.parametrize("how", sorted(SEEING_KEY_3))
def test_a_visible_nan_reaches_the_rows_that_see_it_and_no_other(attend: Attend, how: str) -> None:
    q, k, v = arrays(T=7, S=7)
    mask, sees = SEEING_KEY_3[how]
    at = np.arange(7)
    untouched = ~np.asarray(mask.at(0, 0, at[:, None], at[None, :]))[sees].any(0)
    run = differentiate(lambda *x: attend(*x, mask=mask))
    (want, want_stats), (want_dq, want_dk, want_dv) = run(q, k, v)
    close = {"rtol": 2e-5, "atol": 1e-6}
    for value in (np.nan, np.inf):
        for bad_k, bad_v in ((k.at[:, 3].set(value), v), (k, v.at[:, 3].set(value))):
            (out, stats), (dq, dk, dv) = run(q, bad_k, bad_v)
            assert np.isnan(out[:, sees]).all()
            assert np.isnan(stats.logsumexp[:, :, sees]).all()
            np.testing.assert_allclose(out[:, ~sees], want[:, ~sees], **close)
            for x, y in zip(stats, want_stats, strict=True):
                np.testing.assert_allclose(x[:, :, ~sees], y[:, :, ~sees], **close)
            np.testing.assert_allclose(dq[:, ~sees], want_dq[:, ~sees], **close)
            np.testing.assert_allclose(dk[:, untouched], want_dk[:, untouched], **close)
            np.testing.assert_allclose(dv[:, untouched], want_dv[:, untouched], **close)


def test_a_nan_in_a_query_stays_in_its_row(attend: Attend) -> None:
    q, k, v = arrays()
    run = jax.jit(lambda q: attend(q, k, v, mask=attnjax.Lengths(6, None)))
    want, _ = run(q)
    others = np.ones((T, N), bool)
    others[2, 1] = False
    for value in (np.nan, np.inf):
        out, stats = run(q.at[:, 2, 1].set(value).at[:, 6].set(value))
        assert np.isnan(out[:, 2, 1]).all()
        np.testing.assert_allclose(out[:, others], want[:, others], rtol=2e-5, atol=1e-6)
        assert_empty(out, stats, [6])
