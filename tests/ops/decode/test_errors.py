"""What `decode` and `quantize_kv` refuse, and how they say it."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import attnjax

Z = jnp.zeros
LEGAL: dict[str, Any] = {
    "q": Z((2, 1, 6, 5)),
    "k": Z((2, 11, 3, 5)),
    "v": Z((2, 11, 3, 7)),
    "length": 4,
}
INT8 = {"k": Z((2, 11, 3, 5), jnp.int8), "k_scale": jnp.ones((2, 11, 3))}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"q": [1.0]}, r"q: expected an array \[B, T, N, H\], got list"),
    ({"q": Z((2, 6, 5))}, r"q: expected an array \[B, T, N, H\].*got \(2, 6, 5\)"),
    ({"q": Z((2, 1, 6, 5), jnp.int32)}, r"q: expected floats.*int32"),
    ({"q": Z((2, 0, 6, 5))}, r"q: .*without an empty axis"),
    ({"q": Z((2, 12, 6, 5)), "length": 11}, r"q: expected at most the cache's 11.*T=12"),
    ({"q": Z((2, 5, 6, 5))}, r"length: expected at least T=5 and at most the capacity 11, got 4"),
    ({"q": Z((2, 1, 7, 5))}, r"q: expected a number of heads that is a multiple"),
    ({"k": Z((2, 11, 3, 4))}, r"k: expected the head width H=5"),
    ({"k": Z((3, 11, 3, 5)), "v": Z((3, 11, 3, 7))}, r"k: expected the batch size B=2"),
    ({"v": Z((2, 12, 3, 7))}, r"v: expected \(2, 11, 3\) before its last axis"),
    ({"k": Z((2, 11, 3, 5), jnp.bfloat16)}, r"k: expected the dtype of q, float32, got bfloat16"),
    ({"k": INT8["k"]}, r"k: expected the dtype of q.*needs k_scale"),
    ({"k_scale": jnp.ones((2, 11, 3))}, r"k_scale: expected k in eight bits, got dtype float32"),
    ({**INT8, "k_scale": jnp.ones((2, 11))}, r"k_scale: expected shape \(2, 11, 3\)"),
    ({**INT8, "k_scale": 1.0}, r"k_scale: expected a float array or None, got 1.0"),
    ({"length": 0}, r"length: expected at least T=1 and at most the capacity 11, got 0"),
    ({"length": 12}, r"length: .*got 12"),
    ({"length": np.array([4, 12])}, r"length: .*\[ 4 12\]"),
    ({"length": 4.0}, r"length: expected an integer.*4.0"),
    ({"length": True}, r"length: expected an integer"),
    ({"length": np.array([1, 2, 3])}, r"length: expected an integer or .*\(3,\)"),
    ({"layout": "ring"}, r"layout: expected attnjax.Contiguous\(\).*got str"),
    ({"layout": attnjax.Paged(Z((2, 3)))}, r"Paged.table: expected an integer array"),
    ({"layout": attnjax.Paged(Z((3, 3), jnp.int32))}, r"Paged.table: expected shape \[B=2, M\]"),
    ({"layout": attnjax.Ring()}, r"mask: expected one that reaches back at most 10"),
    ({"mask": Z((1, 1))}, r"mask: expected a bool array"),
    ({"mask": jnp.ones((1, 11), bool)[:, :9]}, r"mask: expected shape \[T=11, S=11\]"),
    ({"score_mod": attnjax.alibi(5)}, r"alibi.slopes: expected shape \[N=6\]"),
    ({"score_mod": 3}, r"score_mod: expected a function"),
    ({"scale": jnp.ones(6)}, r"scale: expected a scalar"),
    ({"sinks": jnp.ones(3)}, r"sinks: expected a float array \[N=6\]"),
    ({"implementation": "mps"}, r"implementation: expected None or one of .*xla; got 'mps'"),
    ({"precision": "exact"}, r"precision: expected None or one of"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m[:40] for _, m in BAD])
def test_errors_say_what_was_expected(change: dict[str, Any], message: str) -> None:
    attnjax.decode(**LEGAL)
    with pytest.raises(ValueError, match=message):
        attnjax.decode(**{**LEGAL, **change})


def test_quantizing_refuses_and_marks() -> None:
    with pytest.raises(ValueError, match="x: expected a float array, got int32"):
        attnjax.quantize_kv(jnp.ones(3, jnp.int32))
    with pytest.raises(ValueError, match="eight bits, got int16"):
        attnjax.quantize_kv(jnp.ones(3), jnp.int16)
    values, scale = attnjax.quantize_kv(jnp.asarray([[0.0, 0.0], [1.0, np.inf], [2.0, -1.0]]))
    assert (np.asarray(values) == [[0, 0], [0, 0], [127, -64]]).all()
    np.testing.assert_allclose(scale, [1, np.nan, 2 / 127])
