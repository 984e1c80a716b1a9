"""Training of a model that writes each answer of a bot."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.common.config import TrainConfig
from train.common.dialogue.data import DialogueDataConfig
from train.common.dialogue.pairs import DialogueScores, as_pairs
from train.common.distributed import is_main, main_first, same_everywhere
from train.common.entry import one_per_seed, say_notes, started, task_fields
from train.common.loop import run
from train.common.optim import OptimConfig
from train.common.pairs import nearest
from train.common.pairs.batches import PairBatches
from train.common.pairs.models import SeqModelConfig
from train.common.pairs.outcome import SeqOutcome, finish_seq, seeds_table
from train.common.pairs.run import DecodingConfig, Writer
from train.common.pairs.scores import SeqBaseline
from train.common.pairs.task import seq_task
from train.common.pairs.text_pairs import TextPairs
from train.common.pairs.tokens import PairTokens, PairTokensConfig
from train.common.task import Task


@dataclass(frozen=True)
class Write:
    """Trains a model that writes each answer, compares it with a nearest neighbour."""

    run_dir: Path = Path("runs/chat")
    """Where everything about the run goes; run the same command again to resume."""
    data: DialogueDataConfig = field(default_factory=DialogueDataConfig)
    """The dialogues."""
    history: int = 6
    """Utterances and rows that the model reads, the one to answer among them."""
    tokens: PairTokensConfig = field(default_factory=PairTokensConfig)
    """How texts are cut into tokens, and how many there may be."""
    model: SeqModelConfig = field(default_factory=SeqModelConfig)
    """The encoder-decoder."""
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    """How the answers of the test split are searched for."""
    label_smoothing: float = 0.1
    """Share of the target spread over the whole vocabulary."""
    seeds: tuple[int, ...] = ()
    """Several seeds: one run each, in RUN_DIR/seed-N, then a table of their test results."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=12,
            select_metric="loss",
            select_mode="min",
            optim=OptimConfig(learning_rate=1e-3),
        )
    )
    """The training loop."""

    def __post_init__(self) -> None:
        """Rejects what leaves nothing to read, or no loss."""
        if self.history < 1:
            raise ValueError(f"history must be at least 1, got {self.history}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")

    def describe(self) -> dict[str, Any]:
        """What config.json says about the task."""
        return {"form": "write", **task_fields(self)}


def write(config: Write) -> None:
    """Loads the dialogues, trains with each seed, prints the results beside the baseline's."""
    say = started(config.train)
    with main_first("data"):
        data = as_pairs(config.data.load(), config.history).with_leak_note()
    say("\n  ".join([data.summary(), *data.notes]))
    baseline = None
    if is_main() and not config.train.dry_run:
        outputs = nearest.nearest_targets(data, data.sources("test"))
        baseline = SeqBaseline.of(nearest.DESCRIPTION, outputs, data, DialogueScores())
        say(f"baseline, {baseline.describe()}")
    outcomes = {}
    for one in one_per_seed(config):
        if (outcome := train_writer(one, data, baseline)) is not None:
            outcomes[one.train.seed] = outcome
            say(outcome.describe())
    if len(outcomes) > 1:
        say(seeds_table(outcomes))


def train_writer(config: Write, data: TextPairs, baseline: SeqBaseline | None) -> SeqOutcome | None:
    """Trains with one seed, measures on the test split and writes the report.

    Args:
        config: the options.
        data: the pairs.
        baseline: None in a dry run, and in all processes but number 0, which measures and writes.

    Returns:
        The results; None where there is no baseline.
    """
    task, tokens, notes = writer_task(config, data)
    if is_main() and not config.train.dry_run:
        tokens.save(config.run_dir)
    result = run(task, config.train, config.run_dir, describe=config.describe())
    if result is None or baseline is None:
        return None
    writer = Writer(result.model(), tokens, config.decoding)
    scorer, title = DialogueScores(), "Dialogue: writing answers"
    return finish_seq(result, writer, data, baseline, scorer, title=title, notes=notes)


def writer_task(config: Write, data: TextPairs) -> tuple[Task, PairTokens, tuple[str, ...]]:
    """Puts data, model and loss together; says what did not fit."""
    tokens = config.tokens.train(data)
    same_everywhere("tokenisers", {"sha256": tokens.fingerprint})
    batches = PairBatches(data, tokens)
    say_notes(batches.notes())
    smoothing = config.label_smoothing
    task = seq_task(config.model, tokens, batches, smoothing=smoothing, metric=None)
    return task, tokens, batches.notes()
