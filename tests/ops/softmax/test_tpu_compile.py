"""The TPU kernels go through the TPU's compiler: chips, widths, masks, score_mods and extras.

320 combinations hold every pair of values, and run in the blocks that a user gets. The first 40
hold nearly every pair; by default they run in smaller blocks, which compile five times as fast.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import attnjax
from attnjax.ops.softmax import tpu
from attnjax.validate import make_problem
from tests.aot import TARGETS, Arrays, lower_for, with_gradients
from tests.pairs import Combination, all_pairs, pairs, spread

B, T, N, GROUPED = 1, 2048, 8, 2

MASKS: dict[str, Callable[[Any], Any]] = {
    "full": lambda x: None,
    "causal": lambda x: attnjax.Causal(),
    "window": lambda x: attnjax.Window(300, 0),
    "segments": lambda x: attnjax.Segments(x["ids"]),
    "prefix | causal": lambda x: attnjax.Prefix(100) | attnjax.Causal(),
    "strided": lambda x: attnjax.Strided(7),
    "where": lambda x: attnjax.Where(lambda b, h, q, k: x["ids"][b, q] == x["ids"][b, k]),
    "dense": lambda x: attnjax.Dense(x["dense"]),
    "documents": lambda x: attnjax.Causal() & attnjax.Segments(x["ids"]),
}
SCORE_MODS: dict[str, Callable[[Any], Any]] = {
    "none": lambda x: None,
    "alibi": lambda x: attnjax.alibi(x["slopes"]),
    "soft cap": lambda x: attnjax.soft_cap(x["cap"]),
    "relative bias": lambda x: attnjax.relative_bias(x["table"]),
    "dense bias": lambda x: attnjax.bias(x["bias"]),
}
EXTRAS = ("plain", "sinks", "dropout", "stats", "grouped heads")
FACTORS = {
    "target": tuple(TARGETS),
    "H": (64, 80, 128, 256),
    "mask": tuple(name for name in MASKS if name != "documents"),
    "score_mod": tuple(SCORE_MODS),
    "extra": EXTRAS,
}
CASES = spread(FACTORS, 320)
CORE = 40
# Kernels with a branch of their own, for blocks inside one document.
DOCUMENTS = (
    ("v6e", 128, "documents", "none", "stats"),
    ("v5e", 64, "documents", "soft cap", "grouped heads"),
    ("v5p", 80, "documents", "relative bias", "dropout"),
    ("tpu7x", 256, "documents", "dense bias", "sinks"),
)
SHAPES: dict[str, tuple[tuple[int, ...], Any]] = {
    "ids": ((B, T), jnp.int32),
    "dense": ((1, 1, T, T), jnp.bool_),
    "slopes": ((N,), jnp.float32),
    "cap": ((), jnp.float32),
    "table": ((N, 65), jnp.float32),
    "bias": ((1, N, T, T), jnp.float32),
    "sinks": ((N,), jnp.float32),
    "key": ((2,), jnp.uint32),
}
# What each value of a factor reads, of SHAPES.
READS = {
    "segments": "ids",
    "documents": "ids",
    "where": "ids",
    "dense": "dense",
    "alibi": "slopes",
    "soft cap": "cap",
    "relative bias": "table",
    "dense bias": "bias",
    "sinks": "sinks",
    "dropout": "key",
}


def case(
    combination: Combination, dtype: Any = jnp.bfloat16, **options: int
) -> tuple[Callable, Arrays]:
    """Returns a call of arrays by name, and their shapes; options are `attend`'s."""
    _, H, mask, score_mod, extra = combination
    K = GROUPED if extra == "grouped heads" else N
    shapes = {"q": ((B, T, N, H), dtype), "k": ((B, T, K, H), dtype), "v": ((B, T, K, H), dtype)}
    names = [READS[value] for value in (mask, score_mod, extra) if value in READS]
    shapes |= {name: SHAPES[name] for name in names}

    def attend(x: dict[str, Any]) -> Any:
        problem = make_problem(
            x["q"],
            x["k"],
            x["v"],
            mask=MASKS[mask](x),
            score_mod=SCORE_MODS[score_mod](x),
            scale=None,
            sinks=x.get("sinks"),
            dropout=attnjax.Dropout(0.1, x["key"]) if "key" in x else None,
            precision=None,
            stats=extra == "stats",
        )
        tpu.check(problem)
        return tpu.attend(problem, **options)

    return attend, {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def named(combination: Combination) -> str:
    return ", ".join(str(value) for value in combination)


@pytest.mark.parametrize("combination", (*CASES[:CORE], *DOCUMENTS[:1]), ids=named)
def test_forward_and_backward_compile_in_small_blocks(combination: Combination) -> None:
    assert_compiles(combination, block_q=256, block_k=256)


@pytest.mark.parametrize("combination", CASES[:: len(CASES) // 2], ids=named)
def test_float32_compiles_in_small_blocks(combination: Combination) -> None:
    assert_compiles(combination, jnp.float32, block_q=256, block_k=256)


@pytest.mark.slow
@pytest.mark.parametrize("combination", (*CASES, *DOCUMENTS), ids=named)
def test_forward_and_backward_compile(combination: Combination) -> None:
    assert_compiles(combination)


@pytest.mark.slow
@pytest.mark.parametrize("combination", CASES[::8], ids=named)
def test_float32_compiles(combination: Combination) -> None:
    assert_compiles(combination, jnp.float32)


def assert_compiles(combination: Combination, dtype: Any = jnp.bfloat16, **options: int) -> None:
    attend, arrays = case(combination, dtype, **options)
    lowered = lower_for(combination[0], with_gradients(attend), arrays)
    for kernel in ("attnjax_forward", "attnjax_backward_keys"):
        assert kernel in lowered.as_text()
    lowered.compile()


def test_every_pair_of_values_is_among_the_cases() -> None:
    assert len(set(CASES)) == len(CASES) >= 300
    assert {pair for c in CASES for pair in pairs(c)} == all_pairs(FACTORS)
    core = {pair for c in CASES[:CORE] for pair in pairs(c)}
    assert len(core) >= 0.97 * len(all_pairs(FACTORS))


@pytest.mark.slow
@pytest.mark.parametrize("mask", [attnjax.Causal(), attnjax.Window(4095, 0)], ids=repr)
def test_a_million_positions_take_memory_in_proportion(mask: attnjax.Mask) -> None:
    per_position = []
    for length in (2**18, 2**20):
        arrays = {n: jax.ShapeDtypeStruct((1, length, N, 128), jnp.bfloat16) for n in "qkv"}

        def attend(x: dict[str, Any]) -> tuple[Any, None]:
            out = attnjax.attention(x["q"], x["k"], x["v"], mask=mask, implementation="tpu")
            return out, None

        compiled = lower_for("v5p", with_gradients(attend), arrays).compile()
        memory = compiled.memory_analysis().temp_size_in_bytes
        print(f"{mask}, T={length}: {memory / length:.1f} bytes of temporaries for each position")
        per_position.append(memory / length)
    assert per_position[1] <= 1.01 * per_position[0]
    # Three times what q, k and v take.
    assert per_position[1] <= 3 * 3 * N * 128 * 2
