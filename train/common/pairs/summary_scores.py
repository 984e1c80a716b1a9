"""ROUGE of summaries, by rouge-score."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Self

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from train.common.pairs.text_pairs import TextPairs


class SummaryScores:
    """Compares summaries with references: F1 of shared words, pairs, and subsequences.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004), as the rouge-score
    package computes it, words reduced to their stems (Porter).

    Args:
        lines: also `rougeLsum`, the subsequences line by line, for summaries of several lines.
    """

    primary = "rouge1"
    """The score that a run is judged by."""

    def __init__(self, *, lines: bool = False) -> None:
        self._names = ["rouge1", "rouge2", "rougeL", *(["rougeLsum"] if lines else [])]
        self._scorer = RougeScorer(self._names, use_stemmer=True)

    @classmethod
    def fitting(cls, data: TextPairs) -> Self:
        """What suits the summaries of a data set: with lines if some of them have several."""
        return cls(lines=any("\n" in target.strip() for target in data.targets("test")))

    def __call__(self, outputs: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Mean F1 of each kind over all summaries, 0 to 100.

        Args:
            outputs: what was written.
            references: what should be, one for each.
        """
        scores = [
            self._scorer.score(reference, output)
            for output, reference in zip(outputs, references, strict=True)
        ]
        return {
            name: 100 * float(np.mean([score[name].fmeasure for score in scores]))
            for name in self._names
        }

    def signatures(self) -> dict[str, str]:
        """How each score is computed."""
        version = importlib.metadata.version("rouge-score")
        how = f"F1, Porter's stemmer, mean over summaries, rouge-score {version}"
        return {name: f"{name}: {how}" for name in self._names}
