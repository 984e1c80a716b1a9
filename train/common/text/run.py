"""The text side of a run directory: what it takes to classify a new text with a finished run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from train.common.classification import Scores
from train.common.files import write_json
from train.common.result import Which, load_model
from train.common.rundir import described_task
from train.common.text.batches import TextEncoder
from train.common.text.labelled_text import Example
from train.common.text.models import TextClassifier, TextModelConfig
from train.common.text.subwords import SubwordConfig
from train.common.tokenise import TextTokeniser

TOKENISER, LABELS = "tokeniser.json", "labels.json"
_BATCH = 64


@dataclass(frozen=True)
class Word:
    """A word as it stands in the text, and its share of the attention."""

    text: str
    start: int
    """Characters before it."""
    weight: float
    """The attention weights of a text's words sum to 1."""


@dataclass(frozen=True)
class Prediction:
    """What the model says about one text."""

    text: str
    label: str
    probabilities: dict[str, float]
    """By label, the likeliest first."""
    words: tuple[Word, ...]

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    def as_text(self) -> str:
        """A few lines for people: the likeliest labels, then each word's weight."""
        ranked = [f"{label} {share:.3f}" for label, share in self.probabilities.items()]
        words = " ".join(f"{word.text}[{word.weight:.3f}]" for word in self.words)
        return f"{self.text}\n  label:     {', '.join(ranked[:3])}\n  attention: {words}"


class Classifier:
    """A model with what turns texts into its input and its output into labels.

    Args:
        model: in eval mode.
        encoder: as in training.
        labels: the names of the classes.
    """

    def __init__(self, model: nnx.Module, encoder: TextEncoder, labels: Sequence[str]):
        self.labels = tuple(labels)
        self._encoder = encoder
        graph, state = nnx.split(model)
        forward = jax.jit(lambda state, batch: nnx.merge(graph, state)(**batch))
        self._forward: Callable[[Any], Any] = lambda batch: forward(state, batch)

    @classmethod
    def load(cls, run_dir: Path, which: Which = "best") -> Classifier:
        """Reads the classifier of a run directory, finished or not.

        Raises:
            ValueError: the directory is not one of a text-classification run.
            BrokenCheckpointError: it has no checkpoint that can be read.
        """
        side = load_text_side(run_dir)
        return cls(load_model(side.build, run_dir, which=which), side.encoder, side.labels)

    def predict(self, texts: Sequence[str]) -> Iterator[Prediction]:
        """Classifies texts, in their order."""
        for start in range(0, len(texts), _BATCH):
            some = texts[start : start + _BATCH]
            # One batch size, so that the last batch does not compile anew.
            batch = self._encoder.pad(self._encoder.encode([*some, *[""] * (_BATCH - len(some))]))
            logits, weights = jax.device_get(self._forward(batch))
            probabilities = np.asarray(jax.nn.softmax(logits))
            for text, shares, weight in zip(some, probabilities, weights, strict=False):
                yield self._prediction(text, shares, weight)

    def scores(self, examples: Sequence[Example]) -> Scores:
        """Metrics on labelled texts."""
        return self.scored(examples)[0]

    def scored(self, examples: Sequence[Example]) -> tuple[Scores, list[Prediction]]:
        """Metrics on labelled texts, and the predictions they come from."""
        predictions = list(self.predict([text for text, _ in examples]))
        index = {label: i for i, label in enumerate(self.labels)}
        predicted = [index[prediction.label] for prediction in predictions]
        right = [label for _, label in examples]
        return Scores.of(right, predicted, len(self.labels)), predictions

    def _prediction(self, text: str, shares: np.ndarray, weights: np.ndarray) -> Prediction:
        tokens = self._encoder.tokeniser.encode(text)
        by_word = np.bincount(tokens.words, weights=weights[: len(tokens.words)])
        words = tuple(
            Word(text[start:end], start, float(weight))
            for (start, end), weight in zip(tokens.spans, by_word, strict=True)
        )
        order = np.argsort(-shares, kind="stable")
        ranked = {self.labels[i]: float(shares[i]) for i in order}
        return Prediction(text, self.labels[order[0]], ranked, words)


@dataclass(frozen=True)
class TextSide:
    """What a run directory has besides checkpoints."""

    encoder: TextEncoder
    labels: tuple[str, ...]
    build: Callable[[nnx.Rngs], TextClassifier]
    """Makes the model that the run trained, with new parameters."""


def load_text_side(run_dir: Path) -> TextSide:
    """Reads the text side of a run directory, finished or not.

    Raises:
        ValueError: the directory is not one of a text-classification run.
    """
    described = described_run(run_dir)
    labels = tuple(json.loads((run_dir / LABELS).read_text(encoding="utf-8")))
    limit = described["tokens"]["max_tokens"]
    subwords = SubwordConfig(**described["subwords"])
    encoder = TextEncoder(TextTokeniser.load(run_dir / TOKENISER, limit), subwords)
    config = TextModelConfig(**described["model"])

    def build(rngs: nnx.Rngs) -> TextClassifier:
        return config.build(
            vocabulary=encoder.tokeniser.size,
            buckets=subwords.buckets,
            classes=len(labels),
            rngs=rngs,
        )

    return TextSide(encoder, labels, build)


def save_text_side(run_dir: Path, encoder: TextEncoder, labels: Sequence[str]) -> None:
    """Writes the tokeniser and the labels into a run directory that does not have them yet."""
    if not (run_dir / LABELS).exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        encoder.tokeniser.save(run_dir / TOKENISER)
        write_json(run_dir / LABELS, list(labels))


def described_run(run_dir: Path) -> dict[str, Any]:
    """The task's part of a run's config.

    Raises:
        ValueError: there is no such run, or it is one of another task.
    """
    return described_task(run_dir, "text classification", TOKENISER, LABELS)
