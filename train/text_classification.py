"""Text classification with attention that can be looked at.

python -m train.text_classification                        # train on the builtin data
python -m train.text_classification --model transformer --data tfds:ag_news_subset
python -m train.text_classification predict RUN_DIR "A sentence." "Another one."
python -m train.text_classification evaluate RUN_DIR --split test
python -m train.text_classification explain RUN_DIR        # and how true that is; see docs/focus.md

What it gave (jax 0.10.2, CPU; 3 seeds, mean and standard deviation of test accuracy; one run takes
about 3 CPU minutes). Each block below goes behind `python -m train.text_classification`.

Docstrings, 17 classes: 0.662 with seed 0; TF-IDF with logistic regression 0.661.

--data builtin --model bilstm_attention

SST-2, 6,920 sentences without phrases: bilstm_attention 0.819 (0.004), transformer 0.818 (0.007);
TF-IDF 0.801.

--data train.tsv.gz --data.validation dev.tsv.gz --data.test test.tsv.gz --data.text-column 0
--data.label-column 1 --seeds 0 1 2 --train.epochs 8 --model bilstm_attention

TREC, 6 classes: bilstm_attention 0.884 (0.003), transformer 0.874 (0.005); TF-IDF 0.886, 0.888.

--data TREC.train.gz --data.test TREC.test.gz --data.format trec --data.encoding latin-1
--seeds 0 1 2 --model.no-max-pooling --model.word-dropout 0.1 --model.embedding-dropout 0.3
--model bilstm_attention --label-smoothing 0 --train.epochs 15

--data TREC.train.gz --data.test TREC.test.gz --data.format trec --data.encoding latin-1
--seeds 0 1 2 --model.no-max-pooling --model.word-dropout 0.1 --model.embedding-dropout 0.3
--model transformer --model.features 128 --model.positions sinusoidal --tokens.min-count 3
--subwords.buckets 2000 --data.validation-fraction 0.05 --train.optim.learning-rate 1e-3
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from train.common import cli
from train.common.classification import Scores, balanced_weights, cross_entropy
from train.common.config import TrainConfig
from train.common.distributed import is_main, main_first, same_everywhere
from train.common.entry import one_per_seed, task_fields
from train.common.files import write_json
from train.common.loop import run
from train.common.optim import OptimConfig
from train.common.task import Batch, Task
from train.common.text.baseline import Baseline, tfidf_baseline
from train.common.text.batches import TextBatches, TextEncoder
from train.common.text.faithful import (
    EXAMPLES,
    as_json,
    explain_texts,
    faithful_table,
    missing_share,
    summarise,
)
from train.common.text.labelled_text import LabelledText
from train.common.text.loading import TextDataConfig
from train.common.text.models import RULES, TextClassifier, TextModelConfig
from train.common.text.outcome import Outcome, finish, scores_table, seeds_table
from train.common.text.run import Classifier, described_run, save_text_side
from train.common.text.subwords import SubwordConfig
from train.common.tokenise import TokeniserConfig


@dataclass(frozen=True)
class Config:
    """Trains a text classifier, compares it with TF-IDF + logistic regression, writes a report."""

    run_dir: Path = Path("runs/text_classification")
    """Where everything about the run goes; run the same command again to resume."""
    data: TextDataConfig = field(default_factory=TextDataConfig)
    """The texts and their labels."""
    tokens: TokeniserConfig = field(default_factory=TokeniserConfig)
    """How texts are cut into tokens."""
    subwords: SubwordConfig = field(default_factory=SubwordConfig)
    """How a word's spelling is used."""
    model: TextModelConfig = field(default_factory=TextModelConfig)
    """The classifier."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: every class has the same share of the loss, however rare it is."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""
    seeds: tuple[int, ...] = ()
    """Several seeds: one run each, in RUN_DIR/seed-N, then a table of their test results."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=12, ema_decay=0.995, optim=OptimConfig(learning_rate=2e-3, weight_decay=0.01)
        )
    )
    """The training loop."""

    def describe(self) -> dict[str, Any]:
        """What config.json says about the task."""
        return task_fields(self)


