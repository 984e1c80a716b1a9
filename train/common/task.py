"""The contract between a task (`train/<task>.py`) and the loop: data in, loss and metrics out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx

from attnjax.sharding.rules import TRANSFORMER, Rules

Batch = dict[str, Any]
"""Named arrays that share their first axis, the examples: NumPy's, traced ones inside `jax.jit`.

Arrays of strings or objects stay on the host: the loop leaves them out of what `Task.loss` and
`Task.predict` get, `Task.evaluate` sees them."""


class TaskData(Protocol):
    """Batches of one data set, in an order that depends on the seed and the step number alone.

    Where several processes train together, each asks for its own `rows` of the batches: the places
    of some of a batch's examples, int `[n]`, ascending; all by default. Such a share holds what the
    whole batch holds there, its arrays as wide as the whole batch's.
    """

    fingerprint: str
    """sha256 of the decoded records; stands in the manifest and is checked when a run resumes."""
    train_size: int
    """How many examples the training split holds; turns epochs into steps."""

    def train_batches(
        self, *, batch_size: int, seed: int, start_step: int, rows: np.ndarray | None = None
    ) -> Iterator[Batch]:
        """Yields training batches without end; the first is the one of step `start_step`.

        Batch number i must not depend on where the iteration began: a resumed run relies on it.
        """
        ...

    def eval_batches(
        self, split: str, *, batch_size: int, rows: np.ndarray | None = None
    ) -> Iterable[Batch]:
        """Yields one pass over `split`, every batch of exactly `batch_size` examples.

        The last batch is padded; `batch["weight"]` (float32 `[batch_size]`) is 0.0 on padding.
        """
        ...


@dataclass(frozen=True)
class Task:
    """What one training entrypoint gives the loop."""

    build_model: Callable[[nnx.Rngs], nnx.Module]
    """Makes a freshly initialised model; called once, with streams seeded by `TrainConfig.seed`."""
    loss: Callable[[Any, Batch], tuple[jax.Array, dict[str, jax.Array]]]
    """`(model in train mode, batch) -> (scalar loss, named scalars)`, traced inside `jax.jit`.

    Both are means over the examples, weighted by `batch["weight"]` where there is one. All must be
    finite: the run stops at the first that is not.
    """
    predict: Callable[[Any, Batch], Any]
    """`(model in eval mode, batch) -> pytree of arrays`, traced inside `jax.jit`."""
    evaluate: Callable[[list[tuple[Any, Batch]]], dict[str, float]]
    """Metrics of a whole split, on the host, from every `(predictions, batch)` of it (NumPy)."""
    data: TaskData
    """Where the batches come from."""
    rules: Rules = TRANSFORMER
    """Where the model's parameters belong on a mesh (`TrainConfig.mesh`)."""
