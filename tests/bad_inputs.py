"""What the tables of bad inputs share: calls that must fail, and what their messages must say."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

import attnjax

B, T, S, N, K, H, D = 2, 5, 7, 4, 2, 3, 6
Q, KEY, V = jnp.ones((B, T, N, H)), jnp.ones((B, S, K, H)), jnp.ones((B, S, K, D))


class Bad(NamedTuple):
    """A call, and what its message must say: which argument, what was expected, what came."""

    call: Callable[[], Any]
    argument: str
    expected: str
    got: str
    kind: type[Exception] = ValueError


def attend(*arrays: Any, **options: Any) -> Callable[[], Any]:
    """Returns a call with the good arrays where none are given."""
    q, k, v = (*arrays, *(Q, KEY, V)[len(arrays) :])
    return lambda: attnjax.attention(q, k, v, **options)


def zeros(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.zeros(shape, dtype)


def assert_refused(bad: Bad) -> None:
    """Checks that a call raises, and that the message has all three parts."""
    with pytest.raises(bad.kind) as caught:
        bad.call()
    message = str(caught.value)
    assert re.search(bad.argument, message.split(":")[0]), message
    assert re.search(bad.expected, message, re.DOTALL), message
    assert re.search(rf"(got|Got|mask) .*{bad.got}", message, re.DOTALL), message