@dataclass(frozen=True)
class Predict:
    """Classifies texts with a trained model and shows how much attention each word got."""

    run_dir: tyro.conf.Positional[Path]
    """A run directory of this program."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """The texts; without any, one per line of standard input."""
    json: bool = False
    """Print one JSON object per text instead of a table."""


@dataclass(frozen=True)
class Evaluate:
    """Measures a trained model on a split of the data it was trained with."""

    run_dir: tyro.conf.Positional[Path]
    """A run directory of this program."""
    split: Literal["train", "validation", "test"] = "test"
    """Which split."""


@dataclass(frozen=True)
class Explain:
    """Explains a trained model's labels, measures how true that is, writes focus_examples.json."""

    run_dir: tyro.conf.Positional[Path]
    """A run directory of this program."""
    split: Literal["train", "validation", "test"] = "test"
    """Which split."""
    examples: int = 8
    """How many texts to write out: the first of those measured, not chosen by how they look."""
    measured: int = 200
    """How many texts, drawn at random, to measure on; all if the split has fewer."""
    seed: int = 0
    """Of all that is drawn: texts, orders, random weights, resamples."""

    def __post_init__(self) -> None:
        """Rejects counts that mean nothing."""
        if self.measured < 1:
            raise ValueError(f"measured must be at least 1, got {self.measured}")
        if not 0 <= self.examples <= self.measured:
            raise ValueError(f"examples must lie in [0, {self.measured}], got {self.examples}")


def make_task(config: Config, data: LabelledText, encoder: TextEncoder) -> Task:
    """Puts data, model, loss and metrics together; says how many texts were too long."""
    batches = TextBatches(data, encoder)
    if is_main() and (cut := batches.truncated("train")):
        limit = config.tokens.max_tokens
        print(f"{cut} training texts have {limit} tokens or more; what is beyond is cut off")
    balanced = config.class_weights == "balanced"
    weights = balanced_weights(data.label_counts()) if balanced else None

    def build_model(rngs: nnx.Rngs) -> TextClassifier:
        return config.model.build(
            vocabulary=encoder.tokeniser.size,
            buckets=config.subwords.buckets,
            classes=len(data.labels),
            rngs=rngs,
        )

    def predict(model: TextClassifier, batch: Batch) -> dict[str, Any]:
        logits, attention = model(batch["ids"], batch["length"], batch.get("subwords"))
        return {"logits": logits, "attention": attention}

    def loss(model: TextClassifier, batch: Batch) -> tuple[Any, dict[str, Any]]:
        logits = predict(model, batch)["logits"]
        losses = cross_entropy(
            logits, batch["label"], class_weights=weights, smoothing=config.label_smoothing
        )
        hit = jnp.argmax(logits, axis=-1) == batch["label"]
        return jnp.mean(losses), {"accuracy": jnp.mean(hit)}

    def evaluate(results: list[tuple[dict[str, np.ndarray], Batch]]) -> dict[str, float]:
        real = np.concatenate([batch["weight"] for _, batch in results]) > 0
        label = np.concatenate([batch["label"] for _, batch in results])[real]
        logits = np.concatenate([predicted["logits"] for predicted, _ in results])[real]
        scores = Scores.of(label, logits.argmax(axis=-1), len(data.labels))
        nll = np.mean(cross_entropy(jnp.asarray(logits), jnp.asarray(label)))
        return {"accuracy": scores.accuracy, "macro_f1": scores.macro_f1, "loss": float(nll)}

    return Task(build_model, loss, predict, evaluate, batches, RULES)


