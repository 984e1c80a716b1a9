"""What `--focus` costs: the text-classification Transformer, watched and not, step by step in turn.

python -m tests.train.focus_cost --steps 300
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train.common.config import TrainConfig
from train.common.optim import OptimConfig
from train.common.step import on_device, plan_steps
from train.common.text.loading import TextDataConfig
from train.common.text.models import TextModelConfig
from train.text_classification import Config, make_encoder, make_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    config = Config(
        data=TextDataConfig(options.data),
        model=TextModelConfig(name="transformer"),
        train=TrainConfig(
            steps=options.steps, focus="every=1", optim=OptimConfig(learning_rate=2e-3)
        ),
    )
    data = config.data.load()
    task = make_task(config, data, make_encoder(config, data))
    start, steps = plan_steps(task, config.train)
    assert steps.watched is not None
    programs = {"plain": steps.plain, "watched": steps.watched}
    states: dict[str, Any] = {
        name: jax.tree.map(jnp.copy, start.make())
        for name in programs  # a step takes its state
    }
    batches = task.data.train_batches(batch_size=config.train.batch_size, seed=0, start_step=0)
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    seen: set[Any] = set()
    same = True
    for number in range(options.steps):
        batch = on_device(next(batches))
        shapes = tuple(x.shape for x in batch.values())
        losses = {}
        # In turn, because whoever goes second finds the batch in the cache.
        for name in sorted(programs, reverse=bool(number % 2)):
            begun = time.perf_counter()
            states[name], metrics = programs[name](states[name], batch)
            losses[name] = np.asarray(jax.block_until_ready(metrics)["loss"])
            if shapes in seen:  # the first of each width is compiled
                seconds[name].append(time.perf_counter() - begun)
        seen.add(shapes)
        same &= bool(losses["plain"] == losses["watched"])
    plain, watched = (np.asarray(seconds[name]) for name in ("plain", "watched"))
    ratio = watched / plain
    extra = np.median(ratio) - 1
    print(f"{len(plain)} pairs of steps; median {1e3 * np.median(plain):.2f} ms without records")
    print(
        f"every=1: {100 * extra:+.1f}% (median of pairs; quartiles "
        + " and ".join(f"{100 * (x - 1):+.1f}%" for x in np.quantile(ratio, (0.25, 0.75)))
        + f"; of the totals {100 * (watched.sum() / plain.sum() - 1):+.1f}%)"
    )
    print(f"every=50: {100 * extra / 50:+.2f}%")
    print(f"losses {'are' if same else 'are NOT'} the same to the bit")


if __name__ == "__main__":
    main()
