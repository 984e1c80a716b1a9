"""What it takes to find answers in new texts with a finished run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from train.common.files import write_json
from train.common.result import Which, load_model
from train.common.spans.answers import SpanAnswer, collect, known, texts
from train.common.spans.batches import TEXT, SpanEncoder, SpanTokensConfig
from train.common.spans.data import SpanQuestion
from train.common.spans.models import SpanReaderConfig, best_spans
from train.common.spans.squad_scores import Rules, squad_scores
from train.common.spans.task import build_reader, read
from train.common.tokenise import TextTokeniser

TOKENISER, SPANS = "tokeniser.json", "spans.json"
_BATCH = 64


class SpanAnswerer:
    """A model with what turns questions into its input and its output into answers.

    Args:
        model: in eval mode.
        encoder: as in training.
        max_answer: most tokens of an answer.
        threshold: questions whose chance of no answer is greater get none; None for never.
    """

    def __init__(
        self, model: nnx.Module, encoder: SpanEncoder, max_answer: int, threshold: float | None
    ):
        self.threshold = threshold
        self._encoder = encoder
        graph, state = nnx.split(model)

        def answer(state: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
            start, end = read(nnx.merge(graph, state), batch)
            return best_spans(start, end, batch["segment"] >= TEXT, max_answer)

        self._forward, self._state = jax.jit(answer), state

    @classmethod
    def load(cls, run_dir: Path, described: dict[str, Any], which: Which = "best") -> SpanAnswerer:
        """Reads the answerer of a run directory.

        A run that has not finished has no threshold yet; its answers are never empty.

        Args:
            run_dir: the directory.
            described: the task's part of its config.
            which: the checkpoint.

        Raises:
            ValueError: the directory is not whole, or its checkpoint is of another config.
            BrokenCheckpointError: it has no checkpoint that can be read.
        """
        if not (run_dir / TOKENISER).is_file():
            raise ValueError(f"{run_dir} has no {TOKENISER}; nothing can be answered without it")
        tokeniser = TextTokeniser.load(run_dir / TOKENISER, sys.maxsize)
        encoder = SpanEncoder(tokeniser, SpanTokensConfig(**described["tokens"]))
        config = SpanReaderConfig.from_json(described["model"])
        model = load_model(lambda rngs: build_reader(config, encoder, rngs), run_dir, which=which)
        side = run_dir / SPANS
        found = json.loads(side.read_text(encoding="utf-8")) if side.is_file() else {}
        return cls(model, encoder, described["max_answer"], found.get("threshold"))

    def answer(self, questions: Sequence[SpanQuestion]) -> dict[str, SpanAnswer]:
        """The best answer to each question, by its id, whether or not the threshold lets it."""
        windows = self._encoder.windows(questions)
        # Windows of one length together: padding is lost time, and each shape compiles anew.
        order = np.argsort([window.length for window in windows], kind="stable")
        spans: dict[int, dict[str, Any]] = {}
        for start in range(0, len(order), _BATCH):
            real = order[start : start + _BATCH]
            batch = self._encoder.pad([windows[i] for i in np.resize(real, _BATCH)])
            best = jax.device_get(self._forward(self._state, batch))
            for row, i in enumerate(real.tolist()):
                spans[i] = {name: x[row] for name, x in best.items()}
        return collect(windows, (spans[i] for i in range(len(windows))), weights=True)

    def scored(
        self, questions: Sequence[SpanQuestion], rules: Rules
    ) -> tuple[dict[str, float], dict[str, SpanAnswer]]:
        """The official scores on questions whose answers are known, and the answers."""
        answers = self.answer(questions)
        predictions = texts(answers, self.threshold if rules == "v2.0" else None)
        return squad_scores(known(questions), predictions, rules=rules), answers


def save_tokens(run_dir: Path, encoder: SpanEncoder) -> None:
    """Writes the tokeniser into a run directory that does not have it yet."""
    if not (run_dir / TOKENISER).exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        encoder.tokeniser.save(run_dir / TOKENISER)


def save_threshold(run_dir: Path, threshold: float | None) -> None:
    """Writes the threshold of a finished run."""
    write_json(run_dir / SPANS, {"threshold": threshold})