def train_one(config: Config, data: LabelledText, baseline: Baseline | None) -> Outcome | None:
    """Trains with one seed, measures on the test split and writes the report.

    Args:
        config: the options.
        data: the texts.
        baseline: None in all processes but number 0, which measures and writes.

    Returns:
        The result; None where there is no baseline.
    """
    encoder = make_encoder(config, data)
    same_everywhere("tokeniser", {"sha256": encoder.tokeniser.fingerprint})
    if is_main():
        save_text_side(config.run_dir, encoder, data.labels)
    task = make_task(config, data, encoder)
    result = run(task, config.train, config.run_dir, describe=config.describe())
    assert result is not None  # only a dry run has none
    classifier = Classifier(result.model(), encoder, data.labels)
    return finish(result, classifier, data, baseline) if baseline is not None else None


def make_encoder(config: Config, data: LabelledText) -> TextEncoder:
    """Trains the tokeniser, on the training split only."""
    tokeniser = config.tokens.train(text for text, _ in data.splits["train"])
    return TextEncoder(tokeniser, config.subwords)


def prepare(argv: Sequence[str]) -> tuple[Task, TrainConfig]:
    """What a command line would train, and how; for `python -m attnjax.plan`."""
    config = cli.parse(Config, argv, description=__doc__)
    data = config.data.load()
    return make_task(config, data, make_encoder(config, data)), config.train


def train(config: Config) -> None:
    """Loads the data, trains with each seed, prints the results beside the baseline's."""
    config.train.distributed.start()
    say = partial(print, flush=True) if is_main() else lambda text: None
    with main_first("data"):
        data = config.data.load()
    say("\n  ".join([data.summary(), *data.notes]))
    if config.train.dry_run:
        task = make_task(config, data, make_encoder(config, data))
        run(task, config.train, config.run_dir, describe=config.describe())
        return
    baseline = tfidf_baseline(data) if is_main() else None
    if baseline is not None:
        say(f"baseline: {baseline.describe()}")
    if not config.seeds:
        if (outcome := train_one(config, data, baseline)) is not None:
            say(outcome.describe())
        return
    outcomes = {}
    for one in one_per_seed(config):
        if (outcome := train_one(one, data, baseline)) is not None:
            outcomes[one.train.seed] = outcome
    if outcomes:
        say(seeds_table(outcomes))


def predict(config: Predict) -> None:
    """Prints label, probability and each word's attention weight, for each text."""
    texts = config.texts or tuple(line.strip() for line in sys.stdin if line.strip())
    for prediction in Classifier.load(config.run_dir).predict(texts):
        print(prediction.as_json() if config.json else prediction.as_text(), flush=True)


def evaluate(config: Evaluate) -> None:
    """Prints metrics and the confusion matrix of a split."""
    data = TextDataConfig.from_json(described_run(config.run_dir)["data"]).load()
    classifier = Classifier.load(config.run_dir)
    print(scores_table(classifier.scores(data.splits[config.split]), data.labels))


def explain(config: Explain) -> None:
    """Prints how true explanations of the model are; writes them to the run directory."""
    data = TextDataConfig.from_json(described_run(config.run_dir)["data"]).load()
    examples = data.splits[config.split]
    found = explain_texts(config.run_dir, examples, measured=config.measured, seed=config.seed)
    summary = summarise(found, seed=config.seed)
    shown = as_json(found[: config.examples], summary, data.labels, config.split)
    write_json(config.run_dir / EXAMPLES, shown)
    print(
        f"{faithful_table(summary)}\n"
        f"integrated gradients add up but for {missing_share(found):.2%} of what they explain\n"
        f"written: {config.run_dir / EXAMPLES}"
    )


COMMANDS: dict[str, tuple[Any, Any]] = {
    "train": (Config, train),
    "predict": (Predict, predict),
    "evaluate": (Evaluate, evaluate),
    "explain": (Explain, explain),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names; `train` where it names none."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "train"
    config_class, command = COMMANDS[name]
    return cli.guarded(lambda: command(cli.parse(config_class, arguments, description=__doc__)))


if __name__ == "__main__":
    sys.exit(main())
