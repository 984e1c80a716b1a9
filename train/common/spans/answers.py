"""From the likeliest spans of windows to one answer for each question."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from train.common.spans.batches import Window
from train.common.spans.data import SpanQuestion
from train.common.spans.squad_scores import Known


@dataclass(frozen=True)
class SpanAnswer:
    """What the model says to one question."""

    id: str
    question: str
    text: str
    """As it stands in the context, to the character; the likeliest piece even where the threshold
    says that there is no answer."""
    start: int
    """Characters of the context before it."""
    no_answer: float
    """The chance that the text does not answer the question, against this one, in [0, 1]."""
    words: tuple[tuple[int, int, float], ...]
    """Of the window that the answer is from: where each word begins and ends in the context, and
    the chance that the answer begins or ends there."""

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    def as_text(self, threshold: float | None) -> str:
        """One line for people; no answer where the chance of none is above the threshold."""
        none = threshold is not None and self.no_answer > threshold
        given = f"no answer (else {self.text!r})" if none else repr(self.text)
        return f"{self.question} {given} at {self.start}, no answer {self.no_answer:.3f}"


def collect(
    windows: Iterable[Window], spans: Iterable[Mapping[str, Any]], *, weights: bool = False
) -> dict[str, SpanAnswer]:
    """The best answer of all windows of each question.

    A question has no answer as far as its most doubtful window says that it has none.

    Args:
        windows: of any questions, in any order, some more than once.
        spans: what `best_spans` says of each, NumPy scalars and rows.
        weights: also keep the chances of all words.
    """
    best: dict[str, tuple[Window, Mapping[str, Any]]] = {}
    none: dict[str, float] = {}
    for window, span in zip(windows, spans, strict=True):
        name = window.question.id
        none[name] = min(none.get(name, math.inf), float(span["none"]))
        if name not in best or span["score"] > best[name][1]["score"]:
            best[name] = window, span
    return {
        name: _answer(window, span, none[name], weights) for name, (window, span) in best.items()
    }


def known(questions: Sequence[SpanQuestion]) -> list[Known]:
    """What the scorer takes of questions."""
    return [Known(q.id, tuple(answer.text for answer in q.answers)) for q in questions]


def texts(answers: Mapping[str, SpanAnswer], threshold: float | None) -> dict[str, str]:
    """The answers as SQuAD's scripts read them: a text by question id.

    Args:
        answers: by question id.
        threshold: with a greater chance of no answer the text is empty; None for never.
    """
    return {
        name: "" if threshold is not None and answer.no_answer > threshold else answer.text
        for name, answer in answers.items()
    }


def _answer(window: Window, span: Mapping[str, Any], none: float, weights: bool) -> SpanAnswer:
    places = window.words.spans
    shift = window.begin - window.offset
    first, last = int(span["start"]) + shift, int(span["end"]) + shift
    begin, end = int(places[first][0]), int(places[last][1])
    odds = min(max(none - float(span["score"]), -700.0), 700.0)
    words: list[tuple[int, int, float]] = []
    if weights:
        chances = np.asarray(span["weight"])[window.offset : window.length]
        for place, chance in zip(places[window.begin : window.end], chances, strict=True):
            words.append((int(place[0]), int(place[1]), float(chance)))
    return SpanAnswer(
        window.question.id,
        window.question.question,
        window.question.context[begin:end],
        begin,
        1 / (1 + math.exp(-odds)),
        tuple(words),
    )
