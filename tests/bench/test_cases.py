"""The cases are what their names say, and their operations are counted right."""

import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.bench import cases

SHAPE = cases.Shape(2, 64, 3, 16, "float32")


def test_masks_and_pairs():
    q, k = np.arange(64)[:, None], np.arange(64)[None]
    causal = q >= k
    expected = {
        "causal": causal,
        "documents": causal & (q // 4 == k // 4),
        "window": causal & (q - k <= 7),
        "soft_cap": causal,
        "bias": causal,
        "prefix": causal | (k < 16),
    }
    assert set(expected) == set(cases.NAMES)
    for name, mask in expected.items():
        work = cases.make(name, SHAPE)
        np.testing.assert_array_equal(work.dense[0, 0], mask, err_msg=name)
        assert work.pairs == mask.sum()
        assert work.flops("fwd") == 4 * 2 * 3 * 16 * mask.sum()
        assert work.flops("fwdbwd") == 3.5 * work.flops("fwd")


@pytest.mark.parametrize("name", cases.NAMES)
def test_the_same_seed_gives_the_same_work(name):
    first, second, other = (cases.make(name, SHAPE, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.inputs[0], second.inputs[0])
    assert not np.array_equal(first.inputs[0], other.inputs[0])
    assert (first.score_mod(first.extras) is None) == (name not in ("bias", "soft_cap"))


def test_an_unknown_case_is_refused():
    with pytest.raises(ValueError, match="expected one of causal, "):
        cases.make("dense", SHAPE)


def test_long_arrays_are_thinned_by_an_odd_step():
    x = jnp.arange(8192.0)[None, :, None, None]
    (found,) = cases.named((x,)).values()
    np.testing.assert_array_equal(found.ravel(), np.arange(0, 8192, 9))
    short = cases.named((x[:, :64], x[:, :64]))
    assert {n: len(v[0]) for n, v in short.items()} == {"out": 64, "dq": 64}
