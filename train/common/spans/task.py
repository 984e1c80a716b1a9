"""Answers that are pieces of a text as a `Task` of the training loop."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from flax import nnx

from train.common.spans.answers import collect, known, texts
from train.common.spans.batches import TEXT, SpanBatches, SpanEncoder, SpanTokensConfig
from train.common.spans.data import SpanData
from train.common.spans.models import RULES, SpanReaderConfig, best_spans, span_loss
from train.common.spans.squad_scores import Rules, best_thresholds, squad_scores
from train.common.task import Batch, Task


def make_encoder(data: SpanData, config: SpanTokensConfig) -> SpanEncoder:
    """Trains the tokeniser, on the training split only."""
    train = data.splits["train"]
    distinct = dict.fromkeys(text for q in train for text in (q.context, q.question))
    tokeniser = config.train(distinct)
    tokeniser.max_tokens = sys.maxsize  # the limit is one of windows, not of texts
    return SpanEncoder(tokeniser, config)


def make_task(
    data: SpanData,
    batches: SpanBatches,
    encoder: SpanEncoder,
    model: SpanReaderConfig,
    *,
    max_answer: int,
) -> Task:
    """Puts data, model, loss and metrics together.

    Args:
        data: the questions.
        batches: of these.
        encoder: of these.
        model: which model.
        max_answer: most tokens of an answer.
    """

    def build_model(rngs: nnx.Rngs) -> nnx.Module:
        return build_reader(model, encoder, rngs)

    def loss(model: Any, batch: Batch) -> tuple[Any, dict[str, Any]]:
        start, end = read(model, batch)
        return span_loss(start, end, batch), {}

    def predict(model: Any, batch: Batch) -> Any:
        start, end = read(model, batch)
        best = best_spans(start, end, batch["segment"] >= TEXT, max_answer)
        return {k: v for k, v in best.items() if k != "weight"}

    def evaluate(results: list[tuple[Any, Batch]]) -> dict[str, float]:
        windows, spans = [], []
        for predicted, batch in results:
            for i in np.flatnonzero(batch["weight"] > 0):
                windows.append(batch["window"][i])
                spans.append({name: x[i] for name, x in predicted.items()})
        questions = {window.question.id: window.question for window in windows}
        return metrics(list(questions.values()), collect(windows, spans), data.rules)

    return Task(build_model, loss, predict, evaluate, batches, RULES)


def metrics(questions: Any, answers: Any, rules: Rules) -> dict[str, float]:
    """Exact match and F1 in percent; by the rules of 2.0 with the threshold that is best for F1."""
    if rules == "v1.1":
        scores = squad_scores(known(questions), texts(answers, None), rules=rules)
        return {"exact": scores["exact"], "f1": scores["f1"]}
    chances = {name: answer.no_answer for name, answer in answers.items()}
    best = best_thresholds(known(questions), texts(answers, None), chances)["f1"]
    scores = squad_scores(known(questions), texts(answers, best.threshold), rules=rules)
    return {"exact": scores["exact"], "f1": scores["f1"], "threshold": best.threshold}


def build_reader(config: SpanReaderConfig, encoder: SpanEncoder, rngs: nnx.Rngs) -> nnx.Module:
    """Builds the model that fits an encoder's output."""
    return config.build(
        vocabulary=encoder.vocabulary, max_tokens=encoder.config.max_tokens, rngs=rngs
    )


def read(model: Any, batch: Batch) -> Any:
    """The model's logits of the first and the last token of the answer, both `[B, T]`."""
    return model(batch["tokens"], batch["length"], batch["segment"])
