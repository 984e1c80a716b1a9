"""Training of a model that chooses each answer of a bot among candidates."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.common.config import TrainConfig
from train.common.dialogue.baseline import DialogueBaseline, likest_turn
from train.common.dialogue.batches import DialogueBatches, DialogueEncoder
from train.common.dialogue.data import DialogueDataConfig
from train.common.dialogue.dialogues import DialogueData
from train.common.dialogue.models import SelectorConfig
from train.common.dialogue.outcome import DialogueOutcome, finish, seeds_table
from train.common.dialogue.run import Chooser, save_chooser_side
from train.common.dialogue.task import selector_task
from train.common.dialogue.words import DialogueWordsConfig
from train.common.distributed import is_main, main_first
from train.common.entry import one_per_seed, say_notes, started, task_fields
from train.common.loop import run
from train.common.optim import OptimConfig
from train.common.task import Task


@dataclass(frozen=True)
class Choose:
    """Trains a model that chooses each answer of a bot among candidates."""

    run_dir: Path = Path("runs/dialogue")
    """Where everything about the run goes; run the same command again to resume."""
    data: DialogueDataConfig = field(default_factory=DialogueDataConfig)
    """The dialogues."""
    words: DialogueWordsConfig = field(default_factory=DialogueWordsConfig)
    """How utterances are cut into words."""
    model: SelectorConfig = field(default_factory=SelectorConfig)
    """The memory network that reads the dialogue so far."""
    max_history: int = 256
    """Only this many utterances and rows are read, the latest; how often some are left is said."""
    seeds: tuple[int, ...] = ()
    """Several seeds: one run each, in RUN_DIR/seed-N, then a table of their test results."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=10, batch_size=32, optim=OptimConfig(learning_rate=2e-3)
        )
    )
    """The training loop."""

    def __post_init__(self) -> None:
        """Rejects what leaves nothing to read."""
        if self.max_history < 1:
            raise ValueError(f"max_history must be at least 1, got {self.max_history}")

    def describe(self) -> dict[str, Any]:
        """What config.json says about the task."""
        return {"form": "choose", **task_fields(self)}


def choose(config: Choose) -> None:
    """Loads the dialogues, trains with each seed, prints the results beside the baseline's."""
    say = started(config.train)
    with main_first("data"):
        data = config.data.load().with_notes()
    say("\n  ".join([data.summary(), *data.notes]))
    baseline = likest_turn(data) if is_main() and not config.train.dry_run else None
    if baseline is not None:
        say(f"baseline: {baseline.describe()}")
    outcomes = {}
    for one in one_per_seed(config):
        if (outcome := train_chooser(one, data, baseline)) is not None:
            outcomes[one.train.seed] = outcome
            say(outcome.describe())
    if len(outcomes) > 1:
        say(seeds_table(outcomes))


def train_chooser(
    config: Choose, data: DialogueData, baseline: DialogueBaseline | None
) -> DialogueOutcome | None:
    """Trains with one seed, measures on the held-out splits and writes the report.

    Args:
        config: the options.
        data: the dialogues.
        baseline: None in a dry run, and in all processes but number 0, which measures and writes.

    Returns:
        The results; None where there is no baseline.
    """
    task, encoder = chooser_task(config, data)
    if is_main() and not config.train.dry_run:
        save_chooser_side(config.run_dir, encoder.words, data)
    result = run(task, config.train, config.run_dir, describe=config.describe())
    if result is None or baseline is None:
        return None
    chooser = Chooser(result.model(), encoder, data.candidates, data.knowledge)
    return finish(result, chooser, data, baseline, config.model.hops * config.model.heads)


def chooser_task(config: Choose, data: DialogueData) -> tuple[Task, DialogueEncoder]:
    """Puts data, model, loss and metrics together; says what did not fit."""
    encoder = DialogueEncoder(config.words.collect(data), config.max_history)
    batches = DialogueBatches(data, encoder)
    say_notes(batches.notes(data))
    bags = encoder.bags(data.candidates)
    return selector_task(config.model, encoder.words, bags, batches), encoder
