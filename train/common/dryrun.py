"""`--dry-run`: what a run would look like, without training anything or writing a file."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from train.common.config import TrainConfig
from train.common.optim import dotted
from train.common.state import init_state
from train.common.step import make_step, on_device
from train.common.task import Task


def dry_run(task: Task, config: TrainConfig) -> str:
    """Builds and compiles the real step and describes it.

    Args:
        task: what would be trained.
        config: how.

    Returns:
        A table of the parameters and of a batch, the parameter count, the bytes of each part of
        the state, and XLA's own account of the compiled step's memory.
    """
    total = config.total_steps(task.data.train_size)
    optimizer = config.optim.build(total)
    graphs, state = init_state(
        task.build_model, optimizer, seed=config.seed, ema=config.ema_decay is not None
    )
    schedule = config.optim.schedule.build(config.optim.learning_rate, total)
    batches = task.data.train_batches(batch_size=config.batch_size, seed=config.seed, start_step=0)
    batch = on_device(next(iter(batches)))
    step = make_step(task, graphs, optimizer, schedule, config)
    compiled = step.lower(state, batch).compile()
    return "\n".join(
        [
            f"{total} steps of {config.batch_size} examples; the training split holds "
            f"{task.data.train_size}",
            "",
            "A batch on the device:",
            *_table(batch),
            "",
            "Parameters:",
            *_table(state["model"]["params"]),
            f"Parameter count: {count(state['model']['params']):,}",
            "",
            "State:",
            *(
                f"  {name:<12}{_megabytes(bytes_of(part))}"
                for name, part in {**state["model"], **state["optimizer"]}.items()
            ),
            "",
            "Memory of the compiled step (XLA's account):",
            *_memory(compiled.memory_analysis()),
        ]
    )


def count(tree: Any) -> int:
    """Numbers in all arrays of `tree`."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays of `tree`."""
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def _table(tree: Any) -> list[str]:
    """One line for each array: path, shape, dtype."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    rows = [(dotted(path), list(np.shape(x)), x.dtype) for path, x in leaves]
    width = max((len(name) for name, *_ in rows), default=0) + 2
    return [f"  {name:<{width}}{shape!s:<20}{dtype}" for name, shape, dtype in rows]


def _memory(analysis: Any) -> list[str]:
    """XLA's memory analysis; some platforms give none."""
    if analysis is None:
        return ["  this platform does not say"]
    names = {
        "argument_size_in_bytes": "arguments",
        "output_size_in_bytes": "outputs",
        "alias_size_in_bytes": "shared by both (donated)",
        "temp_size_in_bytes": "temporaries",
        "generated_code_size_in_bytes": "code",
    }
    return [f"  {text:<26}{_megabytes(getattr(analysis, name))}" for name, text in names.items()]


def _megabytes(size: int) -> str:
    return f"{size / 2**20:12.3f} MiB"
