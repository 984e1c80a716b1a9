"""Measures attention on this machine's CPU against its peers, in one process, interleaved.

    python -m attnjax.bench.cpu                    # speed and the cost of statistics, T = 8192
    python -m attnjax.bench.cpu memory blocks      # temporaries at T = 32768; block classification
    python -m attnjax.bench.cpu decode             # one query against a cache of 32768 keys

Every contestant computes the same forward and backward pass, its outputs are compared before any
timing, and runs are interleaved, so that a drift of the machine's speed meets all alike. Ratios of
medians are what counts. torch takes part if it is installed.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import attnjax

DOCUMENTS = 16
WINDOW = 511
Run = Callable[[], Any]


def timings(runs: Mapping[str, Run], repeats: int) -> dict[str, list[float]]:
    """Returns the seconds of each contestant's runs, interleaved.

    Each timed run follows an untimed one of the same contestant, which finds its pages and caches
    as the other contestants, gigabytes and seconds of them, left them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            jax.block_until_ready(run())
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def gradients(attend: Callable[..., jax.Array], inputs: Sequence[jax.Array], cotangent: Any) -> Run:
    """Returns a run of the output and all gradients, compiled once."""

    def loss(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = attend(*qkv)
        return jnp.vdot(out, cotangent), out

    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    return lambda: compiled(*inputs)


def torch_gradients(inputs: Sequence[jax.Array], cotangent: jax.Array) -> Run:
    """Returns the same work in `torch.nn.functional.scaled_dot_product_attention`, causal."""
    import torch

    def tensor(x: jax.Array) -> Any:
        return torch.tensor(np.asarray(x)).transpose(1, 2).contiguous()

    q, k, v = qkv = [tensor(x).requires_grad_() for x in inputs]
    weights = tensor(cotangent)

    def run() -> tuple[np.ndarray, ...]:
        for x in qkv:
            x.grad = None
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        (out * weights).sum().backward()
        return (out.detach().transpose(1, 2).numpy(),)

    return run


def speed(T: int, repeats: int) -> Iterator[str]:
    """Times causal, windowed and packed attention against `jax.nn` and torch."""
    rng = np.random.default_rng(0)
    *inputs, cotangent = (
        jnp.asarray(rng.normal(size=(1, T, 8, 64)), jnp.float32) for _ in range(4)
    )
    ids = jnp.asarray(np.arange(T) * DOCUMENTS // T)[None]
    packed = attnjax.Causal() & attnjax.Segments(ids)
    dense = (ids[:, None, :, None] == ids[:, None, None, :]) & jnp.tril(jnp.ones((T, T), bool))

    def ours(mask: attnjax.Mask) -> Run:
        return gradients(lambda q, k, v: attnjax.attention(q, k, v, mask=mask), inputs, cotangent)

    def theirs(**options: Any) -> Run:
        return gradients(
            lambda q, k, v: jax.nn.dot_product_attention(q, k, v, **options), inputs, cotangent
        )

    window = attnjax.Causal() & attnjax.Window(WINDOW, 0)
    cases: dict[str, dict[str, Run]] = {
        "causal": {"attnjax": ours(attnjax.Causal()), "jax.nn": theirs(is_causal=True)},
        f"causal, window {WINDOW}": {
            "attnjax": ours(window),
            "jax.nn": theirs(is_causal=True, local_window_size=(WINDOW, 0)),
        },
        f"causal, {DOCUMENTS} documents": {
            "attnjax": ours(packed),
            "jax.nn": theirs(mask=dense),
        },
    }
    if importlib.util.find_spec("torch"):
        # In a case of its own and first: memory that jax.nn's n-by-n arrays went through is slower.
        beside = {"attnjax": ours(attnjax.Causal()), "torch": torch_gradients(inputs, cotangent)}
        cases = {"causal, beside torch": beside, **cases}
    for case, runs in cases.items():
        outputs = {name: _output(run) for name, run in runs.items()}
        for name, out in outputs.items():
            np.testing.assert_allclose(out, outputs["attnjax"], atol=2e-5, err_msg=name)
        medians = {name: statistics.median(s) for name, s in timings(runs, repeats).items()}
        for name, seconds in medians.items():
            ratio = seconds / medians["attnjax"]
            yield f"{case:24} {name:8} {seconds * 1e3:9.1f} ms   {ratio:6.2f} x attnjax"


def _output(run: Run) -> np.ndarray:
    result = run()
    return np.asarray(result[0][1] if isinstance(result[0], tuple) else result[0])


def stats(T: int, repeats: int) -> Iterator[str]:
    """Times forward and backward with and without statistics."""
    rng = np.random.default_rng(0)
    *inputs, cotangent = (
        jnp.asarray(rng.normal(size=(1, T, 8, 64)), jnp.float32) for _ in range(4)
    )

    def with_stats(*qkv: jax.Array) -> tuple[jax.Array, Any]:
        out, statistics = attnjax.attention(*qkv, mask=attnjax.Causal(), stats=True)
        return jnp.vdot(out, cotangent), statistics

    compiled = jax.jit(jax.value_and_grad(with_stats, argnums=(0, 1, 2), has_aux=True))
    plain = gradients(
        lambda q, k, v: attnjax.attention(q, k, v, mask=attnjax.Causal()), inputs, cotangent
    )
    # A difference of a few percent needs more runs than a factor does, and ratios of neighbours.
    seconds = timings({"without": plain, "with": lambda: compiled(*inputs)}, 8 * repeats)
    for name, own in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(own, seconds["without"], strict=True))
        yield (
            f"{name + ' statistics':24} {statistics.median(own) * 1e3:18.1f} ms   "
            f"{ratio:6.3f} x without"
        )


def memory(T: int, repeats: int) -> Iterator[str]:
    """Reports the compiler's temporaries of a causal forward and backward pass."""
    shape = jax.ShapeDtypeStruct((1, T, 8, 64), jnp.float32)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attnjax.attention(q, k, v, mask=attnjax.Causal()).sum()

    start = time.perf_counter()
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(shape, shape, shape).compile()
    seconds = time.perf_counter() - start
    inputs = 3 * shape.size * shape.dtype.itemsize
    analysis: Any = compiled.memory_analysis()
    temporaries = analysis.temp_size_in_bytes
    yield (
        f"T={T}: temporaries {temporaries / 2**20:.1f} MiB, {temporaries / inputs:.2f} times q, k "
        f"and v ({inputs / 2**20:.0f} MiB); a T-by-T array of scores: {8 * 4 * T * T / 2**30:.0f} "
        f"GiB; traced and compiled in {seconds:.1f} s"
    )


def blocks(T: int, repeats: int) -> Iterator[str]:
    """Classifies the blocks of long masks on the host."""
    rng = np.random.default_rng(0)
    ids: Any = np.sort(rng.integers(0, 1000, T)).astype(np.int32)
    masks = {
        "(Causal & Window(4096, 0)) | Prefix(512)": (
            (attnjax.Causal() & attnjax.Window(4096, 0)) | attnjax.Prefix(512)
        ),
        "Segments of 1,000 documents": attnjax.Segments(ids),
    }
    for name, mask in masks.items():
        start = time.perf_counter()
        kinds = mask.blocks(T, T)
        seconds = time.perf_counter() - start
        # Measured in a run of its own, for tracing slows the host down.
        tracemalloc.start()
        mask.blocks(T, T)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        counts = np.bincount(np.asarray(kinds).ravel(), minlength=3)
        yield (
            f"{name}: {seconds:.3f} s, {peak / 1e6:.0f} MB on the host; "
            f"{counts[0]:,} empty, {counts[1]:,} partial, {counts[2]:,} full"
        )


def decode(S: int, repeats: int) -> Iterator[str]:
    """Times one query against a cache, and reading that cache once."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, n, 8, 64)), jnp.float32) for n in (1, S, S))

    def read(q: jax.Array, k: jax.Array, v: jax.Array) -> list[jax.Array]:
        # Sums over few long columns: the fastest way in which XLA:CPU reads an array.
        parts = 64 if S % 64 == 0 else 1
        return [jnp.sum(x.reshape(parts, -1, 512), axis=1) for x in (k, v)]

    def ours(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attnjax.decode(q, k, v, length=S)

    def full(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attnjax.attention(q, k, v)

    runs: dict[str, Run] = {}
    for name, function in (("reading", read), ("decode", ours), ("attention", full)):
        compiled = jax.jit(function)
        runs[name] = functools.partial(compiled, q, k, v)
    np.testing.assert_allclose(runs["decode"](), runs["attention"](), atol=2e-5)
    size = (k.size + v.size) * 4
    medians = {name: statistics.median(s) for name, s in timings(runs, 10 * repeats).items()}
    for name, seconds in medians.items():
        yield (
            f"{name:24} {seconds * 1e3:9.2f} ms   {seconds / medians['reading']:6.2f} x reading "
            f"{size / 2**20:.0f} MiB at {size / medians['reading'] / 1e9:.0f} GB/s"
        )


# Each measurement with its own default length.
MEASUREMENTS: dict[str, tuple[Callable[[int, int], Iterator[str]], int]] = {
    "speed": (speed, 8192),
    "stats": (stats, 8192),
    "memory": (memory, 32768),
    "blocks": (blocks, 1 << 20),
    "decode": (decode, 32768),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the chosen measurements and prints what they found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measurements", nargs="*", metavar=" | ".join(MEASUREMENTS))
    parser.add_argument("--length", type=int, help="T, instead of each measurement's own")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each contestant")
    arguments = parser.parse_args(argv)
    chosen = arguments.measurements or ["speed", "stats"]
    if unknown := sorted(set(chosen) - MEASUREMENTS.keys()):
        parser.error(f"expected measurements of {', '.join(MEASUREMENTS)}; got {unknown}")
    if arguments.repeats < 1 or (arguments.length is not None and arguments.length < 1):
        parser.error("expected --repeats and --length of at least 1")
    device = jax.devices()[0]
    print(f"jax {jax.__version__}, {device.platform} {device.device_kind}", flush=True)
    for name in chosen:
        measure, length = MEASUREMENTS[name]
        for line in measure(arguments.length or length, arguments.repeats):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
