"""Summarisation: a short text for a long one, with words copied where that helps.

python -m train.summarisation                                    # train on the builtin data
python -m train.summarisation --data articles.jsonl --data.source-column body
python -m train.summarisation predict RUN_DIR < texts.txt
python -m train.summarisation evaluate RUN_DIR --split test

What it gave (jax 0.10.2, CPU): ROUGE-1, -2 and -L, F1 with Porter's stemmer, of the test split.

Docstrings to their first line, about 8 CPU minutes: 38.89, 20.04, 37.08; the first 10 words 25.44,
8.68, 21.69. Many docstrings have a sibling: the summary of the nearest training text (TF-IDF of
character n-grams, `train.common.pairs.nearest`) has 47.74, 30.78, 46.44.

python -m train.summarisation

AESLC (e-mails, subject lines), about 20 CPU minutes, seed 0: 22.94, 10.01, 22.78; the first
sentence 15.29, 6.58, 14.01; the subject of the nearest training e-mail 19.27, 10.00, 18.97. A
published Transformer of 223 million parameters, not pretrained, has 15.04, 7.39, 14.93 (Zhang et
al., "PEGASUS", 2020).

python -m train.summarisation --data aeslc --tokens.max-target 16 --train.batch-size 32
--train.epochs 4 --train.eval-every 450 --train.eval-batch-size 128
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from train.common.config import TrainConfig
from train.common.optim import OptimConfig
from train.common.pairs.lead import lead_baseline
from train.common.pairs.models import SeqModelConfig
from train.common.pairs.program import SeqConfig, SeqProgram
from train.common.pairs.summary_data import SummaryData
from train.common.pairs.summary_scores import SummaryScores
from train.common.pairs.tokenise import SeqTokeniserConfig
from train.common.pairs.tokens import PairTokensConfig


@dataclass(frozen=True, kw_only=True)
class Config(SeqConfig):
    """Trains a summariser, compares it with how the texts begin, writes a report."""

    run_dir: Path = Path("runs/summarisation")
    """Where everything about the run goes; run the same command again to resume."""
    data: SummaryData = field(default_factory=SummaryData)
    """The texts and their summaries. A path can also be e-mails with subject lines as AESLC has
    them: a folder with train, dev and test (.tar.gz each), or one archive per split."""
    tokens: PairTokensConfig = field(
        default_factory=lambda: PairTokensConfig(
            tokens=SeqTokeniserConfig(lowercase=True, max_vocabulary=6000, min_count=2),
            max_source=128,
            max_target=32,
            too_long="cut",
            padding="coarse",
        )
    )
    """How texts are cut into tokens, and how many there may be."""
    model: SeqModelConfig = field(
        default_factory=lambda: SeqModelConfig(
            features=128, encoder_layers=2, decoder_layers=2, copy=True
        )
    )
    """What reads and writes."""
    label_smoothing: float = 0.0
    """Share of the target spread over the whole vocabulary; 0 where words are copied."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=8,
            batch_size=16,
            eval_batch_size=64,
            ema_decay=0.995,
            select_metric="rouge1",
            optim=OptimConfig(learning_rate=2e-3),
        )
    )
    """The training loop."""


PROGRAM = SeqProgram(
    "Summarisation", Config, SummaryData, SummaryScores.fitting, lead_baseline, __doc__ or ""
)
prepare, main = PROGRAM.prepare, PROGRAM.main

if __name__ == "__main__":
    sys.exit(main())
