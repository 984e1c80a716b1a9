"""Measures how fast tokens are generated on the CPU, beside the transformers library.

    python -m attnjax.bench.generate                        # 42 million parameters, float32
    python -m attnjax.bench.generate --batch 1 --rounds 9 --json generate.json

One small Llama with random weights is saved by transformers and loaded here, so that both have the
same weights. Both decode greedily, the same prompts to the same length, with a cache of that size;
the tokens must be identical before anything is timed. Runs of the two alternate, so that a drift
of the machine's speed meets both, and the ratio of their medians is what counts. A run is a whole
call: making the cache, reading the prompt and all steps. torch gets the number of threads with
which it is the fastest in short tries beforehand; JAX takes its own.

Needs torch, transformers and safetensors, for example from
`pip install torch transformers 'attnjax[pretrained]'`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.bench.fingerprint import cores, fingerprint
from attnjax.models.decode import decode_fn, generate
from attnjax.models.pretrained import load

SEED = 0
HEADER = """\
| batch | | tokens/s | processor ms a step | threads | ratio of tokens/s |
|---|---|---|---|---|---|"""
Run = Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the model, and of what it does.

    Attributes:
      features: width of the model.
      layers: number of layers.
      heads: number of heads.
      hidden: width of the feed-forward layers.
      vocabulary: number of tokens.
      prompt: tokens of each prompt.
      tokens: tokens to generate.
    """

    features: int = 512
    layers: int = 8
    heads: int = 8
    hidden: int = 1408
    vocabulary: int = 16_000
    prompt: int = 64
    tokens: int = 128


@dataclasses.dataclass(frozen=True)
class Speed:
    """What was measured at one batch size.

    Attributes:
      batch: examples decoded side by side.
      threads: of torch.
      ours: seconds of each run of attnjax.
      theirs: seconds of each run of transformers.
      ours_busy: seconds of processor time of each run, over all threads.
      theirs_busy: likewise.
    """

    batch: int
    threads: int
    ours: list[float]
    theirs: list[float]
    ours_busy: list[float]
    theirs_busy: list[float]

    @property
    def ratio(self) -> float:
        """Our tokens per second over theirs."""
        return statistics.median(self.theirs) / statistics.median(self.ours)


def models(sizes: Sizes) -> tuple[Any, Any]:
    """Returns a Llama of transformers with random weights, and ours with the same."""
    import torch
    import transformers

    torch.manual_seed(SEED)
    config = transformers.LlamaConfig(
        hidden_size=sizes.features,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        intermediate_size=sizes.hidden,
        vocab_size=sizes.vocabulary,
        max_position_embeddings=sizes.prompt + sizes.tokens,
        # With their usual 0.02, and with the embedding as output, tokens would repeat themselves.
        initializer_range=0.06,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours, _ = load(folder)
    return theirs, ours


def runs(theirs: Any, ours: Any, sizes: Sizes, batch: int) -> tuple[Run, Callable[..., np.ndarray]]:
    """Returns our run and that of transformers; both return the new tokens `[batch, tokens]`."""
    import torch

    shape = (batch, sizes.prompt)
    numbers = np.random.default_rng(SEED).integers(0, sizes.vocabulary, shape, np.int32)
    prompt, tokens = jnp.asarray(numbers), torch.tensor(numbers, dtype=torch.int64)
    decode = decode_fn(ours)

    def run_ours() -> np.ndarray:
        cache = ours.init_cache(batch, sizes.prompt + sizes.tokens)
        found = generate(decode, cache, prompt, max_tokens=sizes.tokens, end=None)
        return np.asarray(found.tokens)

    def run_theirs(count: int = sizes.tokens) -> np.ndarray:
        with torch.inference_mode():
            found = theirs.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=count,
                do_sample=False,
                cache_implementation="static",
            )
        return found[:, sizes.prompt :].numpy()

    return run_ours, run_theirs


def measure(theirs: Any, ours: Any, sizes: Sizes, batch: int, rounds: int) -> Speed:
    """Compares the tokens, then measures.

    Raises:
      AssertionError: if the tokens differ.
    """
    run_ours, run_theirs = runs(theirs, ours, sizes, batch)
    threads = _best_threads(run_theirs, min(sizes.tokens, 16))
    np.testing.assert_array_equal(run_ours(), run_theirs(), "attnjax and transformers differ")
    speed = Speed(batch, threads, [], [], [], [])
    for _ in range(rounds):
        for run, seconds, busy in (
            (run_ours, speed.ours, speed.ours_busy),
            (run_theirs, speed.theirs, speed.theirs_busy),
        ):
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            seconds.append(time.perf_counter() - wall)
            busy.append(time.process_time() - cpu)
    return speed


def _best_threads(run: Callable[..., np.ndarray], count: int) -> int:
    """Sets torch to the number of threads with which `count` tokens take the least time."""
    import torch

    seconds = {}
    for threads in sorted({1, max(cores() // 2, 1), cores()}):
        torch.set_num_threads(threads)
        run(1)
        start = time.perf_counter()
        run(count)
        seconds[threads] = time.perf_counter() - start
    best = min(seconds, key=lambda threads: seconds[threads])
    torch.set_num_threads(best)
    return best


def rows(speed: Speed, sizes: Sizes) -> Iterator[str]:
    """Yields the rows of a table in Markdown, under `HEADER`."""
    for name, seconds, busy, threads, ratio in (
        ("attnjax", speed.ours, speed.ours_busy, "all", f"{speed.ratio:.2f}"),
        ("transformers", speed.theirs, speed.theirs_busy, str(speed.threads), "1.00"),
    ):
        rate = speed.batch * sizes.tokens / statistics.median(seconds)
        step = 1e3 * statistics.median(busy) / sizes.tokens
        yield f"| {speed.batch} | {name} | {rate:.1f} | {step:.1f} | {threads} | {ratio} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for field in dataclasses.fields(Sizes):
        parser.add_argument(f"--{field.name}", type=_count, default=field.default)
    parser.add_argument("--batch", type=_count, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=_count, default=5, help="runs of each that are timed")
    parser.add_argument("--json", type=pathlib.Path, help="file to write all numbers to")
    arguments = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    sizes = Sizes(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(Sizes)})
    theirs, ours = models(sizes)
    print(f"{sum(x.numel() for x in theirs.parameters()) / 1e6:.1f} million parameters, {sizes}")
    print(HEADER, flush=True)
    speeds = []
    for batch in arguments.batch:
        speeds.append(measure(theirs, ours, sizes, batch, arguments.rounds))
        print("\n".join(rows(speeds[-1], sizes)), flush=True)
    if arguments.json is not None:
        found = [{**dataclasses.asdict(speed), "ratio": speed.ratio} for speed in speeds]
        result = {"fingerprint": fingerprint(), "sizes": dataclasses.asdict(sizes), "found": found}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
