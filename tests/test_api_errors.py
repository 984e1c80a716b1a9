"""Bad arrays and options: each error names the argument, what was expected and what came."""

import jax
import jax.numpy as jnp
import pytest

import attnjax
from tests.bad_inputs import KEY, B, Bad, D, H, K, N, Q, S, T, assert_refused, attend, zeros

BAD = {
    "q is a list": Bad(attend([1.0]), "q", r"float array \[B, T, N, H\]", "list"),
    "q is None": Bad(attend(None), "q", "float array", "NoneType"),
    "q rank": Bad(attend(zeros(T, N, H)), "q", r"\[B, T, N, H\]", r"\(5, 4, 3\)"),
    "k rank": Bad(attend(Q, zeros(B, S, H)), "k", r"\[B, S, K, H\]", r"\(2, 7, 3\)"),
    "v rank": Bad(attend(Q, KEY, zeros(S, K, D, 1, 1)), "v", r"\[B, S, K, D\]", r"\(7, 2, 6"),
    "q dtype": Bad(attend(zeros(B, T, N, H, dtype=jnp.int32)), "q", "float array", "int32"),
    "k dtype": Bad(attend(Q, zeros(B, S, K, H, dtype=jnp.complex64)), "k", "float", "complex64"),
    "v dtype": Bad(attend(Q, KEY, zeros(B, S, K, D, dtype=bool)), "v", "float", "bool"),
    "mixed dtypes": Bad(
        attend(Q.astype(jnp.bfloat16)), "q, k, v", "one dtype", "bfloat16, float32, float32"
    ),
    "k batch": Bad(attend(Q, zeros(3, S, K, H)), "k", "2, the batch size B of q", "3"),
    "v batch": Bad(attend(Q, KEY, zeros(3, S, K, D)), "v", "2, the batch size B of q", "3"),
    "k width": Bad(attend(Q, zeros(B, S, K, 8)), "k", "3, the head width H of q", "8"),
    "v length": Bad(attend(Q, KEY, zeros(B, 9, K, D)), "v", "7, the length S of k", "9"),
    "v heads": Bad(attend(Q, KEY, zeros(B, S, 4, D)), "v", "2, the number of heads K of k", "4;"),
    "N and K": Bad(
        attend(Q, zeros(B, S, 3, H), zeros(B, S, 3, D)), "q", "N.*multiple of k's K=3", "N=4"
    ),
    "no key heads": Bad(
        attend(Q, zeros(B, S, 0, H), zeros(B, S, 0, D)), "q", "multiple of k's K=0", "N=4"
    ),
    "no width": Bad(
        attend(zeros(B, T, N, 0), zeros(B, S, K, 0)), "q", "head width H of at least 1", r"4, 0\)"
    ),
    "no value width": Bad(
        attend(Q, KEY, zeros(B, S, K, 0)), "v", "head width D of at least 1", r"2, 0\)"
    ),
    "scale shape": Bad(attend(scale=zeros(N)), "scale", "a scalar.*temperature", r"\(4,\)"),
    "scale string": Bad(attend(scale="1"), "scale", "a number", "'1'"),
    "scale infinite": Bad(attend(scale=float("inf")), "scale", "finite", "inf"),
    "scale integers": Bad(attend(scale=jnp.int32(2)), "scale", "float scalar array", "dtype=int32"),
    "scale bool": Bad(attend(scale=True), "scale", "a number", "True"),
    "sinks list": Bad(attend(sinks=[0.0] * N), "sinks", r"float array \[N=4\]", "list"),
    "sinks shape": Bad(attend(sinks=zeros(K)), "sinks", r"\[N=4\]", r"\(2,\)"),
    "sinks dtype": Bad(attend(sinks=zeros(N, dtype=jnp.int32)), "sinks", "float array", "int32"),
    "dropout number": Bad(attend(dropout=0.1), "dropout", r"Dropout\(rate, key\) or None", "float"),
    "dropout rate 1": Bad(
        lambda: attnjax.Dropout(1.0, jax.random.key(0)), r"Dropout\.rate", r"\[0, 1\)", r"1\.0"
    ),
    "dropout rate negative": Bad(
        lambda: attnjax.Dropout(-0.1, jax.random.key(0)), r"Dropout\.rate", r"\[0, 1\)", r"-0\.1"
    ),
    "dropout rate traced": Bad(
        lambda: jax.jit(lambda r: attnjax.Dropout(r, jax.random.key(0)))(0.5),
        r"Dropout\.rate",
        "a number",
        "JitTracer|Traced",
    ),
    "dropout seed": Bad(
        attend(dropout=attnjax.Dropout(0.1, 0)), r"Dropout\.key", "PRNG key", "int"
    ),
    "dropout without key": Bad(
        attend(dropout=attnjax.Dropout(0.1, None)), r"Dropout\.key", "PRNG key", "NoneType"
    ),
    "dropout keys": Bad(
        attend(dropout=attnjax.Dropout(0.1, jax.random.split(jax.random.key(0)))),
        r"Dropout\.key",
        "single PRNG key",
        r"\(2,\)",
    ),
    "dropout raw key": Bad(
        attend(dropout=attnjax.Dropout(0.1, zeros(3, dtype=jnp.uint32))),
        r"Dropout\.key",
        "single PRNG key",
        r"\(3,\)",
    ),
    "dropout floats": Bad(
        attend(dropout=attnjax.Dropout(0.1, zeros(2))), r"Dropout\.key", "PRNG key", "float32"
    ),
    "dropout shared": Bad(
        lambda: attnjax.Dropout(0.1, jax.random.key(0), "K"), r"Dropout\.shared", "B, N", "'K'"
    ),
    "precision": Bad(
        attend(precision="best"), "precision", "'default', 'high', 'highest'", "'best'"
    ),
    "stats": Bad(attend(stats=1), "stats", "True or False", "1"),
    "stats string": Bad(attend(stats="yes"), "stats", "True or False", "'yes'"),
    "implementation": Bad(
        attend(implementation="flash"), "implementation", "None or one of blockwise", "'flash'"
    ),
    "implementation list": Bad(
        attend(implementation=["reference"]), "implementation", "None or one of", "'reference'"
    ),
    "partition": Bad(attend(partition="data"), "partition", "attnjax.Partition", "'data'"),
}


@pytest.mark.parametrize("name", BAD)
def test_the_error_names_argument_expectation_and_value(name: str) -> None:
    assert_refused(BAD[name])


def test_the_same_errors_come_while_tracing() -> None:
    for name in ("k width", "sinks shape", "scale shape", "dropout keys"):
        with pytest.raises(ValueError, match=BAD[name].argument):
            jax.eval_shape(BAD[name].call)
