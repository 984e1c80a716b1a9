"""Questions about stories as a `Task` of the training loop."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from train.common.classification import cross_entropy
from train.common.stories.batches import UNKNOWN_ANSWER, StoryBatches, StoryEncoder
from train.common.stories.data import StoryData
from train.common.stories.models import RULES, StoryModelConfig
from train.common.stories.run import build_reader
from train.common.task import Batch, Task
from train.common.tokenise import TokeniserConfig


def make_encoder(data: StoryData, max_words: int) -> StoryEncoder:
    """Trains the tokeniser on the training split; finds how long sentences get, up to a limit."""
    train = data.splits["train"]
    texts = (text for story in train for text in (*story.sentences, story.question))
    tokeniser = TokeniserConfig().train(texts)
    words = min(StoryEncoder.longest(tokeniser, train), max_words)
    return StoryEncoder(tokeniser, data.answers, words)


def make_task(
    data: StoryData,
    encoder: StoryEncoder,
    model: StoryModelConfig,
    *,
    max_sentences: int,
    smoothing: float,
) -> Task:
    """Puts data, model, loss and metrics together.

    Args:
        data: the stories.
        encoder: of these stories.
        model: which model.
        max_sentences: most sentences of a story.
        smoothing: share of the target spread over all answers.
    """
    batches = StoryBatches(data, encoder)

    def build_model(rngs: nnx.Rngs) -> nnx.Module:
        return build_reader(model, encoder, max_sentences, rngs)

    def predict(model: Any, batch: Batch) -> Any:
        return model(batch["story"], batch["question"])[0]

    def loss(model: Any, batch: Batch) -> tuple[Any, dict[str, Any]]:
        logits = predict(model, batch)
        losses = cross_entropy(logits, batch["answer"], smoothing=smoothing)
        hit = jnp.argmax(logits, axis=-1) == batch["answer"]
        return jnp.mean(losses), {"accuracy": jnp.mean(hit)}

    def evaluate(results: list[tuple[Any, Batch]]) -> dict[str, float]:
        real = np.concatenate([batch["weight"] for _, batch in results]) > 0
        answer = np.concatenate([batch["answer"] for _, batch in results])[real]
        logits = np.concatenate([logits for logits, _ in results])[real]
        task = np.concatenate([batch["task"] for _, batch in results])[real]
        wrong = logits.argmax(axis=-1) != answer
        known = answer != UNKNOWN_ANSWER
        nll = cross_entropy(jnp.asarray(logits[known]), jnp.asarray(answer[known]))
        errors = [np.mean(wrong[task == t]) for t in np.unique(task)]
        return {
            "accuracy": float(1 - np.mean(wrong)),
            "mean_error": float(np.mean(errors)),
            "loss": float(jnp.mean(nll)),
        }

    return Task(build_model, loss, predict, evaluate, batches, RULES)
