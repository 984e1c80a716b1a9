"""The reference against loops over positions in float64, in values and by finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import attnjax
from tests import oracle
from tests.conformance import (
    Case,
    assert_close,
    cases,
    evaluate,
    implementation,
    judge,
    loops,
    values,
)
from tests.drawing import Sizes

# Every finite difference runs the loops twice per number, so gradients get the smallest sizes that
# tell the axes apart; values get larger ones.
TINY = st.sampled_from(
    [Sizes(B=2, T=2, S=3, N=2, K=1, H=2, D=1), Sizes(B=1, T=4, S=3, N=4, K=2, H=1, D=2)]
)
reference = implementation("reference")


@given(cases(TINY))
def test_values_and_gradients_are_those_of_the_contract(case: Case) -> None:
    assert_close(evaluate(reference, case), judge(case), 2e-5, case.size)


@pytest.mark.slow
@given(cases())
def test_values_at_larger_sizes_are_those_of_the_contract(case: Case) -> None:
    assert_close(values(reference, case), loops(case, case.arrays)._asdict(), 2e-5, case.size)


def test_float64_inputs_are_computed_in_float64() -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(1, 5, 2, 3)) for name in "qkv"}
    want = oracle.attention(**arrays, allowed=lambda b, h, i, j: i >= j)
    with jax.enable_x64(True):
        out, stats = attnjax.attention(
            **arrays, mask=attnjax.Causal(), implementation="reference", stats=True
        )
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, want.out, rtol=1e-13, atol=1e-13)
        assert all(x.dtype == jnp.float32 for x in stats)
