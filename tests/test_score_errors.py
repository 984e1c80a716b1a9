"""Bad score_mods: each error names the argument, what was expected and what came."""

import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from attnjax import score_mod
from tests.bad_inputs import Bad, K, N, S, T, assert_refused, attend, zeros

BAD = {
    "bias array as score_mod": Bad(
        attend(score_mod=zeros(T, S)), "score_mod", r"function fn\(score.*attnjax\.bias", "Array"
    ),
    "list of score_mods": Bad(
        attend(score_mod=[attnjax.soft_cap(2.0)]), "score_mod", "a tuple of them", "list"
    ),
    "tuple with a number": Bad(
        attend(score_mod=(attnjax.soft_cap(2.0), 3)), "score_mod", "tuple of them", "int"
    ),
    "score_mod shape": Bad(
        attend(score_mod=lambda s, b, h, q, k: s[..., :1]),
        "score_mod",
        r"shape of its scores, \(.*, 5, 7\)",
        r"5, 1\)",
    ),
    "score_mod sum": Bad(
        attend(score_mod=lambda s, b, h, q, k: s.sum()), "score_mod", "shape of its", r"\(\)"
    ),
    "score_mod dtype": Bad(
        attend(score_mod=lambda s, b, h, q, k: s.astype(jnp.int32)), "score_mod", "float", "int32"
    ),
    "score_mod bool": Bad(
        attend(score_mod=lambda s, b, h, q, k: q >= k), "score_mod", "float scores", "bool"
    ),
    "score_mod nothing": Bad(
        attend(score_mod=lambda s, b, h, q, k: None), "score_mod", "float scores", "NoneType"
    ),
    "declared shape": Bad(
        attend(score_mod=score_mod(lambda s, b, h, q, k, x: x, per_head=zeros(N))),
        "score_mod",
        "shape of its scores",
        "1, 1",
    ),
    "declared without function": Bad(lambda: score_mod(3), r"score_mod\.fn", "a function", "int"),
    "declared number": Bad(
        lambda: score_mod(abs, per_head=2.0), r"score_mod\.per_head", "arrays", "float"
    ),
    "declared rank": Bad(
        lambda: score_mod(abs, per_query=zeros(1, 1, 1, T)),
        r"score_mod\.per_query",
        r"\[T\] or \[B, T\] or \[B, N, T\]",
        r"\(1, 1, 1, 5\)",
    ),
    "declared length": Bad(
        attend(score_mod=score_mod(lambda s, b, h, q, k, x: s, per_key={"a": zeros(T)})),
        r"score_mod\.per_key",
        "S=7",
        r"\(5,\)",
    ),
    "declared heads": Bad(
        attend(score_mod=score_mod(lambda s, b, h, q, k, x: s, per_head=zeros(K))),
        r"score_mod\.per_head",
        "N=4",
        r"\(2,\)",
    ),
    "alibi of no heads": Bad(lambda: attnjax.alibi(0), r"alibi\.slopes", "at least one", "0"),
    "alibi list": Bad(lambda: attnjax.alibi([0.5]), r"alibi\.slopes", "float array", "list"),
    "alibi integers": Bad(
        lambda: attnjax.alibi(np.arange(4)), r"alibi\.slopes", "float array", "int64"
    ),
    "alibi heads": Bad(attend(score_mod=attnjax.alibi(8)), r"alibi\.slopes", "N=4", r"\(8,\)"),
    "cap zero": Bad(lambda: attnjax.soft_cap(0), r"soft_cap\.cap", "positive finite", "0"),
    "cap nan": Bad(
        lambda: attnjax.soft_cap(float("nan")), r"soft_cap\.cap", "positive finite", "nan"
    ),
    "cap per head": Bad(
        lambda: attnjax.soft_cap(zeros(N)), r"soft_cap\.cap", "a scalar", r"\(4,\)"
    ),
    "temperature negative": Bad(
        lambda: attnjax.temperature(-1.0), "temperature", "positive finite", r"-1\.0"
    ),
    "temperature rank": Bad(
        lambda: attnjax.temperature(zeros(1, 1, N)), "temperature", r"\[N\]", r"\(1, 1, 4\)"
    ),
    "bias integers": Bad(
        lambda: attnjax.bias(zeros(T, S, dtype=jnp.int32)), "bias", "float array", "int32"
    ),
    "bias rank": Bad(
        lambda: attnjax.bias(zeros(1, 1, 1, T, S)), "bias", "at most 4", r"\(1, 1, 1, 5, 7\)"
    ),
    "bias shape": Bad(
        attend(score_mod=attnjax.bias(zeros(K, T, S))), "bias", "N=4, T=5, S=7", r"\(2, 5, 7\)"
    ),
    "relative bias rank": Bad(
        lambda: attnjax.relative_bias(zeros(5)), r"relative_bias\.table", r"\[N, C\]", r"\(5,\)"
    ),
    "relative bias even": Bad(
        lambda: attnjax.relative_bias(zeros(N, 6)), r"relative_bias\.table", "odd number", "6"
    ),
    "relative bias kind": Bad(
        lambda: attnjax.relative_bias(zeros(N, 5), kind="T5"),
        r"relative_bias\.kind",
        "'clipped' or 't5'",
        "'T5'",
    ),
    "relative bias heads": Bad(
        attend(score_mod=attnjax.relative_bias(zeros(K, 5))),
        r"relative_bias\.table",
        "N=4",
        r"\(2, 5\)",
    ),
    "too few buckets": Bad(
        lambda: attnjax.relative_bias(zeros(N, 3), kind="t5"),
        "relative_bias",
        "1 <= 0 exact buckets < max_distance",
        "3 buckets",
    ),
    "activation": Bad(
        lambda: attnjax.activated("gelu"), r"activated\.activation", "identity, relu", "'gelu'"
    ),
    "activated per_key rank": Bad(
        lambda: attnjax.activated(per_key=zeros(1, 1, 1, S)),
        r"activated\.per_key",
        r"\[S\] or",
        r"\(1, 1, 1, 7\)",
    ),
    "activated per_key length": Bad(
        attend(score_mod=attnjax.activated(per_key=zeros(T))),
        r"activated\.per_key",
        "S=7",
        r"\(5,\)",
    ),
    "activated bias": Bad(
        lambda: attnjax.activated(bias="x"), r"activated\.bias", "float array", "str"
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_the_error_names_argument_expectation_and_value(name: str) -> None:
    assert_refused(BAD[name])
