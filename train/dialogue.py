"""Dialogue with attention that can be looked at: choosing answers, or writing them.

python -m train.dialogue                                  # choose answers, on the builtin data
python -m train.dialogue --data dialog_babi --data.task 5
python -m train.dialogue predict RUN_DIR "hello" "i need a room in oslo"
python -m train.dialogue evaluate RUN_DIR --split test
python -m train.dialogue chat RUN_DIR
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

from train.common import cli
from train.common.config import TrainConfig
from train.common.dialogue_baseline import DialogueBaseline, likest_turn
from train.common.dialogue_batches import DialogueBatches, DialogueEncoder, context_of
from train.common.dialogue_chat import HELP, converse
from train.common.dialogue_data import DialogueDataConfig
from train.common.dialogue_models import SelectorConfig
from train.common.dialogue_outcome import DialogueOutcome, finish, scores_table, seeds_table
from train.common.dialogue_run import Chooser, save_chooser_side
from train.common.dialogue_task import selector_task
from train.common.dialogue_words import DialogueWordsConfig
from train.common.dialogues import DialogueData, Turn
from train.common.distributed import is_main, main_first
from train.common.knowledge import KnowledgeBase
from train.common.loop import run
from train.common.optim import OptimConfig
from train.common.rundir import CONFIG
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
            epochs=8, batch_size=32, optim=OptimConfig(learning_rate=2e-3)
        )
    )
    """The training loop."""

    def __post_init__(self) -> None:
        """Rejects what leaves nothing to read."""
        if self.max_history < 1:
            raise ValueError(f"max_history must be at least 1, got {self.max_history}")

    def describe(self) -> dict[str, Any]:
        """What config.json says about the task."""
        fields = dataclasses.asdict(self)
        kept = {k: v for k, v in fields.items() if k not in ("run_dir", "train", "seeds")}
        return {"form": "choose", **kept}


@dataclass(frozen=True)
class Predict:
    """Answers in one dialogue and shows where the model looked."""

    run_dir: tyro.conf.Positional[Path]
    """A run directory of this program."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """What the user says, turn by turn; without any, one turn per line of standard input."""
    json: bool = False
    """Print one JSON object per answer instead of text."""


@dataclass(frozen=True)
class Evaluate:
    """Measures a trained model on a split of the data it was trained with."""

    run_dir: tyro.conf.Positional[Path]
    """A run directory of this program."""
    split: Literal["train", "validation", "test", "oov"] = "test"
    """Which split."""


@dataclass(frozen=True)
class Chat:
    """A dialogue with a trained model in the terminal."""

    run_dir: tyro.conf.Positional[Path]
    """A run directory of this program."""


def make_encoder(config: Choose, data: DialogueData) -> DialogueEncoder:
    """Collects the words of the training split."""
    return DialogueEncoder(config.words.collect(data), config.max_history)


def make_task(config: Choose, data: DialogueData, encoder: DialogueEncoder) -> Task:
    """Puts data, model, loss and metrics together; says what did not fit."""
    batches = DialogueBatches(data, encoder)
    if is_main():
        for note in batches.notes(data):
            print(f"  {note}", flush=True)
    return selector_task(config.model, encoder.words, encoder.bags(data.candidates), batches)


def train_one(
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
    encoder = make_encoder(config, data)
    if is_main() and not config.train.dry_run:
        save_chooser_side(config.run_dir, encoder.words, data)
    task = make_task(config, data, encoder)
    result = run(task, config.train, config.run_dir, describe=config.describe())
    if result is None or baseline is None:
        return None
    chooser = Chooser(result.model(), encoder, data.candidates, data.knowledge)
    return finish(result, chooser, data, baseline, config.model.hops * config.model.heads)


def choose(config: Choose) -> None:
    """Loads the dialogues, trains with each seed, prints the results beside the baseline's."""
    config.train.distributed.start()
    say = partial(print, flush=True) if is_main() else lambda text: None
    with main_first("data"):
        data = config.data.load()
    say("\n  ".join([data.summary(), *data.notes]))
    baseline = likest_turn(data) if is_main() and not config.train.dry_run else None
    if baseline is not None:
        say(f"baseline: {baseline.describe()}")
    outcomes = {}
    for seed in config.seeds or (config.train.seed,):
        run_dir = config.run_dir / f"seed-{seed}" if config.seeds else config.run_dir
        seeded = dataclasses.replace(config.train, seed=seed)
        one = dataclasses.replace(config, run_dir=run_dir, train=seeded)
        if (outcome := train_one(one, data, baseline)) is not None:
            outcomes[seed] = outcome
            say(outcome.describe())
    if len(outcomes) > 1:
        say(seeds_table(outcomes))


def described(run_dir: Path) -> dict[str, Any]:
    """The task's part of a run's config.

    Raises:
        ValueError: there is no such run, or it is one of another program.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise ValueError(f"{run_dir} is no run directory: it has no {CONFIG}")
    task = json.loads(path.read_text(encoding="utf-8"))["task"]
    if task.get("form") != "choose":
        raise ValueError(f"{run_dir} is a run of another program, not of dialogue")
    return task


def predict(config: Predict) -> None:
    """Prints the answer to each turn of one dialogue and where the model looked."""
    chooser = Chooser.load(config.run_dir, described(config.run_dir))
    turns: list[Turn] = []
    for user in config.texts or (line.strip() for line in sys.stdin if line.strip()):
        choice = chooser.choose([context_of(turns, user)])[0]
        print(choice.as_json() if config.json else choice.as_text(), flush=True)
        turns.append(Turn(user, choice.answer))


def evaluate(config: Evaluate) -> None:
    """Prints the accuracies on a split."""
    task = described(config.run_dir)
    data = DialogueDataConfig.from_json(task["data"]).load()
    if config.split not in data.splits:
        raise ValueError(
            f"{data.origin} has no split {config.split}, only {', '.join(data.splits)}"
        )
    chooser = Chooser.load(config.run_dir, task)
    print(scores_table({config.split: chooser.scores(data.splits[config.split])}))


def chat(config: Chat) -> None:
    """Talks until the input ends."""
    chooser = Chooser.load(config.run_dir, described(config.run_dir))
    knowledge = KnowledgeBase.of(chooser.knowledge) if chooser.knowledge else None
    print(HELP, flush=True)
    converse(chooser, _typed(), partial(print, end="", flush=True), knowledge=knowledge)


def _typed() -> Iterator[str]:
    """The lines of standard input, asked for where a person types them."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    while True:
        try:
            yield input("> ")
        except EOFError:
            return


def prepare(argv: Sequence[str]) -> tuple[Task, TrainConfig]:
    """What a command line would train, and how; for `python -m attnjax.plan`."""
    config = cli.parse(Choose, argv, description=__doc__)
    data = config.data.load()
    return make_task(config, data, make_encoder(config, data)), config.train


COMMANDS: dict[str, tuple[Any, Any]] = {
    "choose": (Choose, choose),
    "predict": (Predict, predict),
    "evaluate": (Evaluate, evaluate),
    "chat": (Chat, chat),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names; `choose` where it names none."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "choose"
    config_class, command = COMMANDS[name]
    return cli.guarded(lambda: command(cli.parse(config_class, arguments, description=__doc__)))


if __name__ == "__main__":
    sys.exit(main())
