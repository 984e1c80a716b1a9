"""A baseline for pairs of texts: the target of the most similar training source."""

from __future__ import annotations

from collections.abc import Sequence

from train.common.pairs.scores import Scorer, SeqBaseline
from train.common.pairs.text_pairs import TextPairs

DESCRIPTION = "the target of the most similar training source (TF-IDF of character 2- to 5-grams)"
SEARCHED = 100_000
"""At most so many training sources, the first ones, are compared."""
_ROWS = 512
"""Texts that are compared at once with all training sources."""


def nearest_baseline(data: TextPairs, scorer: Scorer) -> SeqBaseline:
    """Writes the target of the most similar training source for each test source."""
    more = len(data.splits["train"]) - SEARCHED
    description = DESCRIPTION if more <= 0 else f"{DESCRIPTION}, of the first {SEARCHED:,}"
    outputs = nearest_targets(data, data.sources("test"))
    return SeqBaseline.of(description, outputs, data, scorer)


def nearest_targets(data: TextPairs, sources: Sequence[str]) -> list[str]:
    """The target of the training source most similar to each text; of equals the first.

    Args:
        data: whose training split is searched.
        sources: the texts.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, lowercase=False
    )
    known = vectoriser.fit_transform(data.sources("train")[:SEARCHED]).T.tocsc()
    targets = data.targets("train")
    found: list[str] = []
    for start in range(0, len(sources), _ROWS):
        likeness = vectoriser.transform(sources[start : start + _ROWS]) @ known
        found += [targets[i] for i in likeness.argmax(axis=1).A1]
    return found
