"""`--dry-run`: what a run would look like, without training anything or writing a file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from attnjax.sharding.partition import names
from train.common.config import TrainConfig
from train.common.layout import Layout
from train.common.optim import dotted
from train.common.step import on_device, plan_step
from train.common.task import Task


def dry_run(task: Task, config: TrainConfig) -> str:
    """Builds and compiles the real step and describes it.

    Args:
        task: what would be trained.
        config: how.

    Returns:
        A table of the parameters and of a batch, the parameter count, the bytes of each part of
        the state, and XLA's own account of the compiled step's memory. On a mesh also what it is,
        and for each array what of it one device holds.

    Raises:
        ValueError: mesh, parameters or batches do not fit each other.
    """
    total = config.total_steps(task.data.train_size)
    start, step = plan_step(task, config)
    batches = task.data.train_batches(batch_size=config.batch_size, seed=config.seed, start_step=0)
    batch = on_device(next(iter(batches)), start.layout)
    compiled = step.lower(start.like, batch).compile()
    params = start.like["model"]["params"]
    return "\n".join(
        [
            f"{total} steps of {config.batch_size} examples; the training split holds "
            f"{task.data.train_size}",
            *_mesh(start.layout),
            "",
            "A batch on the device:" if start.layout is None else "A batch on the devices:",
            *_table(batch),
            "",
            "Parameters:",
            *_table(params),
            f"Parameter count: {count(params):,}",
            "",
            "State:" if start.layout is None else "State, in all and on one device:",
            *_sizes({**start.like["model"], **start.like["optimizer"]}, start.layout),
            "",
            "Memory of the compiled step (XLA's account"
            + ("):" if start.layout is None else ", for one device):"),
            *_memory(compiled.memory_analysis()),
        ]
    )


def count(tree: Any) -> int:
    """Numbers in all arrays of `tree`."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays of `tree`."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def bytes_on_one(tree: Any) -> int:
    """Bytes that one device holds of all arrays of `tree`, which have shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _mesh(layout: Layout | None) -> list[str]:
    if layout is None:
        return []
    sizes: Mapping[str, int] = layout.mesh.shape
    axes = ", ".join(f"{name}={size}" for name, size in sizes.items())
    return [f"Mesh: {axes}: {layout.mesh.size} devices"]


def _table(tree: Any) -> list[str]:
    """One line for each array: path, shape, dtype; how it is split, as `model . fsdp`."""
    rows = []
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        shape = list(np.shape(x))
        sharding: Any = getattr(x, "sharding", None)
        part = shape if sharding is None else list(sharding.shard_shape(tuple(shape)))
        split = ""
        if part != shape:
            axes = " ".join("+".join(names(entry)) or "." for entry in sharding.spec)
            split = f"  {part} on each device: {axes}"
        rows.append((dotted(path), str(shape), f"{x.dtype}", split))
    width = max((len(name) for name, *_ in rows), default=0) + 2
    return [
        f"  {name:<{width}}{shape:<20}{dtype:<9}{split}".rstrip()
        for name, shape, dtype, split in rows
    ]


def _sizes(parts: Mapping[str, Any], layout: Layout | None) -> list[str]:
    return [
        f"  {name:<12}{_megabytes(bytes_of(part))}"
        + ("" if layout is None else _megabytes(bytes_on_one(part)))
        for name, part in parts.items()
    ]


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
