"""What the programs that write a text for a text share: training, `predict` and `evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import tyro

from train.common import cli
from train.common.config import TrainConfig
from train.common.distributed import is_main, main_first, same_everywhere
from train.common.entry import one_per_seed, say_notes, started, task_fields
from train.common.loop import run
from train.common.pairs.batches import PairBatches
from train.common.pairs.models import SeqModelConfig
from train.common.pairs.outcome import SeqOutcome, finish_seq, search_notes, seeds_table
from train.common.pairs.run import DecodingConfig, Writer, described_seq_run
from train.common.pairs.scores import Scorer, SeqBaseline, scores_line
from train.common.pairs.task import seq_task
from train.common.pairs.text_pairs import TextPairs
from train.common.pairs.tokens import PairTokens, PairTokensConfig
from train.common.task import Task


class PairData(Protocol):
    """Where the pairs come from."""

    def load(self) -> TextPairs:
        """Reads them."""
        ...

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> PairData:
        """The config that `dataclasses.asdict` and JSON made `fields` of."""
        ...


@dataclass(frozen=True, kw_only=True)
class SeqConfig:
    """Options of a program that writes a text for a text; it adds `data` and its own defaults.

    Raises:
        ValueError: a rate is out of range.
    """

    run_dir: Path
    """Where everything about the run goes; run the same command again to resume."""
    data: Any
    """The pairs of texts."""
    tokens: PairTokensConfig = field(default_factory=PairTokensConfig)
    """How texts are cut into tokens, and how many there may be."""
    model: SeqModelConfig = field(default_factory=SeqModelConfig)
    """What reads and writes."""
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    """How outputs for the test split are searched for."""
    label_smoothing: float = 0.1
    """Share of the target spread over the whole vocabulary."""
    seeds: tuple[int, ...] = ()
    """Several seeds: one run each, in RUN_DIR/seed-N, then a table of their test results."""
    train: TrainConfig
    """The training loop."""

    def __post_init__(self) -> None:
        """Rejects what no loss can be made from."""
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")

    def describe(self) -> dict[str, Any]:
        """What config.json says about the task."""
        return task_fields(self)


@dataclass(frozen=True)
class Predict:
    """Writes for texts with a trained model."""

    run_dir: tyro.conf.Positional[Path]
    """A run directory of this program."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """The texts; without any, one per line of standard input."""
    json: bool = False
    """Print one JSON object per text instead of the output alone."""
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    """How outputs are searched for."""


@dataclass(frozen=True)
class Evaluate:
    """Measures a trained model on a split of the data it was trained with."""

    run_dir: tyro.conf.Positional[Path]
    """A run directory of this program."""
    split: Literal["train", "validation", "test"] = "test"
    """Which split."""
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    """How outputs are searched for."""


C = TypeVar("C", bound=SeqConfig)


@dataclass(frozen=True)
class SeqProgram(Generic[C]):
    """A program that writes a text for a text, but for its options and its header."""

    title: str
    """Of the report, the task's name."""
    config: type[C]
    """Its options."""
    data: type[PairData]
    """Of the options' `data`."""
    scorer: Callable[[TextPairs], Scorer]
    """What its outputs are compared with references by, on some data."""
    baseline: Callable[[TextPairs, Scorer], SeqBaseline]
    """What it has to beat."""
    description: str
    """Printed by `--help`."""

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Runs the command that the first argument names; `train` where it names none."""
        commands: dict[str, tuple[Any, Callable[[Any], None]]] = {
            "train": (self.config, self.train),
            "predict": (Predict, predict),
            "evaluate": (Evaluate, self.evaluate),
        }
        arguments = list(sys.argv[1:] if argv is None else argv)
        name = arguments.pop(0) if arguments and arguments[0] in commands else "train"
        kind, command = commands[name]
        return cli.guarded(
            lambda: command(cli.parse(kind, arguments, description=self.description))
        )

    def prepare(self, argv: Sequence[str]) -> tuple[Task, TrainConfig]:
        """What a command line would train, and how; for `python -m attnjax.plan`."""
        config = cli.parse(self.config, argv, description=self.description)
        data = config.data.load()
        return self._task(config, data, config.tokens.train(data))[0], config.train

    def train(self, config: C) -> None:
        """Loads the data, trains with each seed, prints the results beside the baseline's."""
        say = started(config.train)
        with main_first("data"):
            data = config.data.load()
        say("\n  ".join([data.summary(), *data.notes]))
        if config.train.dry_run:
            task, _ = self._task(config, data, config.tokens.train(data))
            run(task, config.train, config.run_dir, describe=config.describe())
            return
        baseline = self.baseline(data, self.scorer(data)) if is_main() else None
        if baseline is not None:
            say(f"baseline, {baseline.describe()}")
            _check_selection(config.train, baseline)
        outcomes = {}
        for one in one_per_seed(config):
            if (outcome := self._train_one(one, data, baseline)) is not None:
                outcomes[one.train.seed] = outcome
        if outcomes:
            (*_, last) = outcomes.values()
            say(seeds_table(outcomes) if config.seeds else last.describe())

    def evaluate(self, config: Evaluate) -> None:
        """Prints the scores of a split, and how they are computed."""
        data = self.data.from_json(described_seq_run(config.run_dir)["data"]).load()
        writer = Writer.load(config.run_dir, config.decoding)
        written = writer.write(data.sources(config.split))
        scorer = self.scorer(data)
        scores = scorer([one.text for one in written], data.targets(config.split))
        print(f"{config.split}: {scores_line(scores)}, {len(written)} texts")
        print("\n".join([*scorer.signatures().values(), *search_notes(written)]))

    def _task(self, config: C, data: TextPairs, tokens: PairTokens) -> tuple[Task, PairBatches]:
        """Puts data, model, loss and metrics together."""
        batches = PairBatches(data, tokens)
        task = seq_task(
            config.model,
            tokens,
            batches,
            smoothing=config.label_smoothing,
            metric=self.scorer(data),
        )
        return task, batches

    def _train_one(
        self, config: C, data: TextPairs, baseline: SeqBaseline | None
    ) -> SeqOutcome | None:
        """Trains with one seed; process 0, which has the baseline, measures and reports."""
        tokens = config.tokens.train(data)
        same_everywhere("tokenisers", {"sha256": tokens.fingerprint})
        task, batches = self._task(config, data, tokens)
        if is_main():
            tokens.save(config.run_dir)
        say_notes(batches.notes())
        result = run(task, config.train, config.run_dir, describe=config.describe())
        assert result is not None  # only a dry run has none
        if baseline is None:
            return None
        writer = Writer(result.model(), tokens, config.decoding)
        return finish_seq(
            result,
            writer,
            data,
            baseline,
            self.scorer(data),
            title=self.title,
            notes=batches.notes(),
        )


def _check_selection(train: TrainConfig, baseline: SeqBaseline) -> None:
    """Refuses a run that could not tell its best checkpoint, before it begins."""
    known = {"loss": "min", "token_accuracy": "max"} | dict.fromkeys(baseline.test, "max")
    mode = known.get(train.select_metric)
    if mode is None:
        raise ValueError(
            f"select_metric must be one of {', '.join(sorted(known))}, got {train.select_metric!r}"
        )
    if mode != train.select_mode:
        raise ValueError(
            f"the best {train.select_metric} is its {mode}: expected select_mode {mode}, got "
            f"{train.select_mode}"
        )


def predict(config: Predict) -> None:
    """Prints what the model writes for each text."""
    texts = config.texts or tuple(line.strip() for line in sys.stdin if line.strip())
    writer = Writer.load(config.run_dir, config.decoding)
    for written in writer.write(texts):
        print(written.as_json() if config.json else written.text, flush=True)
