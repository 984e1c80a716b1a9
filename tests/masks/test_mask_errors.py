"""Bad masks: each error names the argument, what was expected and what came."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from attnjax import Where
from tests.bad_inputs import B, Bad, K, N, S, T, assert_refused, attend, zeros

IDS_T, IDS_S = zeros(T, dtype=jnp.int32), zeros(S, dtype=jnp.int32)


def segments(q: Any, kv: Any = None) -> Callable[[], Any]:
    return attend(mask=attnjax.Segments(q, kv))


BAD = {
    "float mask": Bad(attend(mask=zeros(T, S)), "mask", "bool array", "float32"),
    "0/1 mask": Bad(attend(mask=zeros(T, S, dtype=jnp.int32)), "mask", r"bool.*astype", "int32"),
    "mask is a list": Bad(attend(mask=[[True]]), "mask", r"bool array .*\[B, N, T, S\]", "list"),
    "mask is a class": Bad(attend(mask=attnjax.Causal), "mask", "a Mask or a bool", "type"),
    "mask is True": Bad(attend(mask=True), "mask", "a Mask or a bool array", "bool"),
    "mask is a string": Bad(attend(mask="causal"), "mask", "a Mask or a bool array", "str"),
    "mask rank": Bad(
        attend(mask=zeros(1, B, N, T, S, dtype=bool)), "mask", "at most 4", r"\(1, 2, 4, 5, 7\)"
    ),
    "mask shape": Bad(attend(mask=zeros(S, T, dtype=bool)), "mask", r"\[T=5, S=7\]", r"\(7, 5\)"),
    "mask heads": Bad(attend(mask=zeros(B, K, T, S, dtype=bool)), "mask", "N=4", r"\(2, 2, 5, 7\)"),
    "mask inside": Bad(
        attend(mask=attnjax.Causal() & zeros(3, S, dtype=bool)), "mask", "T=5, S=7", r"\(3, 7\)"
    ),
    "mask and float": Bad(lambda: attnjax.Causal() | zeros(T, S), "mask", "bool array", "float32"),
    "number and mask": Bad(lambda: 3 & attnjax.Causal(), "mask", "a Mask or a bool", "int"),
    "Causal float": Bad(lambda: attnjax.Causal(1.0), r"Causal\.offset", "integer", r"1\.0"),
    "Causal bool": Bad(lambda: attnjax.Causal(True), r"Causal\.offset", "integer", "True"),
    "Causal too far": Bad(
        lambda: attnjax.Causal(2**31 - 1), r"Causal\.offset", r"within \+-2\*\*30", "2147483647"
    ),
    "Causal rank": Bad(
        lambda: attnjax.Causal(zeros(2, 2, dtype=jnp.int32)),
        r"Causal\.offset",
        r"\[\] or \[B\]",
        r"\(2, 2\)",
    ),
    "Causal batch": Bad(
        attend(mask=attnjax.Causal(zeros(3, dtype=jnp.int32))),
        r"Causal\.offset",
        r"\[B=2\]",
        r"\(3,\)",
    ),
    "Window float": Bad(
        lambda: attnjax.Window(zeros(2), 0), r"Window\.left", "integer array", "float32"
    ),
    "Window open by infinity": Bad(
        lambda: attnjax.Window(3, float("inf")), r"Window\.right", "integer", "inf"
    ),
    "Window string": Bad(lambda: attnjax.Window("3", 0), r"Window\.left", "integer", "'3'"),
    "Window too far": Bad(
        lambda: attnjax.Window(0, 2**40), r"Window\.right", r"2\*\*30.*pass None", "1099511627776"
    ),
    "Prefix none": Bad(lambda: attnjax.Prefix(None), r"Prefix\.length", "integer", "None"),
    "Prefix batch": Bad(
        attend(mask=attnjax.Prefix(np.array([1, 2, 3]))), r"Prefix\.length", "B=2", r"\(3,\)"
    ),
    "Lengths float": Bad(
        lambda: attnjax.Lengths(3, np.ones(2)), r"Lengths\.kv", "integer array", "float64"
    ),
    "Lengths rank": Bad(
        lambda: attnjax.Lengths(zeros(2, 1, dtype=jnp.int32), None),
        r"Lengths\.q",
        r"\[\] or \[B\]",
        r"\(2, 1\)",
    ),
    "Lengths batch": Bad(
        attend(mask=attnjax.Lengths(None, zeros(4, dtype=jnp.int32))),
        r"Lengths\.kv",
        "B=2",
        r"\(4,\)",
    ),
    "Segments list": Bad(lambda: attnjax.Segments([0, 1]), r"Segments\.q_ids", "array", "list"),
    "Segments float": Bad(
        lambda: attnjax.Segments(zeros(T)), r"Segments\.q_ids", "integer array", "float32"
    ),
    "Segments rank": Bad(
        lambda: attnjax.Segments(IDS_T, zeros(1, 1, S, dtype=jnp.int32)),
        r"Segments\.kv_ids",
        r"\[S\] or \[B, S\]",
        r"\(1, 1, 7\)",
    ),
    "Segments scalar": Bad(
        lambda: attnjax.Segments(jnp.int32(3)), r"Segments\.q_ids", r"\[T\] or \[B, T\]", r"\(\)"
    ),
    "Segments length": Bad(segments(IDS_S, IDS_S), r"Segments\.q_ids", "T=5", r"\(7,\)"),
    "Segments key length": Bad(segments(IDS_T, IDS_T), r"Segments\.kv_ids", "S=7", r"\(5,\)"),
    "Segments for T != S": Bad(segments(IDS_T), r"Segments\.q_ids \(as kv_ids\)", "S=7", r"\(5,\)"),
    "Segments batch": Bad(
        segments(zeros(3, T, dtype=jnp.int32), IDS_S), r"Segments\.q_ids", "B=2, T=5", r"\(3, 5\)"
    ),
    "Segments that wrap": Bad(
        lambda: attnjax.Segments(np.array([0, 2**32])), r"Segments\.q_ids", "int32", "4294967296"
    ),
    "Strided zero": Bad(lambda: attnjax.Strided(0), r"Strided\.stride", "positive integer", "0"),
    "Strided negative": Bad(
        lambda: attnjax.Strided(-2), r"Strided\.stride", "positive integer", "-2"
    ),
    "Strided array": Bad(
        lambda: attnjax.Strided(jnp.int32(2)), r"Strided\.stride", "positive integer", "Array"
    ),
    "Where without function": Bad(lambda: Where(zeros(3)), r"Where\.fn", "function fn", "Array"),
    "Where gives numbers": Bad(
        attend(mask=Where(lambda b, h, q, k: q - k)), r"Where\.fn", "bool result", "int32"
    ),
    "Where gives nothing": Bad(
        attend(mask=Where(lambda b, h, q, k: None)), r"Where\.fn", "bool result", "NoneType"
    ),
    "Where shape": Bad(
        attend(mask=Where(lambda b, h, q, k: zeros(9, 9, dtype=bool))),
        r"Where\.fn",
        "broadcasts to its index arrays",
        r"\(9, 9\)",
    ),
    "Where numbers": Bad(
        lambda: Where(lambda *a: True, per_query=[1, 2]), r"Where\.per_query", "arrays", "int"
    ),
    "Where rank": Bad(
        lambda: Where(lambda *a: True, per_key=jnp.int32(1)),
        r"Where\.per_key",
        r"\[S\] or \[B, S\] or \[B, N, S\]",
        r"\(\)",
    ),
    "Where length": Bad(
        attend(mask=Where(lambda b, h, q, k, x: x == 0, per_key=IDS_T)),
        r"Where\.per_key",
        "S=7",
        r"\(5,\)",
    ),
    "Where rule": Bad(
        lambda: Where(lambda *a: True, block_rule=3), r"Where\.block_rule", "function", "int"
    ),
    "mask truth": Bad(
        lambda: bool(attnjax.Causal(2)), "mask", r"&, \| and ~ instead", r"Causal\(offset=2"
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_the_error_names_argument_expectation_and_value(name: str) -> None:
    assert_refused(BAD[name])
