"""Question answering with attention that can be looked at: about stories, or spans of a text.

python -m train.question_answering                        # stories, on the builtin data
python -m train.question_answering stories --data tasks_1-20_v1-2.tar.gz --data.folder en
python -m train.question_answering spans --data train-v1.1.json --data.test dev-v1.1.json
python -m train.question_answering predict RUN_DIR "Ada went home." "Where is Ada?"
python -m train.question_answering evaluate RUN_DIR --split test

What it gave (jax 0.10.2, CPU; one seed). Each block below goes behind
`python -m train.question_answering`.

Our own stories, chains of one, two and three facts, people at places that training never shows:
16.9% errors, the place mentioned last 65.5%; 5 minutes on four cores that others used, too.

stories --data builtin

bAbI 1k, 20 tasks in one training: mean error 16.96% (16.91, 16.89 and 17.09 with seeds 0, 1 and 2),
the answer mentioned last 57.4%; 10 minutes of processor time.

stories --data en.tar.gz --data.validation-fraction 0.05 --train.epochs 25

bAbI 10k, one model for each task, 19 of them (task 3 is missing): mean error 9.24% (9.46, 9.16 and
9.10 with seeds 0, 1 and 2), the answer mentioned last or most often 56.0%; 15 minutes of processor
time. Tasks 16 (52%), 17 (45%) and 19 (29%) are not learnt.

stories --data en-valid-10k.tar.gz --single --model memory --train.epochs 12
--train.optim.learning-rate 5e-3 --train.eval-every 1700 --train.seed 0

"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from train.common import cli
from train.common.config import TrainConfig
from train.common.data.files import read_text
from train.common.files import write_json
from train.common.rundir import CONFIG
from train.common.spans import training as span_training
from train.common.spans.answers import texts as span_texts
from train.common.spans.data import SpanQuestion
from train.common.spans.loading import SpanDataConfig
from train.common.spans.outcome import scores_table
from train.common.spans.run import SpanAnswerer
from train.common.spans.training import Spans, train_spans
from train.common.stories import training as story_training
from train.common.stories.loading import StoryDataConfig
from train.common.stories.run import StoryAnswerer, as_story
from train.common.stories.scores import errors_table
from train.common.stories.training import Stories, train_stories
from train.common.task import Task


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
    predictions: Path | None = None
    """Of spans: a new file for the answers, as SQuAD's official script reads them."""


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
    task, context = described(config.run_dir), config.context
    if context.startswith("@"):
        context = read_text(Path(context[1:]))
    if not context.strip():
        raise ValueError("the context is empty; there is nothing to look for an answer in")
    asked = config.questions or tuple(line.strip() for line in sys.stdin if line.strip())
    if not asked or not all(question.strip() for question in asked):
        raise ValueError("expected at least one question, and words in each")
    if task["form"] == "stories":
        stories = [as_story(context, question) for question in asked]
        answers = list(StoryAnswerer.load(config.run_dir, task).answer(stories))
        lines = [answer.as_json() if config.json else answer.as_text() for answer in answers]
    else:
        answerer = SpanAnswerer.load(config.run_dir, task)
        questions = [SpanQuestion(str(n), "", context, q, ()) for n, q in enumerate(asked)]
        found = answerer.answer(questions)
        lines = [
            answer.as_json() if config.json else answer.as_text(answerer.threshold)
            for answer in (found[question.id] for question in questions)
        ]
    print("\n".join(lines), flush=True)


def evaluate(config: Evaluate) -> None:
    """Prints the errors, or EM and F1, on a split."""
    task = described(config.run_dir)
    if config.predictions is not None and (
        task["form"] == "stories" or config.predictions.exists()
    ):
        raise ValueError(f"--predictions {config.predictions}: goes with spans, and a new file")
    if task["form"] == "stories":
        data = StoryDataConfig.from_json(task["data"]).load()
        reader = StoryAnswerer.load(config.run_dir, task)
        print(errors_table(reader.scored(data.splits[config.split])[0]))
        return
    texts = SpanDataConfig.from_json(task["data"]).load()
    answerer = SpanAnswerer.load(config.run_dir, task)
    scores, answers = answerer.scored(texts.splits[config.split], texts.rules)
    if config.predictions is not None:
        write_json(config.predictions, span_texts(answers, answerer.threshold))
    print(scores_table(scores))


def prepare(argv: Sequence[str]) -> tuple[Task, TrainConfig]:
    """What a command line would train, and how; for `python -m attnjax.plan`."""
    arguments = list(argv)
    name = arguments.pop(0) if arguments[:1] in (["stories"], ["spans"]) else "stories"
    if name == "spans":
        spans = cli.parse(Spans, arguments, description=__doc__)
        return span_training.parts_of(spans, spans.data.load())[1], spans.train
    stories = cli.parse(Stories, arguments, description=__doc__)
    return story_training.parts_of(stories, stories.data.load())[1], stories.train


COMMANDS: dict[str, tuple[Any, Any]] = {
    "stories": (Stories, train_stories),
    "spans": (Spans, train_spans),
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
