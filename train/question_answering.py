"""Question answering with attention that can be looked at: about stories, or spans of a text.

python -m train.question_answering                        # stories, on the builtin data
python -m train.question_answering stories --data tasks_1-20_v1-2.tar.gz --data.folder en
python -m train.question_answering spans --data train-v1.1.json --data.test dev-v1.1.json
python -m train.question_answering predict RUN_DIR "Ada went home." "Where is Ada?"
python -m train.question_answering evaluate RUN_DIR --split test
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

from train.common import cli
from train.common.config import TrainConfig
from train.common.distributed import is_main, main_first, same_everywhere
from train.common.loop import run
from train.common.optim import OptimConfig
from train.common.rundir import CONFIG
from train.common.stories import StoryData
from train.common.story_batches import StoryEncoder
from train.common.story_loading import StoryDataConfig
from train.common.story_models import StoryModelConfig
from train.common.story_outcome import StoryOutcome, finish, seeds_table
from train.common.story_run import StoryAnswerer, as_story, save_story_side
from train.common.story_scores import StoryBaseline, StoryScores, errors_table, guess
from train.common.story_task import make_encoder, make_task
from train.common.task import Task
from train.common.text_files import read_text


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
            epochs=20,
            optim=OptimConfig(learning_rate=2e-3, weight_decay=0.01),
        )
    )
    """The training loop."""

    def __post_init__(self) -> None:
        """Rejects what leaves nothing to read."""
        if self.max_words < 1:
            raise ValueError(f"max_words must be at least 1, got {self.max_words}")

    def describe(self) -> dict[str, Any]:
        """What config.json says about the task."""
        fields = dataclasses.asdict(self)
        kept = {k: v for k, v in fields.items() if k not in ("run_dir", "train", "seeds", "single")}
        return {"form": "stories", **kept}


@dataclass(frozen=True)
class Predict:
    """Answers questions with a trained model and shows where it looked."""

    run_dir: tyro.conf.Positional[Path]
    """A run directory of this program."""
    context: tyro.conf.Positional[str]
    """The story or text; @FILE reads it from a file."""
    questions: tyro.conf.Positional[tuple[str, ...]] = ()
    """The questions; without any, one per line of standard input."""
    json: bool = False
    """Print one JSON object per question instead of text."""


@dataclass(frozen=True)
class Evaluate:
    """Measures a trained model on a split of the data it was trained with."""

    run_dir: tyro.conf.Positional[Path]
    """A run directory of this program."""
    split: Literal["train", "validation", "test"] = "test"
    """Which split."""


def story_task(config: Stories, data: StoryData, encoder: StoryEncoder) -> Task:
    """Stories as a task of the training loop."""
    return make_task(
        data,
        encoder,
        config.model,
        max_sentences=config.data.max_sentences,
        smoothing=config.label_smoothing,
    )


def train_on(config: Stories, data: StoryData, baseline: StoryBaseline | None) -> Any:
    """Trains one model, measures it on the test split and writes the report."""
    encoder = make_encoder(data, config.max_words)
    same_everywhere("tokeniser", {"sha256": encoder.tokeniser.fingerprint})
    if is_main() and not config.train.dry_run:
        save_story_side(config.run_dir, encoder)
    task = story_task(config, data, encoder)
    result = run(task, config.train, config.run_dir, describe=config.describe())
    if result is None or baseline is None:
        return None
    answerer = StoryAnswerer(result.model(), encoder, config.data.max_sentences)
    return finish(result, answerer, data, baseline)


def train_stories(config: Stories) -> None:
    """Loads the stories, trains with each seed, prints the errors beside the baseline's."""
    config.train.distributed.start()
    say = partial(print, flush=True) if is_main() else lambda text: None
    with main_first("data"):
        data = config.data.load()
    say("\n  ".join([data.summary(), *data.notes]))
    baseline = guess(data) if is_main() and not config.train.dry_run else None
    if baseline is not None:
        say(f"baseline: {baseline.describe()}")
    tested: dict[int, StoryScores] = {}
    for seed in config.seeds or (config.train.seed,):
        folder = config.run_dir / f"seed-{seed}" if config.seeds else config.run_dir
        seeded = dataclasses.replace(config.train, seed=seed)
        parts = {task: data.of_task(task) for task in data.tasks} if config.single else {"": data}
        outcomes: list[StoryOutcome] = []
        for task, part in parts.items():
            one = dataclasses.replace(config, run_dir=folder / task, train=seeded)
            its_baseline = guess(part) if task and baseline else baseline
            outcome = train_on(one, part, its_baseline)
            if outcome is not None:
                outcomes.append(outcome)
                say(outcome.describe())
        if outcomes:
            tested[seed] = StoryScores.merged([outcome.test for outcome in outcomes])
    if baseline is not None and (config.single or len(tested) > 1):
        for scores in tested.values():
            say(errors_table(scores, baseline))
        say(seeds_table(tested, baseline))


def described(run_dir: Path) -> dict[str, Any]:
    """The task's part of a run's config.

    Raises:
        ValueError: there is no such run, or it is one of another program.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise ValueError(f"{run_dir} is no run directory: it has no {CONFIG}")
    task = json.loads(path.read_text(encoding="utf-8"))["task"]
    if task.get("form") not in ("stories", "spans"):
        raise ValueError(f"{run_dir} is a run of another program, not of question answering")
    return task


def predict(config: Predict) -> None:
    """Prints the answer to each question and where the model looked."""
    task = described(config.run_dir)
    context = config.context
    if context.startswith("@"):
        context = read_text(Path(context[1:]))
    questions = config.questions or tuple(line.strip() for line in sys.stdin if line.strip())
    answerer = StoryAnswerer.load(config.run_dir, task)
    for answer in answerer.answer([as_story(context, question) for question in questions]):
        print(answer.as_json() if config.json else answer.as_text(), flush=True)


def evaluate(config: Evaluate) -> None:
    """Prints the errors on a split."""
    task = described(config.run_dir)
    data = StoryDataConfig.from_json(task["data"]).load()
    answerer = StoryAnswerer.load(config.run_dir, task)
    print(errors_table(answerer.scored(data.splits[config.split])[0]))


def prepare(argv: Sequence[str]) -> tuple[Task, TrainConfig]:
    """What a command line would train, and how; for `python -m attnjax.plan`."""
    config = cli.parse(Stories, argv, description=__doc__)
    data = config.data.load()
    return story_task(config, data, make_encoder(data, config.max_words)), config.train


COMMANDS: dict[str, tuple[Any, Any]] = {
    "stories": (Stories, train_stories),
    "predict": (Predict, predict),
    "evaluate": (Evaluate, evaluate),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names; `stories` where it names none."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "stories"
    config_class, command = COMMANDS[name]
    return cli.guarded(lambda: command(cli.parse(config_class, arguments, description=__doc__)))


if __name__ == "__main__":
    sys.exit(main())
