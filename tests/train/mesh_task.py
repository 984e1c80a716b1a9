"""A small causal language model that every mesh of eight devices can split, and its first steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from attnjax.nn import AttentionOptions, Decoder, Rotary, TransformerConfig
from attnjax.sharding.rules import TRANSFORMER
from train.common.config import TrainConfig
from train.common.optim import OptimConfig
from train.common.step import on_device, plan_step
from train.common.task import Batch, Task

BATCH, LENGTH, VOCABULARY, STEPS = 16, 32, 64, 20
MODEL = TransformerConfig(
    features=32,
    num_heads=8,
    num_layers=1,
    dropout_rate=0.1,
    attention=AttentionOptions(position=Rotary(), dropout_rate=0.1),
)
RULES = dataclasses.replace(TRANSFORMER, min_size=1)
"""The usual rules, for parameters of any size: these are all small."""


class LanguageModel(nnx.Module):
    """Embedding, causal Transformer, and the embedding again as the output layer."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.embed = nnx.Embed(VOCABULARY, config.features, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        return self.embed.attend(self.decoder(self.embed(ids)))


class Walks:
    """Random walks over the vocabulary."""

    fingerprint = "walks"
    train_size = 1000

    def train_batches(
        self, *, batch_size: int, seed: int, start_step: int, rows: np.ndarray | None = None
    ) -> Iterator[Batch]:
        step = start_step
        here = slice(None) if rows is None else rows
        while True:
            rng = np.random.default_rng((seed, step))
            walk = np.cumsum(rng.integers(1, 4, (batch_size, LENGTH + 1)), axis=1)
            ids = (walk % VOCABULARY).astype(np.int32)[here]
            yield {"ids": ids[:, :-1], "next": ids[:, 1:]}
            step += 1

    def eval_batches(
        self, split: str, *, batch_size: int, rows: np.ndarray | None = None
    ) -> Iterable[Batch]:
        batches = self.train_batches(batch_size=batch_size, seed=1, start_step=0, rows=rows)
        return [{**next(batches), "weight": np.ones(batch_size, np.float32)}]


def loss(model: LanguageModel, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
    logits = model(batch["ids"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["next"]).mean(), {}


def evaluate(results: list[tuple[np.ndarray, Batch]]) -> dict[str, float]:
    hits = [logits.argmax(-1) == batch["next"] for logits, batch in results]
    return {"accuracy": float(np.mean(hits))}


def language_task(**model: Any) -> Task:
    config = dataclasses.replace(MODEL, **model)
    return Task(
        build_model=lambda rngs: LanguageModel(config, rngs),
        loss=loss,
        predict=lambda model, batch: model(batch["ids"]),
        evaluate=evaluate,
        data=Walks(),
        rules=RULES,
    )


def language_train(**changes: Any) -> TrainConfig:
    base = {
        "steps": STEPS,
        "batch_size": BATCH,
        "eval_batch_size": BATCH,
        "log_every": 1,
        "tensorboard": False,
        "progress": False,
        "optim": OptimConfig(learning_rate=3e-3),
    }
    return TrainConfig(**{**base, **changes})


def losses(config: TrainConfig, task: Task, steps: int = STEPS) -> np.ndarray:
    """The losses of the first steps."""
    start, step = plan_step(task, config)
    state = start.make()
    batches = task.data.train_batches(batch_size=config.batch_size, seed=0, start_step=0)
    found = []
    for _ in range(steps):
        state, metrics = step(state, on_device(next(batches), start.layout))
        found.append(metrics["loss"])
    return np.array(jax.device_get(found))
