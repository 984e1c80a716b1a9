"""Summarisation: a short text for a long one, with words copied where that helps.

python -m train.summarisation                                    # train on the builtin data
python -m train.summarisation --data articles.jsonl --data.source-column body
python -m train.summarisation predict RUN_DIR < texts.txt
python -m train.summarisation evaluate RUN_DIR --split test
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from train.common.config import TrainConfig
from train.common.lead import lead_baseline
from train.common.optim import OptimConfig
from train.common.pair_tokens import PairTokensConfig
from train.common.seq_models import SeqModelConfig
from train.common.seq_program import SeqConfig, SeqProgram
from train.common.seq_tokenise import SeqTokeniserConfig
from train.common.summary_data import SummaryData
from train.common.summary_scores import SummaryScores


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
