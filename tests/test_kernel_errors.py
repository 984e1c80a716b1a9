"""Calls that a kernel cannot do, or that nobody can: each message has what helps.

A wrong call names the argument, what was expected and what came; a call that one implementation
cannot do gets the reason and a remedy, and `implementation=None` does it all the same.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

import attnjax
from tests.bad_inputs import B, Bad, S, T, assert_refused, zeros

N, K, H = 4, 2, 64
Q, KEY = zeros(B, T, N, H, dtype=jnp.bfloat16), zeros(B, S, K, H, dtype=jnp.bfloat16)
TABLE = jnp.arange(16.0)
BYTES = jnp.zeros((B, S), jnp.int8)
MILLION = 2**20


class Refused(NamedTuple):
    """A call that one implementation cannot do, on some platform; why, and what to do instead."""

    implementation: str
    on: str
    reason: str
    remedy: str
    options: dict[str, Any] = {}  # noqa: RUF012
    arrays: tuple[Any, ...] = (Q, KEY, KEY)


def call(refused: Refused, implementation: str | None) -> Any:
    """Checks the call, and traces it where it is accepted, as if on the platform."""

    def run(*arrays: jax.Array) -> jax.Array:
        return attnjax.attention(*arrays, implementation=implementation, **refused.options)

    with attnjax.emulate(refused.on, interpret=False):
        return jax.eval_shape(run, *refused.arrays)


def arrays(T: int = T, S: int = S, H: int = H, D: int = H, dtype: Any = jnp.bfloat16) -> tuple:
    shapes = ((B, T, N, H), (B, S, K, H), (B, S, K, D))
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)


def by_both(s: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
    return s + TABLE[jnp.abs(q - k)]


BLOCKWISE, OTHER = "implementation='blockwise'", "implementation="
# cuDNN does not take it, and so is not chosen, for it could not even be traced here.
CAPPED = {"score_mod": attnjax.soft_cap(30.0)}
DROPOUT = attnjax.Dropout(0.1, jax.random.key(0))
REFUSED = {
    "tpu on a cpu": Refused("tpu", "cpu", "need a TPU.*on the cpu", r"attnjax\.emulate\('tpu'\)"),
    "tpu on a gpu": Refused(
        "tpu", "gpu", "need a TPU.*on the gpu", r"default_backend\(\) is 'tpu", CAPPED
    ),
    "tpu: float16": Refused(
        "tpu", "tpu", "q is of dtype float16", r"astype\('bfloat16'\)", arrays=arrays(dtype="f2")
    ),
    "tpu: wide keys": Refused(
        "tpu", "tpu", "a head of q and k is 320 wide", "narrower heads", arrays=arrays(H=320, D=64)
    ),
    "tpu: wide values": Refused(
        "tpu", "tpu", "a head of v is 512 wide.*at most 256", BLOCKWISE, arrays=arrays(D=512)
    ),
    "tpu: precision": Refused(
        "tpu", "tpu", "by default or in full float32", "precision=None", {"precision": "high"}
    ),
    "tpu: table of distances": Refused(
        "tpu",
        "tpu",
        "index an array by position",
        r"attnjax\.relative_bias",
        {"score_mod": by_both},
    ),
    "tpu: mask of both positions": Refused(
        "tpu",
        "tpu",
        "by the query's and the key's position together",
        r"attnjax\.Dense",
        {"mask": attnjax.Where(lambda b, h, q, k: TABLE[jnp.abs(q - k)] > 0)},
    ),
    "tpu: sort": Refused(
        "tpu",
        "tpu",
        r"cannot do on a tile \(sort\)",
        "elementwise",
        {"score_mod": lambda s, b, h, q, k: jnp.sort(s, axis=-1)},
    ),
    "tpu: bytes": Refused(
        "tpu",
        "tpu",
        "of dtype int8.*32 bits",
        r"astype\('int32'\)",
        {"mask": attnjax.Where(lambda b, h, q, k, x: x > q, per_key=BYTES)},
    ),
    "tpu: too long": Refused(
        "tpu",
        "tpu",
        "blocks, and a kernel numbers at most 8192",
        "shard the sequence",
        {"mask": attnjax.Causal()},
        arrays(T=16 * MILLION),
    ),
    "gpu on a cpu": Refused("gpu", "cpu", "need an NVIDIA GPU.*the cpu", r"emulate\('gpu'\)"),
    "gpu: dropout": Refused("gpu", "gpu", "have no dropout", OTHER, {"dropout": DROPOUT}),
    "gpu: precision": Refused(
        "gpu", "gpu", "precision .*cannot be chosen", "precision=None", {"precision": "highest"}
    ),
    "gpu: float32": Refused(
        "gpu", "gpu", "do not take float32", "Cast to bfloat16", arrays=arrays(dtype="f4")
    ),
    "gpu: width": Refused("gpu", "gpu", "64 or 128, got H=80", OTHER, CAPPED, arrays(H=80, D=80)),
    "gpu: table of distances": Refused(
        "gpu", "gpu", "index an array by position", r"attnjax\.bias", {"score_mod": by_both}
    ),
    "cudnn on a cpu": Refused("cudnn", "cpu", "runs on NVIDIA GPUs.*cpu", "interpret=False"),
    "cudnn: stats": Refused("cudnn", "gpu", "no statistics", "stats=False", {"stats": True}),
    "cudnn: score_mod": Refused(
        "cudnn", "gpu", "takes no score_mods", OTHER, {"score_mod": attnjax.soft_cap(30.0)}
    ),
    "cudnn: sinks": Refused("cudnn", "gpu", "takes no sinks", OTHER, {"sinks": zeros(N)}),
    "cudnn: dropout": Refused(
        "cudnn", "gpu", "dropout is not attnjax's", OTHER, {"dropout": DROPOUT}
    ),
    "cudnn: width": Refused(
        "cudnn", "gpu", "multiple of 8 up to", OTHER, arrays=arrays(H=60, D=60)
    ),
    "cudnn: mask": Refused(
        "cudnn", "gpu", "no such mask as Strided", OTHER, {"mask": attnjax.Strided(3)}
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_implementation_says_why_not_and_what_to_do(name: str) -> None:
    refused = REFUSED[name]
    with pytest.raises(NotImplementedError) as caught:
        call(refused, refused.implementation)
    assert re.search(refused.reason, str(caught.value)), caught.value
    assert re.search(refused.remedy, str(caught.value)), caught.value


@pytest.mark.parametrize("name", [n for n in REFUSED if "too long" not in n])
def test_none_finds_another_and_explains(name: str) -> None:
    refused = REFUSED[name]
    assert call(refused, None) is not None
    with attnjax.emulate(refused.on, interpret=False):
        plan = attnjax.explain(*refused.arrays, **refused.options)
    assert plan.implementation != refused.implementation
    reason = plan.reasons[refused.implementation]
    assert re.search(refused.reason, reason), reason


def decode(**changed: Any) -> Callable[[], Any]:
    given = {"q": Q[:, :1], "k": KEY, "v": KEY, "length": 4} | changed
    return lambda: attnjax.decode(**given)


def measure(**options: Any) -> Callable[[], Any]:
    return lambda: attnjax.autotune.measure(Q, KEY, KEY, **options)


def enter(name: Any) -> Callable[[], Any]:
    return lambda: attnjax.emulate(name).__enter__()


WRONG = {
    "emulate: unknown": Bad(enter("cuda"), "emulate", "one of cpu, gpu, tpu", "'cuda'"),
    "emulate: nothing": Bad(enter(None), "emulate", "one of cpu, gpu, tpu", "None"),
    "implementation": Bad(
        lambda: attnjax.attention(Q, KEY, KEY, implementation="pallas"),
        "implementation",
        "cudnn, gpu, reference, tpu",
        "'pallas'",
    ),
    "decode: cache": Bad(
        decode(k=zeros(B, S, K, H, dtype=jnp.int8)), "k", "bfloat16.*needs k_scale|dtype", "int8"
    ),
    "decode: length": Bad(decode(length=S + 1), "length", f"at most the capacity {S}", f"{S + 1}"),
    "decode: length of no integer": Bad(decode(length=4.0), "length", "an integer", "4.0"),
    "autotune: argument": Bad(
        measure(softcap=3.0), "measure", r"arguments of attnjax\.attention", "softcap"
    ),
    "autotune: repeats": Bad(measure(repeats=0), "repeats", "a positive integer", "0"),
    "autotune: implementation": Bad(
        measure(implementation="fastest"), "implementation", "None or one of", "'fastest'"
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_names_argument_expectation_and_value(name: str) -> None:
    assert_refused(WRONG[name])


def test_there_are_thirty() -> None:
    assert len(REFUSED) + len(WRONG) >= 30
