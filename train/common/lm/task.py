"""The `Task` of language modelling: loss of the next token, and what it says about the text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax import Segments
from attnjax.models import token_losses
from train.common.lm.batches import LmBatches
from train.common.lm.tokenise import CODE_POINTS, UNKNOWN
from train.common.pairs.models import RULES
from train.common.task import Batch, Task

ARRAYS = ("tokens", "targets", "segments", "positions")
"""What `target_nats` takes of a batch."""


def target_nats(model: Any, batch: Batch) -> jax.Array:
    """What each target took in nats, 0 on padding.

    Args:
        model: a `LanguageModel`.
        batch: `tokens`, `targets`, `segments` and `positions`, as `LmBatches` has them.

    Returns:
        float32 `[B, T]`.
    """
    hidden = model.hidden(
        batch["tokens"], mask=Segments(batch["segments"]), positions=batch["positions"]
    )
    nats = token_losses(
        model.logits, hidden, batch["targets"], partition=model.decoder.stack.partition
    )
    return jnp.where(batch["segments"] > 0, nats, 0.0)


def lm_task(build_model: Callable[[nnx.Rngs], nnx.Module], batches: LmBatches) -> Task:
    """Puts data, model, loss and metrics together."""

    def loss(model: Any, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        # A row counts by its targets: rows are not all full.
        mean = jnp.sum(target_nats(model, batch)) / jnp.sum(batch["weight"])
        return mean, {}

    def predict(model: Any, batch: Batch) -> dict[str, jax.Array]:
        return {"nats": jnp.sum(target_nats(model, batch), axis=1)}

    return Task(build_model, loss, predict, text_metrics, batches, RULES)


def surprise(nats: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Bits that tokens took; an unknown character what it takes to say which one it is, besides."""
    return (nats + (tokens == UNKNOWN) * math.log(CODE_POINTS)) / math.log(2)


def text_metrics(results: list[tuple[dict[str, np.ndarray], Batch]]) -> dict[str, float]:
    """How well a whole text was predicted, from every `(prediction, batch)` of it.

    An unknown character costs what it takes to say which of all code points it is, besides the
    loss of the unknown token: `bits_per_byte` and `nats_per_character` remain lengths of a code
    that the text can be read from.

    Args:
        results: predictions with `nats` `[B]`, and the counts of `LmBatches.eval_batches`.

    Returns:
        `loss` and `perplexity` per token, `bits_per_byte`, `nats_per_character`; the ends of
        documents count as tokens, and not as bytes or characters.
    """

    def total(values: list[np.ndarray]) -> float:
        real = [x[batch["weight"] > 0] for x, (_, batch) in zip(values, results, strict=True)]
        return float(np.sum(np.concatenate(real), dtype=np.float64))

    nats = total([predicted["nats"] for predicted, _ in results])
    counts = {
        name: total([batch[name] for _, batch in results])
        for name in ("weight", "bytes", "characters", "unknown")
    }
    code = nats + counts["unknown"] * math.log(CODE_POINTS)
    loss = nats / counts["weight"]
    return {
        "loss": loss,
        # Beyond this a model that has not learned anything yet would give infinity.
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": code / math.log(2) / counts["bytes"],
        "nats_per_character": code / counts["characters"],
    }
