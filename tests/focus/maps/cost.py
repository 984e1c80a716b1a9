"""What maps of a long sequence cost, beside a forward pass: `python -m tests.focus.maps.cost`.

Prints, for each mask, the temporaries of both programs in MiB, the median seconds of runs in turn,
and their ratio. Takes minutes; `--length 8192 --repeats 3` is quicker.
"""

import argparse
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import attnjax
from attnjax.focus import maps

HEADS, WIDTH = 8, 64
MASKS = {"causal": attnjax.Causal(), "full": attnjax.Full()}


class Programs(NamedTuple):
    """Compiled: attention of (q, k, v), and three maps of (q, k, logsumexp)."""

    attention: Any
    maps: Any


def programs(length: int, mask: attnjax.Mask) -> Programs:
    """Compiles for float32 arrays of 1 sequence and 8 heads of width 64."""
    x = jax.ShapeDtypeStruct((1, length, HEADS, WIDTH), jnp.float32)
    logsumexp = jax.ShapeDtypeStruct((1, HEADS, length), jnp.float32)

    def look(q: jax.Array, k: jax.Array, logsumexp: jax.Array) -> tuple[Any, ...]:
        found = maps.weights(q, k, mask=mask, logsumexp=logsumexp)
        return maps.look(found, maps.Pooled(256, 256), maps.Received(), maps.TopEdges(16))

    attend = jax.jit(lambda q, k, v: attnjax.attention(q, k, v, mask=mask))
    return Programs(attend.lower(x, x, x).compile(), jax.jit(look).lower(x, x, logsumexp).compile())


def temporaries(program: Any) -> float:
    """MiB of memory beside arguments and results."""
    return program.memory_analysis().temp_size_in_bytes / 2**20


def seconds(length: int, mask: attnjax.Mask, repeats: int) -> tuple[float, float]:
    """Medians of attention and of the maps, run in turn after one run of each."""
    run = programs(length, mask)
    shape = (1, length, HEADS, WIDTH)
    q, k, v = (jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 3))
    logsumexp = jax.jit(lambda q, k: maps.weights(q, k, mask=mask).logsumexp)(q, k)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for kept, program, last in zip(times, run, (v, logsumexp), strict=True):
            start = time.perf_counter()
            jax.block_until_ready(program(q, k, last))
            kept.append(time.perf_counter() - start)
    attention, look = (statistics.median(kept[1:]) for kept in times)
    return attention, look


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=32768)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    print(f"T = S = {chosen.length}, B = 1, N = K = {HEADS}, H = {WIDTH}, float32")
    for name, mask in MASKS.items():
        attend, look = (temporaries(program) for program in programs(chosen.length, mask))
        print(f"{name}: temporaries {attend:.0f} MiB attention, {look:.0f} MiB maps", flush=True)
        attention, look = seconds(chosen.length, mask, chosen.repeats)
        print(
            f"{name}: {attention:.2f} s attention, {look:.2f} s maps, ratio {look / attention:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
