"""Exact match and F1 of answers, equal to those of SQuAD's official evaluation scripts.

Sources: Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (2016),
section 6.1; Rajpurkar et al., "Know What You Don't Know" (2018), section 5, for questions without
an answer and the threshold.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

Rules = Literal["v1.1", "v2.0"]
"""Which script. They differ where no word is left of an answer (F1 0 in 1.1, 1 in 2.0 if none is
left of the right one either) and where a prediction is missing (wrong in 1.1, left out in 2.0)."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Known(NamedTuple):
    """What is right for one question."""

    id: str
    answers: tuple[str, ...]
    """Each of them is right; none where the question has no answer."""


class Threshold(NamedTuple):
    """The best score that any threshold gives, and that threshold."""

    score: float
    """In percent."""
    threshold: float
    """Questions whose chance of having no answer is above it get none."""


def normalised(text: str) -> str:
    """Lower case without ASCII punctuation, articles and more than one space between words."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(prediction: str, answer: str) -> float:
    """Whether both are the same once normalised, as 0 or 1."""
    return float(normalised(prediction) == normalised(answer))


def f1(prediction: str, answer: str, rules: Rules) -> float:
    """The harmonic mean of precision and recall over the normalised words, in [0, 1]."""
    predicted, right = normalised(prediction).split(), normalised(answer).split()
    if rules == "v2.0" and not (predicted and right):
        return float(predicted == right)
    common = (Counter(predicted) & Counter(right)).total()
    return 2 * common / (len(predicted) + len(right)) if common else 0.0


def question_scores(
    questions: Sequence[Known], predictions: Mapping[str, str], *, rules: Rules
) -> dict[str, tuple[float, float]]:
    """Exact match and F1 of each question, the best over its right answers, in [0, 1].

    Args:
        questions: what is right.
        predictions: a text by question id; the empty one says that there is no answer.
        rules: which script's.
    """
    scores = {}
    for question in questions:
        if question.id not in predictions:
            if rules == "v1.1":
                scores[question.id] = 0.0, 0.0
            continue
        answers = question.answers
        if rules == "v2.0":
            # What the normalisation leaves nothing of is no answer, and without any "" is right.
            answers = tuple(answer for answer in answers if normalised(answer)) or ("",)
        prediction = predictions[question.id]
        scores[question.id] = (
            max((exact_match(prediction, answer) for answer in answers), default=0.0),
            max((f1(prediction, answer, rules) for answer in answers), default=0.0),
        )
    return scores


def squad_scores(
    questions: Sequence[Known],
    predictions: Mapping[str, str],
    *,
    rules: Rules,
    no_answer: Mapping[str, float] | None = None,
    threshold: float = 1.0,
) -> dict[str, float]:
    """The numbers that the official script prints, in percent.

    Args:
        questions: what is right.
        predictions: a text by question id.
        rules: which script's.
        no_answer: for `v2.0`: the chance that a question has no answer, by question id.
        threshold: for `v2.0`: with a chance above it, a question's prediction counts as empty.

    Returns:
        `exact`, `f1` and `total`; with `v2.0` also `HasAns_...` and `NoAns_...`, the same over the
        questions with and without an answer, where there are any.

    Raises:
        ValueError: there is nothing to score, or an id stands twice.
    """
    known = {question.id: bool(question.answers) for question in questions}
    if len(known) < len(questions):
        raise ValueError("expected questions with distinct ids, got an id twice")
    scores = question_scores(questions, predictions, rules=rules)
    if not scores:
        raise ValueError("there is no prediction for any of the questions")
    if rules == "v1.1":
        return _means(scores, list(scores))
    for name, chance in (no_answer or {}).items():
        if name in scores and chance > threshold:
            scores[name] = (float(not known[name]),) * 2
    result = _means(scores, list(scores))
    for prefix, wanted in (("HasAns", True), ("NoAns", False)):
        if names := [name for name in scores if known[name] == wanted]:
            result |= {f"{prefix}_{k}": v for k, v in _means(scores, names).items()}
    return result


def best_thresholds(
    questions: Sequence[Known], predictions: Mapping[str, str], no_answer: Mapping[str, float]
) -> dict[str, Threshold]:
    """The thresholds with the best `exact` and `f1` by the rules of 2.0.

    The first of equally good ones in rising order counts; 0 where saying nothing is best.

    Args:
        questions: what is right.
        predictions: a text by question id, also where a threshold may take it back.
        no_answer: the chance that a question has no answer, by question id.

    Raises:
        ValueError: there is nothing to score.
    """
    known = {question.id: bool(question.answers) for question in questions}
    scores = question_scores(questions, predictions, rules="v2.0")
    if not scores:
        raise ValueError("there is no prediction for any of the questions")
    rising = [name for name in sorted(no_answer, key=lambda n: no_answer[n]) if name in scores]
    found = {}
    for column, metric in enumerate(("exact", "f1")):
        current = best = float(sum(not has for has in known.values()))
        threshold = 0.0
        for name in rising:
            if known[name]:
                current += scores[name][column]
            elif predictions[name]:
                current -= 1
            if current > best:
                best, threshold = current, no_answer[name]
        found[metric] = Threshold(100 * best / len(scores), threshold)
    return found


def _means(scores: Mapping[str, tuple[float, float]], names: Sequence[str]) -> dict[str, float]:
    total = len(names)
    return {
        "exact": 100 * sum(scores[name][0] for name in names) / total,
        "f1": 100 * sum(scores[name][1] for name in names) / total,
        "total": total,
    }
