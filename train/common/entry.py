"""What the entrypoints of several tasks share around the training loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from train.common.config import TrainConfig
from train.common.distributed import is_main, main_first

Config = TypeVar("Config", bound=Any)


def started(config: TrainConfig) -> Callable[[str], object]:
    """Joins the processes that train together; returns what prints in the first of them."""
    config.distributed.start()
    return partial(print, flush=True) if is_main() else lambda text: None


def opened(config: Any) -> tuple[Any, Callable[[str], object]]:
    """Joins the processes that train together, and loads the data.

    Args:
        config: with `data` and `train`.

    Returns:
        The data, announced with its notes, and what prints for all processes.
    """
    say = started(config.train)
    with main_first("data"):
        data = config.data.load()
    say("\n  ".join([data.summary(), *data.notes]))
    return data, say


def say_notes(notes: Sequence[str]) -> None:
    """Prints what was noticed about the data, in the first process."""
    if is_main():
        for note in notes:
            print(f"  {note}", flush=True)


def task_fields(config: Any) -> dict[str, Any]:
    """The fields of a task's config that say what is trained: all but directory, loop and seeds."""
    fields = dataclasses.asdict(config)
    return {k: v for k, v in fields.items() if k not in ("run_dir", "train", "seeds")}


def one_per_seed(config: Config) -> Iterator[Config]:
    """Yields the config itself, or with several seeds one for each, in a directory of its own.

    Args:
        config: a dataclass with `run_dir`, `train` and `seeds`.
    """
    if not config.seeds:
        yield config
    for seed in config.seeds:
        seeded = dataclasses.replace(config.train, seed=seed)
        yield dataclasses.replace(config, run_dir=config.run_dir / f"seed-{seed}", train=seeded)
