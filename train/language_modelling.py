"""Language modelling: what comes next, in characters, bytes or pieces of words.

python -m train.language_modelling                               # train on the builtin data
python -m train.language_modelling --data input.txt --tokens.kind character
python -m train.language_modelling sample RUN_DIR "ROMEO:" --temperature 0.8
python -m train.language_modelling predict RUN_DIR "A text." "Another one."
python -m train.language_modelling evaluate RUN_DIR --split test

What it gave (jax 0.10.2, CPU). Bits per byte of the text, every token and the end of every document
predicted once. Beside it byte n-grams, mixed by Witten and Bell's method.

Docstrings in 2,000 BPE pieces: test 1.756 bits per byte with seed 0, in 8.6 minutes of processor
time on one core; n-grams 1.809. With --train.epochs 6 1.694, in 10 minutes.

python -m train.language_modelling

Tiny Shakespeare with the small setting of nanoGPT, which reports 1.88 nats per character on the
last tenth of the text: 1.853 (0.009), mean and standard deviation of 3 seeds, each in about 6 CPU
minutes; n-grams 1.669. 805,504 parameters, nanoGPT's 804,096; both see the 0 to 63 characters since
their window began.

python -m train.language_modelling --data input.txt.gz --data.test-fraction 0 --seeds 0 1 2
--tokens.kind character --length 64 --windows random --model.dropout 0 --model.no-bias
--model.attention.no-bias --model.attention.positions learned --train.steps 2000
--train.epochs None --train.batch-size 12 --train.optim.learning-rate 1e-3
--train.optim.schedule.warmup-steps 100 --train.optim.schedule.final-fraction 0.1
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
from flax import nnx

from attnjax.models.decode import Sampling
from train.common import cli
from train.common.config import TrainConfig
from train.common.distributed import is_main, main_first, same_everywhere
from train.common.entry import one_per_seed, say_notes, started, task_fields
from train.common.lm.batches import LmBatches, Windows
from train.common.lm.data import DocumentConfig
from train.common.lm.documents import Documents
from train.common.lm.models import LmModelConfig
from train.common.lm.ngrams import NgramBaseline, ngram_baseline
from train.common.lm.outcome import Outcome, finish, seeds_table
from train.common.lm.run import Language, described_run, save_text_side
from train.common.lm.task import lm_task
from train.common.lm.tokenise import LmTokeniser, LmTokeniserConfig
from train.common.loop import run
from train.common.optim import OptimConfig
from train.common.task import Task


@dataclass(frozen=True)
class Config:
    """Trains a language model, compares it with counted n-grams, writes a report."""

    run_dir: Path = Path("runs/language_modelling")
    """Where everything about the run goes; run the same command again to resume."""
    data: DocumentConfig = field(default_factory=DocumentConfig)
    """The documents."""
    tokens: LmTokeniserConfig = field(default_factory=LmTokeniserConfig)
    """What a token is."""
    length: int = 256
    """Tokens in a row, the longest context."""
    windows: Windows = "packed"
    """packed: documents are cut to rows, and short ones share a row; random: each training row
    begins anywhere in the documents. No document sees another in either."""
    model: LmModelConfig = field(default_factory=LmModelConfig)
    """The Transformer."""
    seeds: tuple[int, ...] = ()
    """Several seeds: one run each, in RUN_DIR/seed-N, then a table of their results."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=5,
            batch_size=4,
            eval_batch_size=32,
            select_metric="bits_per_byte",
            select_mode="min",
            optim=OptimConfig(learning_rate=2e-3, b2=0.99, weight_decay=0.1),
        )
    )
    """The training loop."""

    def __post_init__(self) -> None:
        """Rejects a length that nothing fits into."""
        if self.length < 2:
            raise ValueError(f"length must be at least 2, got {self.length}")

    def describe(self) -> dict[str, Any]:
        """What config.json says about the task."""
        return task_fields(self)


