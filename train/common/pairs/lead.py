"""A baseline for summaries: how the text begins."""

from __future__ import annotations

import re
from collections.abc import Sequence

from train.common.pairs.scores import Scorer, SeqBaseline
from train.common.pairs.text_pairs import TextPairs

COUNTS = (3, 4, 5, 6, 8, 10, 15, 20, 30, 40, 60, 80, 100)
"""Numbers of words that are tried; the validation split picks one, or the first sentence."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def first_words(text: str, count: int) -> str:
    """The first words of a text, as they stand there but for the space between."""
    return " ".join(text.split()[:count])


def first_sentence(text: str) -> str:
    """The text up to the first end of a sentence or of a line."""
    stripped = text.strip()
    return _SENTENCE_END.split(stripped.partition("\n")[0], maxsplit=1)[0]


def lead_baseline(data: TextPairs, scorer: Scorer, *, limit: int = 2000) -> SeqBaseline:
    """The first words or the first sentence of each test text, whatever is best on validation.

    Args:
        data: the pairs.
        scorer: compares summaries.
        limit: validation pairs that are looked at, the first ones.
    """
    sources = data.sources("validation")[:limit]
    targets = data.targets("validation")[:limit]

    def score(outputs: Sequence[str]) -> float:
        return scorer(outputs, targets)[scorer.primary]

    by_count = {count: score([first_words(s, count) for s in sources]) for count in COUNTS}
    best = max(by_count, key=lambda count: by_count[count])
    if score([first_sentence(s) for s in sources]) >= by_count[best]:
        what, outputs = "the first sentence", [first_sentence(s) for s in data.sources("test")]
    else:
        what = f"the first {best} words"
        outputs = [first_words(s, best) for s in data.sources("test")]
    return SeqBaseline.of(f"{what} (chosen on validation)", outputs, data, scorer)
