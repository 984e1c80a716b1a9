"""Dialogue with attention that can be looked at: choosing answers, or writing them.

python -m train.dialogue                                  # choose answers, on the builtin data
python -m train.dialogue --data dialog_babi --data.task 5
python -m train.dialogue predict RUN_DIR "hello" "i need a room in oslo"
python -m train.dialogue write --data transcripts.txt     # write answers, from open chat
python -m train.dialogue evaluate RUN_DIR --split test
python -m train.dialogue chat RUN_DIR

Transcripts are lines `NAME: text`, a blank line between conversations.

What it gave (jax 0.10.2, CPU; per cent of right answers, choosing among all candidates; oov: a test
with values that training never shows; the baseline gives training's answer to the likest words of
the user). dialog-bAbI has 4,212 candidates; the published memory network has 99.9, 100, 74.9, 59.5
and 96.1 on the test splits.

task      seeds     test    oov   baseline (test)   CPU minutes a run
1         0 1 2    99.92  98.90             65.85                 1.2
2         0 1 2    99.87  99.37             78.87                 2.3
3         0 1 2    92.81  93.68             64.91                 4.5
4         0 1 2   100.00 100.00             57.18                 0.7
5         0 1 2    99.26  97.97             60.52                 8.0
builtin   0        83.55  93.04             51.83                 5.5

python -m train.dialogue --data dialog_babi --data.task TASK --train.eval-every 600
(1540 in task 3, 1200 in task 5; all with `--seeds 0 1 2`)

python -m train.dialogue --train.epochs 5
(builtin; nearly all that is wrong are offers, by name and score of hotels; new names do better)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

from attnjax.models.decode import Sampling
from train.common import cli
from train.common.config import TrainConfig
from train.common.dialogue.batches import context_of
from train.common.dialogue.chat import HELP, Answerer, converse
from train.common.dialogue.choosing import Choose, choose, chooser_task
from train.common.dialogue.data import DialogueDataConfig
from train.common.dialogue.dialogues import Turn
from train.common.dialogue.knowledge import KnowledgeBase
from train.common.dialogue.outcome import scores_table
from train.common.dialogue.pairs import (
    ChatWriter,
    DialogueScores,
    answer_pairs,
    as_pairs,
    source_of,
)
from train.common.dialogue.run import Chooser
from train.common.dialogue.writing import Write, write, writer_task
from train.common.pairs.outcome import search_notes
from train.common.pairs.run import DecodingConfig, Writer
from train.common.pairs.scores import scores_line
from train.common.rundir import CONFIG
from train.common.task import Task


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
    temperature: float = 0.0
    """Of written answers: divides the logits; 0 writes the likeliest token each time."""
    top_p: float | None = None
    """Of written answers: keeps the fewest of the likeliest tokens that sum to this probability."""
    seed: int = 0
    """Of the draws of written answers."""


def described(run_dir: Path) -> dict[str, Any]:
    """The task's part of a run's config.

    Raises:
        ValueError: there is no such run, or it is one of another program.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise ValueError(f"{run_dir} is no run directory: it has no {CONFIG}")
    task = json.loads(path.read_text(encoding="utf-8"))["task"]
    if task.get("form") not in ("choose", "write"):
        raise ValueError(f"{run_dir} is a run of another program, not of dialogue")
    return task


def predict(config: Predict) -> None:
    """Prints the answer to each turn of one dialogue; of a chosen one, what it looked at."""
    task = described(config.run_dir)
    turns: list[Turn] = []
    users = config.texts or (line.strip() for line in sys.stdin if line.strip())
    if task["form"] == "write":
        writer = Writer.load(config.run_dir, DecodingConfig(**task["decoding"]))
        for user in users:
            source = source_of(context_of(turns, user), task["history"])
            written = writer.write([source])[0]
            print(written.as_json() if config.json else written.text, flush=True)
            turns.append(Turn(user, written.text))
        return
    chooser = Chooser.load(config.run_dir, task)
    for user in users:
        choice = chooser.choose([context_of(turns, user)])[0]
        print(choice.as_json() if config.json else choice.as_text(), flush=True)
        turns.append(Turn(user, choice.answer))


def evaluate(config: Evaluate) -> None:
    """Prints the scores of a split."""
    task = described(config.run_dir)
    data = DialogueDataConfig.from_json(task["data"]).load()
    if config.split not in data.splits:
        splits = ", ".join(data.splits)
        raise ValueError(f"{data.origin} has no split {config.split}, only {splits}")
    if task["form"] == "choose":
        chooser = Chooser.load(config.run_dir, task)
        print(scores_table({config.split: chooser.scores(data.splits[config.split])}))
        return
    pairs = answer_pairs(data.splits[config.split], task["history"])
    writer = Writer.load(config.run_dir, DecodingConfig(**task["decoding"]))
    written = writer.write([pair.source for pair in pairs])
    scores = DialogueScores()([one.text for one in written], [pair.target for pair in pairs])
    print(f"{config.split}: {scores_line(scores)}, {len(pairs)} answers")
    print("\n".join([*DialogueScores().signatures().values(), *search_notes(written)]))


def chat(config: Chat) -> None:
    """Talks until the input ends."""
    task = described(config.run_dir)
    knowledge = None
    answerer: Answerer
    if task["form"] == "choose":
        answerer = Chooser.load(config.run_dir, task)
        knowledge = KnowledgeBase.of(answerer.knowledge) if answerer.knowledge else None
    else:
        answerer = ChatWriter.load(
            config.run_dir, task, Sampling(config.temperature, top_p=config.top_p), config.seed
        )
    print(HELP, flush=True)
    converse(answerer, _typed(), partial(print, end="", flush=True), knowledge=knowledge)


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
    name, arguments = _command(argv)
    if name == "write":
        writes = cli.parse(Write, arguments, description=__doc__)
        pairs = as_pairs(writes.data.load(), writes.history)
        return writer_task(writes, pairs)[0], writes.train
    config = cli.parse(Choose, arguments, description=__doc__)
    return chooser_task(config, config.data.load().with_notes())[0], config.train


COMMANDS: dict[str, tuple[Any, Any]] = {
    "choose": (Choose, choose),
    "write": (Write, write),
    "predict": (Predict, predict),
    "evaluate": (Evaluate, evaluate),
    "chat": (Chat, chat),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names; `choose` where it names none."""
    name, arguments = _command(sys.argv[1:] if argv is None else argv)
    config_class, command = COMMANDS[name]
    return cli.guarded(lambda: command(cli.parse(config_class, arguments, description=__doc__)))


def _command(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The command that the first argument names, and the arguments after it."""
    arguments = list(argv)
    named = bool(arguments) and arguments[0] in COMMANDS
    return (arguments.pop(0) if named else "choose"), arguments


if __name__ == "__main__":
    sys.exit(main())
