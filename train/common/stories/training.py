"""The command `stories` of question answering: its config, and training from it."""

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
from train.common.stories.batches import StoryEncoder
from train.common.stories.data import StoryData
from train.common.stories.loading import StoryDataConfig
from train.common.stories.models import StoryModelConfig
from train.common.stories.outcome import StoryOutcome, finish, seeds_table
from train.common.stories.run import StoryAnswerer, save_story_side
from train.common.stories.scores import StoryBaseline, StoryScores, errors_table, guess
from train.common.stories.task import make_encoder, make_task
from train.common.task import Task


@dataclass(frozen=True)
class Stories:
    """Trains a model that answers questions about short stories with one of the known answers."""

    run_dir: Path = Path("runs/stories")
    """Where everything about the run goes; run the same command again to resume."""
    data: StoryDataConfig = field(default_factory=StoryDataConfig)
    """The stories and their questions."""
    model: StoryModelConfig = field(default_factory=StoryModelConfig)
    """What reads them."""
    single: bool = False
    """One model for each task, in RUN_DIR/TASK; otherwise one for all tasks together."""
    max_words: int = 32
    """Sentences are cut after this many words."""
    label_smoothing: float = 0.0
    """Share of the target spread over all answers."""
    seeds: tuple[int, ...] = ()
    """Several seeds: one run each, in RUN_DIR/seed-N, then a table of their test results."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=20, optim=OptimConfig(learning_rate=2e-3, weight_decay=0.01)
        )
    )
    """The training loop."""

    def __post_init__(self) -> None:
        """Rejects what leaves nothing to read."""
        if self.max_words < 1:
            raise ValueError(f"max_words must be at least 1, got {self.max_words}")

    def for_task(self, task: str) -> Stories:
        """The config of a run of its own for one task."""
        data = dataclasses.replace(self.data, tasks=(task,))
        return dataclasses.replace(self, run_dir=self.run_dir / task, data=data)

    def describe(self) -> dict[str, Any]:
        """What config.json says about the task."""
        fields = dataclasses.asdict(self)
        kept = {k: v for k, v in fields.items() if k not in ("run_dir", "train", "seeds", "single")}
        return {"form": "stories", **kept}


def parts_of(config: Stories, data: StoryData) -> tuple[StoryEncoder, Task]:
    """The encoder of stories, and the task of the training loop."""
    encoder = make_encoder(data, config.max_words)
    task = make_task(
        data,
        encoder,
        config.model,
        max_sentences=config.data.max_sentences,
        smoothing=config.label_smoothing,
    )
    return encoder, task


def train_once(
    config: Stories, data: StoryData, baseline: StoryBaseline | None
) -> StoryOutcome | None:
    """Trains one model, measures it on the test split and writes the report."""
    encoder, task = parts_of(config, data)
    same_everywhere("tokeniser", {"sha256": encoder.tokeniser.fingerprint})
    if is_main() and not config.train.dry_run:
        save_story_side(config.run_dir, encoder)
    result = run(task, config.train, config.run_dir, describe=config.describe())
    if result is None or baseline is None:
        return None
    answerer = StoryAnswerer(result.model(), encoder, config.data.max_sentences)
    return finish(result, answerer, data, baseline)


def train_stories(config: Stories) -> None:
    """Loads the stories, trains with each seed, prints the errors beside the baseline's."""
    data, say = opened(config)
    baseline = guess(data) if is_main() and not config.train.dry_run else None
    if baseline is not None:
        say(f"baseline: {baseline.describe()}")

    def train_one(config: Stories) -> StoryScores | None:
        parts = {task: data.of_task(task) for task in data.tasks} if config.single else {"": data}
        tested = []
        for task, part in parts.items():
            its_own = guess(part) if baseline else None
            one = config.for_task(task) if task else config
            if (outcome := train_once(one, part, its_own)) is not None:
                say(outcome.describe())
                tested.append(outcome.test)
        return StoryScores.merged(tested) if tested else None

    tested = {
        one.train.seed: outcome
        for one in one_per_seed(config)
        if (outcome := train_one(one)) is not None
    }
    if baseline is not None and config.single:
        say("\n".join(errors_table(scores, baseline) for scores in tested.values()))
    if baseline is not None and len(tested) > 1:
        say(seeds_table(tested, baseline))
