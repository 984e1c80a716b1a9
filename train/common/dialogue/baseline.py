"""The baseline that choosing answers has to beat: what was answered to the likest user's words."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.common.dialogue.dialogues import Dialogue, DialogueData, all_turns
from train.common.dialogue.task import accuracies


@dataclass(frozen=True)
class DialogueBaseline:
    """How the baseline did, by split."""

    scores: dict[str, dict[str, float]]
    name: str = "TF-IDF on the user's last words, then the most frequent answer"

    def describe(self) -> str:
        """One line for people."""
        found = ", ".join(f"{s} {100 * m['accuracy']:.2f}%" for s, m in self.scores.items())
        return f"{self.name}: {found} of the answers"


def likest_turn(data: DialogueData) -> DialogueBaseline:
    """Answers with what training answers most often to the user's words that are nearest by TF-IDF.

    Where no word is known, the most frequent answer of all is given. Among equals the words that
    training shows more often win.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for turn in all_turns(data.splits["train"]):
        answers[turn.user][turn.bot] += 1
    asked = sorted(answers, key=lambda user: (-answers[user].total(), user))
    best = [_most_frequent(answers[user]) for user in asked]
    overall = _most_frequent(sum((answers[user] for user in asked), Counter()))
    vectoriser = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+")
    table = vectoriser.fit_transform(asked)

    def answer(users: Sequence[str]) -> dict[str, str]:
        distinct = sorted(set(users))
        found = {}
        for start in range(0, len(distinct), 256):
            some = distinct[start : start + 256]
            likeness = (vectoriser.transform(some) @ table.T).toarray()
            for user, row in zip(some, likeness, strict=True):
                found[user] = best[int(row.argmax())] if row.max() > 0 else overall
        return found

    def score(dialogues: Sequence[Dialogue]) -> dict[str, float]:
        given = answer([turn.user for turn in all_turns(dialogues)])
        right = [given[turn.user] == turn.bot for turn in all_turns(dialogues)]
        number = np.repeat(np.arange(len(dialogues)), [len(d) for d in dialogues])
        return accuracies(np.array(right), number)

    return DialogueBaseline({split: score(data.splits[split]) for split in data.held_out})


def _most_frequent(counts: Counter[str]) -> str:
    """The most frequent answer; of equals the first in the alphabet, on every machine."""
    return min(counts, key=lambda answer: (-counts[answer], answer))
