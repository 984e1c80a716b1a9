"""How an implementation is chosen, and what an eager call may reuse."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from attnjax.ops.choosing import anything, choose


class _Candidate(NamedTuple):
    attend: Any = None
    check: Any = anything
    preferred: bool = True


def _refuse(problem: object) -> None:
    raise NotImplementedError(f"not for {problem}")


CANDIDATES = {
    "first": _Candidate(check=_refuse),
    "second": _Candidate(),
    "third": _Candidate(),
    "spec": _Candidate(preferred=False),
}


def test_none_takes_the_first_that_can_and_says_why_no_other() -> None:
    name, reasons = choose(CANDIDATES, "a call", None)
    assert name == "second"
    assert reasons.keys() == {"first", "third", "spec"}
    assert reasons["first"] == "not for a call" and reasons["third"] == "second comes first"
    assert "O(T * S) memory" in reasons["spec"]


def test_a_name_is_used_or_raises() -> None:
    name, reasons = choose(CANDIDATES, "a call", "spec")
    assert name == "spec" and set(reasons) == {"first", "second", "third"}
    assert set(reasons.values()) == {"implementation='spec' was asked for"}
    with pytest.raises(NotImplementedError, match="not for a call"):
        choose(CANDIDATES, "a call", "first")
    for wrong in ("fast", ["first"]):
        with pytest.raises(ValueError, match="expected None or one of first, second, spec, third"):
            choose(CANDIDATES, "a call", wrong)


@dataclasses.dataclass(eq=False)
class _Unregistered(attnjax.ScoreMod):
    """A ScoreMod of a user who did not make it a pytree; its factor may change between calls."""

    factor: Any

    def apply(self, score: jax.Array, index: Any, *tiles: jax.Array) -> jax.Array:
        return score * self.factor


@pytest.mark.first(1)
@pytest.mark.parametrize("implementation", ["blockwise", "reference"])
def test_a_score_mod_that_is_no_pytree_works_and_is_never_stale(implementation: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 5, 3, 7)), jnp.float32) for _ in range(3))
    mod = _Unregistered(0.5)

    def run(mod: Any) -> jax.Array:
        return attnjax.attention(q, k, v, score_mod=mod, implementation=implementation)

    for factor in (0.5, 2.0):
        mod.factor = factor
        want = attnjax.attention(q, k, v, scale=factor / np.sqrt(7), implementation="reference")
        np.testing.assert_allclose(run(mod), want, rtol=2e-5, atol=2e-5)
    slope = jax.grad(lambda factor: jnp.sum(run(_Unregistered(factor)) * v))(0.5)
    high, low = (jnp.sum(run(_Unregistered(0.5 + e)) * v) for e in (1e-2, -1e-2))
    np.testing.assert_allclose(slope, (high - low) / 2e-2, rtol=1e-2)
    assert "a function of yours" in str(attnjax.explain(q, k, v, score_mod=mod))
