"""Summarisation: a short text for a long one, with words copied where that helps.

python -m train.summarisation                                    # train on the builtin data
python -m train.summarisation --data articles.jsonl --data.source-column body
python -m train.summarisation predict RUN_DIR < texts.txt
python -m train.summarisation evaluate RUN_DIR --split test
"""

from __future__ import annotations

import dataclasses
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
from train.common.lead import lead_baseline
from train.common.loop import run
from train.common.optim import OptimConfig
from train.common.pair_batches import PairBatches
from train.common.pair_tokens import PairTokens, PairTokensConfig
from train.common.seq_models import SeqModelConfig
from train.common.seq_outcome import (
    SeqBaseline,
    SeqOutcome,
    finish_seq,
    scores_line,
    search_notes,
    seeds_table,
)
from train.common.seq_run import DecodingConfig, Writer, described_seq_run
from train.common.seq_task import seq_task
from train.common.seq_tokenise import SeqTokeniserConfig
from train.common.summary_data import SummaryData
from train.common.summary_scores import SummaryScores
from train.common.task import Task
from train.common.text_pairs import TextPairs


@dataclass(frozen=True)
class Config:
    """Trains a summariser, compares it with how the texts begin, writes a report."""

    run_dir: Path = Path("runs/summarisation")
    """Where everything about the run goes; run the same command again to resume."""
    data: SummaryData = field(default_factory=SummaryData)
    """The texts and their summaries."""
    tokens: PairTokensConfig = field(
        default_factory=lambda: PairTokensConfig(
            tokens=SeqTokeniserConfig(lowercase=True, max_vocabulary=6000, min_count=2),
            max_source=192,
            max_target=32,
            too_long="cut",
        )
    )
    """How texts are cut into tokens, and how many there may be."""
    model: SeqModelConfig = field(default_factory=SeqModelConfig)
    """What reads and writes."""
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    """How summaries of the test split are searched for."""
    label_smoothing: float = 0.1
    """Share of the target spread over the whole vocabulary."""
    seeds: tuple[int, ...] = ()
    """Several seeds: one run each, in RUN_DIR/seed-N, then a table of their test results."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=15,
            batch_size=32,
            eval_batch_size=128,
            ema_decay=0.995,
            select_metric="rouge1",
            optim=OptimConfig(learning_rate=1e-3),
        )
    )
    """The training loop."""

    def __post_init__(self) -> None:
        """Rejects what no loss can be made from."""
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")

    def describe(self) -> dict[str, Any]:
        """What config.json says about the task."""
        fields = dataclasses.asdict(self)
        return {k: v for k, v in fields.items() if k not in ("run_dir", "train", "seeds")}


@dataclass(frozen=True)
class Predict:
    """Summarises texts with a trained model."""

    run_dir: tyro.conf.Positional[Path]
    """A run directory of this program."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """The texts; without any, one per line of standard input."""
    json: bool = False
    """Print one JSON object per text instead of the summary alone."""
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    """How summaries are searched for."""


@dataclass(frozen=True)
class Evaluate:
    """Measures a trained model on a split of the data it was trained with."""

    run_dir: tyro.conf.Positional[Path]
    """A run directory of this program."""
    split: Literal["train", "validation", "test"] = "test"
    """Which split."""
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    """How summaries are searched for."""


def make_task(config: Config, data: TextPairs, tokens: PairTokens, batches: PairBatches) -> Task:
    """Puts data, model, loss and metrics together."""
    scorer = SummaryScores.fitting(data)
    return seq_task(config.model, tokens, batches, smoothing=config.label_smoothing, metric=scorer)


def train_one(config: Config, data: TextPairs, baseline: SeqBaseline | None) -> SeqOutcome | None:
    """Trains with one seed, measures on the test split and writes the report.

    Args:
        config: the options.
        data: the texts.
        baseline: None in all processes but number 0, which measures and writes.

    Returns:
        The result; None where there is no baseline.
    """
    tokens = config.tokens.train(data)
    same_everywhere("tokenisers", {"sha256": tokens.fingerprint})
    batches = PairBatches(data, tokens)
    if is_main():
        tokens.save(config.run_dir)
        for note in batches.notes():
            print(f"  {note}", flush=True)
    task = make_task(config, data, tokens, batches)
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
        SummaryScores.fitting(data),
        title="Summarisation",
        notes=batches.notes(),
    )


def prepare(argv: Sequence[str]) -> tuple[Task, TrainConfig]:
    """What a command line would train, and how; for `python -m attnjax.plan`."""
    config = cli.parse(Config, argv, description=__doc__)
    data = config.data.load()
    tokens = config.tokens.train(data)
    return make_task(config, data, tokens, PairBatches(data, tokens)), config.train


def train(config: Config) -> None:
    """Loads the data, trains with each seed, prints the results beside the baseline's."""
    config.train.distributed.start()
    say = partial(print, flush=True) if is_main() else lambda text: None
    with main_first("data"):
        data = config.data.load()
    say("\n  ".join([data.summary(), *data.notes]))
    if config.train.dry_run:
        tokens = config.tokens.train(data)
        task = make_task(config, data, tokens, PairBatches(data, tokens))
        run(task, config.train, config.run_dir, describe=config.describe())
        return
    baseline = lead_baseline(data, SummaryScores.fitting(data)) if is_main() else None
    if baseline is not None:
        say(f"baseline, {baseline.describe()}")
    if not config.seeds:
        if (outcome := train_one(config, data, baseline)) is not None:
            say(outcome.describe())
        return
    outcomes = {}
    for seed in config.seeds:
        run_dir = config.run_dir / f"seed-{seed}"
        train_config = dataclasses.replace(config.train, seed=seed)
        one = dataclasses.replace(config, run_dir=run_dir, train=train_config)
        outcomes[seed] = train_one(one, data, baseline)
    if is_main():
        say(seeds_table({seed: outcome for seed, outcome in outcomes.items() if outcome}))


def predict(config: Predict) -> None:
    """Prints each text's summary."""
    texts = config.texts or tuple(line.strip() for line in sys.stdin if line.strip())
    writer = Writer.load(config.run_dir, config.decoding)
    for written in writer.write(texts):
        print(written.as_json() if config.json else written.text, flush=True)


def evaluate(config: Evaluate) -> None:
    """Prints the scores of a split, and how they are computed."""
    data = SummaryData.from_json(described_seq_run(config.run_dir)["data"]).load()
    writer = Writer.load(config.run_dir, config.decoding)
    written = writer.write(data.sources(config.split))
    scorer = SummaryScores.fitting(data)
    scores = scorer([one.text for one in written], data.targets(config.split))
    print(f"{config.split}: {scores_line(scores)}, {len(written)} texts")
    print("\n".join([*scorer.signatures().values(), *search_notes(written)]))


COMMANDS: dict[str, tuple[Any, Any]] = {
    "train": (Config, train),
    "predict": (Predict, predict),
    "evaluate": (Evaluate, evaluate),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names; `train` where it names none."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "train"
    config_class, command = COMMANDS[name]
    return cli.guarded(lambda: command(cli.parse(config_class, arguments, description=__doc__)))


if __name__ == "__main__":
    sys.exit(main())