@dataclass(frozen=True)
class Sample:
    """Writes text with a trained model, as it comes."""

    run_dir: tyro.conf.Positional[Path]
    """A run directory of this program."""
    prompt: tyro.conf.Positional[str] = ""
    """How the document begins."""
    samples: int = 1
    """How many texts."""
    max_tokens: int = 500
    """Tokens of a text, unless the model ends it before."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the most likely token each time."""
    top_k: int | None = None
    """Draw from so many of the most likely tokens."""
    top_p: float | None = None
    """Draw from the fewest of the most likely tokens that have this share."""
    min_p: float | None = None
    """Draw from tokens at least so likely in proportion to the most likely one."""
    repetition_penalty: float = 1.0
    """Above 1: makes tokens less likely that were there before."""
    seed: int = 0
    """Of the draws; the same seed writes the same text."""

    def __post_init__(self) -> None:
        """Rejects numbers that no text can have."""
        for name in ("samples", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


@dataclass(frozen=True)
class Predict:
    """Says how surprising texts are to a trained model, word by word."""

    run_dir: tyro.conf.Positional[Path]
    """A run directory of this program."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """The texts, a document each; without any, one per line of standard input."""
    json: bool = False
    """Print one JSON object per text instead of lines."""


@dataclass(frozen=True)
class Evaluate:
    """Measures a trained model on a split of the data it was trained with."""

    run_dir: tyro.conf.Positional[Path]
    """A run directory of this program."""
    split: Literal["train", "validation", "test"] | None = None
    """Which split; test, or validation where there is no test."""


def make_task(config: Config, data: Documents, tokeniser: LmTokeniser) -> Task:
    """Puts data, model, loss and metrics together; says what was noticed about the tokens."""
    batches = LmBatches(data, tokeniser, config.length, config.windows)
    say_notes(batches.notes())

    def build_model(rngs: nnx.Rngs) -> nnx.Module:
        return config.model.build(vocabulary=tokeniser.size, length=config.length, rngs=rngs)

    return lm_task(build_model, batches)


def train_one(config: Config, data: Documents, baseline: NgramBaseline | None) -> Outcome | None:
    """Trains with one seed, measures the best checkpoint and writes the report.

    Args:
        config: the options.
        data: the documents.
        baseline: None in all processes but number 0, which writes.

    Returns:
        The result; None where there is no baseline.
    """
    tokeniser = config.tokens.train(data.splits["train"])
    same_everywhere("tokeniser", {"sha256": tokeniser.fingerprint})
    if is_main():
        save_text_side(config.run_dir, tokeniser)
    task = make_task(config, data, tokeniser)
    result = run(task, config.train, config.run_dir, describe=config.describe())
    assert result is not None  # only a dry run has none
    metrics = result.evaluate(data.measured)  # on the mesh, by all processes
    if baseline is None:
        return None
    language = Language(result.model(), tokeniser, config.length)
    return finish(result, metrics, language, data, baseline)


def prepare(argv: Sequence[str]) -> tuple[Task, TrainConfig]:
    """What a command line would train, and how; for `python -m attnjax.plan`."""
    config = cli.parse(Config, argv, description=__doc__)
    data = config.data.load()
    return make_task(config, data, config.tokens.train(data.splits["train"])), config.train


def train(config: Config) -> None:
    """Loads the data, trains with each seed, prints the results beside the baseline's."""
    say = started(config.train)
    with main_first("data"):
        data = config.data.load()
    say("\n  ".join([data.summary(), *data.notes]))
    if config.train.dry_run:
        task = make_task(config, data, config.tokens.train(data.splits["train"]))
        run(task, config.train, config.run_dir, describe=config.describe())
        return
    baseline = ngram_baseline(data) if is_main() else None
    if baseline is not None:
        say(f"baseline: {baseline.describe()}")
    outcomes = {}
    for one in one_per_seed(config):
        if (outcome := train_one(one, data, baseline)) is not None:
            outcomes[one.train.seed] = outcome
    if outcomes:
        (*_, last) = outcomes.values()
        say(seeds_table(outcomes) if config.seeds else last.describe())


def sample(config: Sample) -> None:
    """Writes texts to standard output, piece by piece."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    sampling = Sampling(**{name: getattr(config, name) for name in names})
    language = Language.load(config.run_dir)
    if unknown := language.unknown(config.prompt):
        print(f"{unknown} characters of the prompt never occurred in training", file=sys.stderr)
    for number in range(config.samples):
        print(config.prompt, end="", flush=True)
        for piece in language.sample(
            config.prompt,
            max_tokens=config.max_tokens,
            sampling=sampling,
            seed=config.seed + number,
        ):
            print(piece, end="", flush=True)
        print("\n" + "-" * 40 if number < config.samples - 1 else "", flush=True)


def predict(config: Predict) -> None:
    """Prints the bits per byte of each text, and the bits of each word."""
    texts = config.texts or tuple(line.strip() for line in sys.stdin if line.strip())
    for text, scored in zip(texts, Language.load(config.run_dir).score(texts), strict=True):
        if config.json:
            found = {"text": text, **dataclasses.asdict(scored)}
            print(json.dumps(found, ensure_ascii=False), flush=True)
        else:
            words = "".join(f"{word}[{bits:.1f}]" for word, bits in scored.words)
            print(f"{scored.bits_per_byte:.4f} bits per byte\n  {words}\n  end[{scored.end:.1f}]")


def evaluate(config: Evaluate) -> None:
    """Prints the metrics of a split."""
    data = DocumentConfig.from_json(described_run(config.run_dir)["data"]).load()
    split = config.split or data.measured
    if split not in data.splits:
        raise ValueError(f"these data have no {split} split, only {', '.join(data.splits)}")
    metrics = Language.load(config.run_dir).evaluate(data, split)
    print(f"{split}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


COMMANDS: dict[str, tuple[Any, Any]] = {
    "train": (Config, train),
    "sample": (Sample, sample),
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
