"""What entrypoints with several seeds and forms share: opening the data, one run per seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from train.common.distributed import is_main, main_first


def opened(config: Any) -> tuple[Any, Callable[[str], None]]:
    """Starts the processes and loads the data.

    Args:
        config: with `data` and `train`.

    Returns:
        The data, announced with its notes, and what prints for all processes.
    """
    config.train.distributed.start()
    say: Any = partial(print, flush=True) if is_main() else lambda text: None
    with main_first("data"):
        data = config.data.load()
    say("\n  ".join([data.summary(), *data.notes]))
    return data, say


def with_seeds(config: Any, train_one: Callable[[Any], Any]) -> dict[int, Any]:
    """Trains with each seed, in a run directory of its own where there are several.

    Args:
        config: with `run_dir`, `seeds` and `train`.
        train_one: trains with such a config; None where another process has the outcome.

    Returns:
        The outcomes by seed, in the process that has them.
    """
    outcomes = {}
    for seed in config.seeds or (config.train.seed,):
        folder = config.run_dir / f"seed-{seed}" if config.seeds else config.run_dir
        seeded = dataclasses.replace(config.train, seed=seed)
        outcome = train_one(dataclasses.replace(config, run_dir=folder, train=seeded))
        if outcome is not None:
            outcomes[seed] = outcome
    return outcomes
