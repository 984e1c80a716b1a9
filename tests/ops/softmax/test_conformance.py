"""Every implementation against the reference, over drawn calls, in values and all gradients.

Compiling a case takes seconds, so a quick run draws few, and a full run 126 in each of the shares.
A case that an implementation cannot compute does not count.
"""

from typing import Any

import jax.numpy as jnp
import pytest
from hypothesis import given, reject, seed, settings
from hypothesis import strategies as st

from tests.conformance import IMPLEMENTATIONS, KERNELS, Case, cases, check, implementation

SHARES = [(jnp.float32, n) for n in range(4)] + [(jnp.bfloat16, n) for n in range(4, 6)]
# Cases in each share of a quick run, if not 2: 60 in all for kernels, which little else tests.
QUICK = {"tpu": 10}


@pytest.mark.parametrize("name", sorted(IMPLEMENTATIONS))
@pytest.mark.parametrize(
    ("dtype", "share"), SHARES, ids=[f"{jnp.dtype(dtype)}-{share}" for dtype, share in SHARES]
)
def test_values_and_all_gradients(name: str, dtype: Any, share: int) -> None:
    most = settings.default.max_examples
    count = QUICK.get(name, 2) if most <= 20 else most // 4 + 1

    @seed(share)
    @settings(max_examples=count)
    @given(case=cases(), options=st.sampled_from(IMPLEMENTATIONS[name]))
    def drawn(case: Case, options: dict[str, int]) -> None:
        try:
            check(implementation(name, **options), case, dtype)
        except NotImplementedError as error:
            # Some functions drawn look up a table by q - k, and a kernel cannot.
            assert name in KERNELS and "index an array by position" in str(error)
            reject()

    drawn()
