"""A tiny real task and its entrypoint: noisy blobs, a dropout network, seconds per run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from attnjax.sharding.rules import Rules
from train.common.cli import guarded, parse
from train.common.config import TrainConfig
from train.common.distributed import is_main
from train.common.loop import run
from train.common.task import Batch, Task

FEATURES, CLASSES = 5, 3
RULES = Rules(
    paths=((r"\bfirst\.kernel$", (None, "hidden")), (r"\blast\.kernel$", ("hidden", None))),
    axes=(("hidden", "model"),),
)
"""The hidden layer over the mesh axis `model`."""


class ToyNet(nnx.Module):
    """Dense, batch norm, dropout, dense: a parameter, a statistic and a random stream each."""

    def __init__(self, rngs: nnx.Rngs, *, rate: float = 0.3, hidden: int = 16):
        self.first = nnx.Linear(FEATURES, hidden, rngs=rngs)
        self.norm = nnx.BatchNorm(hidden, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.last = nnx.Linear(hidden, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


class PlainNet(nnx.Module):
    """One dense layer: no statistics and no randomness, so that gradients can be compared."""

    def __init__(self, rngs: nnx.Rngs):
        self.dense = nnx.Linear(FEATURES, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dense(x)


class ToyData:
    """Blobs around random centres; batch i follows from the seed and i alone.

    Args:
        delay: seconds each batch takes, so that a kill finds something to interrupt.
        poison: the step whose batch holds a NaN.
        record: a directory that gets a file for each process, with the step number and the ids of
            every training batch, or share of one, that it is given.
    """

    def __init__(
        self,
        *,
        train_size: int = 240,
        delay: float = 0.0,
        poison: int | None = None,
        record: Path | None = None,
    ):
        rng = np.random.default_rng(0)
        self._delay, self._poison, self._record = delay, poison, record
        centres = rng.normal(size=(CLASSES, FEATURES))
        self._splits = {}
        for name, size in (("train", train_size), ("validation", 50), ("test", 50)):
            y = rng.integers(CLASSES, size=size).astype(np.int32)
            x = (centres[y] + rng.normal(size=(size, FEATURES))).astype(np.float32)
            self._splits[name] = x, y
        self.fingerprint = hashlib.sha256(
            b"".join(a.tobytes() for split in self._splits.values() for a in split)
        ).hexdigest()
        self.train_size = train_size

    def train_batches(
        self, *, batch_size: int, seed: int, start_step: int, rows: np.ndarray | None = None
    ) -> Iterator[Batch]:
        x, y = self._splits["train"]
        step = start_step
        while True:
            time.sleep(self._delay)
            chosen = np.random.default_rng((seed, step)).integers(len(y), size=batch_size)
            chosen = chosen if rows is None else chosen[rows]
            step += 1
            batch = {"x": x[chosen], "y": y[chosen], "id": np.array([f"n{i}" for i in chosen])}
            if step == self._poison:
                batch["x"] = np.full_like(batch["x"], np.nan)
            if self._record is not None:
                self._write_ids(self._record, step, batch["id"])
            yield batch

    def _write_ids(self, directory: Path, step: int, ids: np.ndarray) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        name = f"process{jax.process_index()}-pid{os.getpid()}.jsonl"
        with (directory / name).open("a") as file:
            file.write(json.dumps({"step": step, "ids": ids.tolist()}) + "\n")

    def eval_batches(
        self, split: str, *, batch_size: int, rows: np.ndarray | None = None
    ) -> Iterable[Batch]:
        x, y = self._splits[split]
        for start in range(0, len(y), batch_size):
            some = slice(start, start + batch_size)
            short = batch_size - len(y[some])
            batch = {
                "x": np.pad(x[some], ((0, short), (0, 0))),
                "y": np.pad(y[some], (0, short)),
                "weight": np.pad(np.ones(batch_size - short, np.float32), (0, short)),
            }
            yield batch if rows is None else {name: a[rows] for name, a in batch.items()}


def loss(model: nnx.Module, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    logits = model(batch["x"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    hits = jnp.argmax(logits, -1) == batch["y"]
    weight = batch.get("weight", jnp.ones(len(losses)))
    mean = lambda x: jnp.sum(x * weight) / jnp.sum(weight)  # noqa: E731
    return mean(losses), {"accuracy": mean(hits)}


def predict(model: nnx.Module, batch: Batch) -> jax.Array:
    return model(batch["x"])


def evaluate(results: list[tuple[np.ndarray, Batch]]) -> dict[str, float]:
    logits = np.concatenate([p for p, _ in results])
    weight = np.concatenate([b["weight"] for _, b in results])
    y = np.concatenate([b["y"] for _, b in results])
    picked = np.take_along_axis(logits, y[:, None], 1)[:, 0]
    top = logits.max(1)
    losses = top + np.log(np.exp(logits - top[:, None]).sum(1)) - picked
    return {
        "accuracy": np.average(logits.argmax(1) == y, weights=weight),
        "loss": np.average(losses, weights=weight),
    }


def toy_task(**changes: object) -> Task:
    task = Task(
        build_model=ToyNet,
        loss=loss,
        predict=predict,
        evaluate=evaluate,
        data=ToyData(),
        rules=RULES,
    )
    return dataclasses.replace(task, **changes)


def toy_train(**changes: object) -> TrainConfig:
    base = {
        "steps": 40,
        "batch_size": 12,
        "eval_batch_size": 16,
        "eval_every": 10,
        "log_every": 5,
        "tensorboard": False,
        "progress": False,
    }
    return TrainConfig(**{**base, **changes})


@dataclass(frozen=True)
class Config:
    """The toy entrypoint's options."""

    run_dir: Path
    """The run directory."""
    delay: float = 0.0
    """Seconds each batch takes."""
    poison: int | None = None
    """The step whose batch holds a NaN."""
    record: Path | None = None
    """A directory that gets the ids of every training batch."""
    train: TrainConfig = field(default_factory=toy_train)
    """How to train."""


def main(argv: list[str] | None = None) -> int:
    def work() -> None:
        config = parse(Config, argv, description="Trains the toy task.")
        data = ToyData(delay=config.delay, poison=config.poison, record=config.record)
        task = toy_task(data=data)
        result = run(task, config.train, config.run_dir, describe={"task": "toy"})
        if result is not None and is_main():
            print(json.dumps({"step": result.last_step, "best": result.best_step}))

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
