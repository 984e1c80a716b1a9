"""The task of choosing answers: loss, choices and metrics for the loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from train.common.dialogue.batches import DialogueBatches
from train.common.dialogue.models import RULES, AnswerSelector, SelectorConfig
from train.common.dialogue.words import DialogueWords
from train.common.task import Batch, Task


def selector_task(
    model: SelectorConfig, words: DialogueWords, bags: np.ndarray, batches: DialogueBatches
) -> Task:
    """Puts data, model, loss and metrics together.

    Args:
        model: the model.
        words: numbers of words.
        bags: word ids of the candidates, int32 `[C, W]`.
        batches: the data.
    """

    def build_model(rngs: nnx.Rngs) -> AnswerSelector:
        return model.build(size=words.size, known=words.known, rngs=rngs)

    def loss(model: AnswerSelector, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        scores, _ = scored(model, batch, jnp.asarray(bags))
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, batch["answer"])
        hits = jnp.argmax(scores, axis=-1) == batch["answer"]
        return jnp.mean(losses), {"accuracy": jnp.mean(hits)}

    def predict(model: AnswerSelector, batch: Batch) -> dict[str, jax.Array]:
        scores, _ = scored(model, batch, jnp.asarray(bags))
        right = jnp.take_along_axis(scores, jnp.maximum(batch["answer"], 0)[:, None], axis=1)
        nll = jax.nn.logsumexp(scores, axis=-1) - right[:, 0]
        return {"choice": jnp.argmax(scores, axis=-1), "nll": nll}

    def evaluate(results: list[tuple[dict[str, np.ndarray], Batch]]) -> dict[str, float]:
        real = np.concatenate([batch["weight"] for _, batch in results]) > 0

        def joined(name: str, part: int) -> np.ndarray:
            return np.concatenate([result[part][name] for result in results])[real]

        right = joined("choice", 0) == joined("answer", 1)
        inside = joined("answer", 1) >= 0
        return {
            **accuracies(right, joined("dialogue", 1)),
            "loss": float(np.mean(joined("nll", 0)[inside])),
        }

    return Task(build_model, loss, predict, evaluate, batches, RULES)


def scored(
    model: AnswerSelector, batch: Batch, candidates: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The scores of the candidates and the attention weights, for a batch."""
    return model(
        batch["history"],
        batch["query"],
        age=batch["age"],
        speaker=batch["speaker"],
        candidates=candidates,
    )


def accuracies(right: np.ndarray, dialogue: np.ndarray) -> dict[str, float]:
    """Shares of right answers, and of dialogues without a wrong one.

    Args:
        right: bool `[answers]`.
        dialogue: the number of each answer's dialogue.
    """
    wrong = np.unique(dialogue[~right])
    return {
        "accuracy": float(np.mean(right)),
        "dialogue_accuracy": float(1 - len(wrong) / len(np.unique(dialogue))),
    }
