"""How texts that were written are compared with others, and what a baseline writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from train.common.pairs.text_pairs import TextPairs


class Scorer(Protocol):
    """How outputs are compared with references."""

    primary: str
    """The score that a run is judged by."""

    def __call__(self, outputs: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Scores of a whole split by name, more being better."""
        ...

    def signatures(self) -> Mapping[str, str]:
        """How each score is computed, for people."""
        ...


@dataclass(frozen=True)
class SeqBaseline:
    """What a simple method writes."""

    description: str
    """What it does, for people."""
    outputs: tuple[str, ...]
    """Its outputs on the test split."""
    test: Mapping[str, float]
    """Their scores."""

    @classmethod
    def of(
        cls, description: str, outputs: Sequence[str], data: TextPairs, scorer: Scorer
    ) -> SeqBaseline:
        """Scores the outputs of a method on the test split."""
        return cls(description, tuple(outputs), scorer(outputs, data.targets("test")))

    def describe(self) -> str:
        """One line for people."""
        return f"{self.description}: {scores_line(self.test)}"


def scores_line(scores: Mapping[str, float]) -> str:
    """Scores in one line."""
    return ", ".join(f"{name} {value:.2f}" for name, value in scores.items())
