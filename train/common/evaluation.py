"""One pass over a split: predictions on the device, metrics on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from train.common.distributed import broadcast, is_main
from train.common.layout import Layout
from train.common.step import on_device
from train.common.task import Batch, Task


class EvaluationStopped(Exception):  # noqa: N818 (nothing went wrong)
    """An evaluation was given up because the run was told to stop."""


def evaluate(
    task: Task,
    predict: Callable[[dict[str, Any], Batch], Any],
    model_state: dict[str, Any],
    split: str,
    *,
    batch_size: int,
    layout: Layout | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """The task's metrics on one split.

    Several processes with one `layout` share the work and get the same metrics: each loads what its
    devices need; process 0 loads everything and computes the metrics.

    Args:
        task: gives the batches and turns predictions into metrics.
        predict: from `make_predict`.
        model_state: the `model` part of the state.
        split: the split's name.
        batch_size: examples per batch.
        layout: where the model's state lies, of a run on a mesh.
        stopped: asked before every batch.

    Raises:
        EvaluationStopped: `stopped` said so.
        ValueError: the split is empty, or the task's metrics are not scalar numbers.
    """
    results: list[tuple[Any, Batch]] = []
    waiting: tuple[Any, Batch] | None = None
    rows = None if layout is None or is_main() else layout.rows(batch_size)
    for batch in task.data.eval_batches(split, batch_size=batch_size, rows=rows):
        if stopped():
            raise EvaluationStopped
        running = predict(model_state, on_device(batch, layout, size=batch_size)), batch
        if waiting is not None:  # fetched while the next batch runs
            results.append((jax.device_get(waiting[0]), waiting[1]))
        waiting = running
    if waiting is None:
        raise ValueError(f"the split {split!r} has no examples to evaluate")
    results.append((jax.device_get(waiting[0]), waiting[1]))
    if layout is None:
        return as_floats(task.evaluate(results), "Task.evaluate")
    return broadcast(as_floats(task.evaluate(results), "Task.evaluate") if is_main() else None)


def as_floats(metrics: Mapping[str, Any], source: str) -> dict[str, float]:
    """Metrics as plain floats.

    Args:
        metrics: scalars by name.
        source: who made them, for the message.

    Raises:
        ValueError: a metric is no scalar number.
    """
    floats = {}
    for name, value in metrics.items():
        try:
            floats[name] = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{source} must return scalar numbers by name, got {name}={value!r}"
            ) from error
    return floats
