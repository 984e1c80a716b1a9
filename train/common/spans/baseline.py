"""Answers without learning: from the sentence that shares most words with the question."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from train.common.spans.answers import known
from train.common.spans.data import SpanData, SpanQuestion
from train.common.spans.squad_scores import squad_scores

_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?]+(?=\s|$)|\n|$|[.!?])")
_WORD = re.compile(r"\w+")
_NAME = re.compile(r"(?:\b[A-Z0-9][\w.,'-]*\w|\b[A-Z0-9])(?:\s+[A-Z0-9][\w.,'-]*\w)*")


@dataclass(frozen=True)
class SpanBaseline:
    """How the best of some ways to answer without learning did."""

    name: str
    """Which way; the validation split picks it by F1."""
    test: dict[str, float]
    """As `squad_scores` gives it."""
    validation: dict[str, float]

    def describe(self) -> str:
        """One line for people."""
        return f"{self.name}: test EM {self.test['exact']:.2f}, F1 {self.test['f1']:.2f}"


def guess(data: SpanData) -> SpanBaseline:
    """Measures a few ways and takes the best one on validation."""
    ways: dict[str, Callable[[SpanQuestion], str]] = {
        "the sentence most like the question": closest_sentence,
        "the longest name in the sentence most like the question": longest_name,
        "the last word of the sentence most like the question": last_word,
    }
    if data.rules == "v2.0":
        ways["no answer, ever"] = lambda question: ""
    validation = {name: _scores(data, "validation", way) for name, way in ways.items()}
    best = max(ways, key=lambda name: validation[name]["f1"])
    return SpanBaseline(best, _scores(data, "test", ways[best]), validation[best])


def closest_sentence(question: SpanQuestion) -> str:
    """The first sentence with the most distinct words of the question; the whole text if none."""
    asked = _words(question.question)
    sentences = [s for m in _SENTENCE.finditer(question.context) if (s := m.group().strip())]
    return max(sentences, key=lambda s: len(_words(s) & asked), default=question.context)


def longest_name(question: SpanQuestion) -> str:
    """The longest run of capitals and numbers in that sentence that the question does not name."""
    sentence, asked = closest_sentence(question), _words(question.question)
    names = [name for name in _NAME.findall(sentence) if not _words(name) & asked]
    return max(names, key=len, default=sentence)


def last_word(question: SpanQuestion) -> str:
    """The last word of that sentence."""
    words = _WORD.findall(closest_sentence(question))
    return words[-1] if words else question.context


def _words(text: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(text)}


def _scores(data: SpanData, split: str, way: Callable[[SpanQuestion], str]) -> dict[str, float]:
    questions = data.splits[split]
    predictions = {question.id: way(question) for question in questions}
    return squad_scores(known(questions), predictions, rules=data.rules)
