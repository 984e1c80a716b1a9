"""The command `spans` of question answering: its config, and training from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.common.config import TrainConfig
from train.common.distributed import is_main, same_everywhere
from train.common.entry import one_per_seed, opened
from train.common.loop import run
from train.common.optim import OptimConfig
from train.common.spans.baseline import SpanBaseline, guess
from train.common.spans.batches import SpanBatches, SpanEncoder, SpanTokensConfig
from train.common.spans.data import SpanData
from train.common.spans.loading import SpanDataConfig
from train.common.spans.models import SpanReaderConfig
from train.common.spans.outcome import SpanOutcome, finish, seeds_table
from train.common.spans.run import SpanAnswerer, save_tokens
from train.common.spans.task import make_encoder, make_task
from train.common.task import Task


@dataclass(frozen=True)
class Spans:
    """Trains a model that marks the answer to a question in a text."""

    run_dir: Path = Path("runs/spans")
    """Where everything about the run goes; run the same command again to resume."""
    data: SpanDataConfig = field(default_factory=SpanDataConfig)
    """The texts and their questions."""
    tokens: SpanTokensConfig = field(default_factory=SpanTokensConfig)
    """How they are cut into words and windows."""
    model: SpanReaderConfig = field(default_factory=SpanReaderConfig)
    """What reads them."""
    max_answer: int = 16
    """Most tokens of an answer that the model gives."""
    seeds: tuple[int, ...] = ()
    """Several seeds: one run each, in RUN_DIR/seed-N, then a table of their test results."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=3,
            batch_size=32,
            eval_batch_size=64,
            select_metric="f1",
            ema_decay=0.999,
            optim=OptimConfig(learning_rate=1e-3, weight_decay=0.01),
        )
    )
    """The training loop."""

    def __post_init__(self) -> None:
        """Rejects what leaves no answer."""
        if self.max_answer < 1:
            raise ValueError(f"max_answer must be at least 1, got {self.max_answer}")

    def describe(self) -> dict[str, Any]:
        """What config.json says about the task."""
        fields = dataclasses.asdict(self)
        kept = {k: v for k, v in fields.items() if k not in ("run_dir", "train", "seeds")}
        return {"form": "spans", **kept}


def parts_of(config: Spans, data: SpanData) -> tuple[SpanEncoder, Task]:
    """The encoder of texts, and the task of the training loop; says how texts became windows."""
    encoder = make_encoder(data, config.tokens)
    batches = SpanBatches(data, encoder)
    if is_main():
        print("\n".join(batches.notes()), flush=True)
    task = make_task(data, batches, encoder, config.model, max_answer=config.max_answer)
    return encoder, task


def train_once(config: Spans, data: SpanData, baseline: SpanBaseline | None) -> SpanOutcome | None:
    """Trains one model, measures it on the test split and writes the report."""
    encoder, task = parts_of(config, data)
    same_everywhere("tokeniser", {"sha256": encoder.tokeniser.fingerprint})
    if is_main() and not config.train.dry_run:
        save_tokens(config.run_dir, encoder)
    result = run(task, config.train, config.run_dir, describe=config.describe())
    if result is None or baseline is None:
        return None
    answerer = SpanAnswerer(result.model(), encoder, config.max_answer, None)
    return finish(result, answerer, data, baseline)


def train_spans(config: Spans) -> None:
    """Loads the texts, trains with each seed, prints EM and F1 beside the baseline's."""
    data, say = opened(config)
    baseline = guess(data) if is_main() and not config.train.dry_run else None
    if baseline is not None:
        say(f"baseline: {baseline.describe()}")

    def train_one(config: Spans) -> dict[str, float] | None:
        outcome = train_once(config, data, baseline)
        if outcome is None:
            return None
        say(outcome.describe())
        return outcome.test

    tested = {
        one.train.seed: outcome
        for one in one_per_seed(config)
        if (outcome := train_one(one)) is not None
    }
    if baseline is not None and len(tested) > 1:
        say(seeds_table(tested, baseline))
