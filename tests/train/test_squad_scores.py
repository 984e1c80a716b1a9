"""The scorer against a second one, written from the description of the official scripts."""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Sequence

import numpy as np
import pytest

from train.common.spans.squad_scores import (
    Known,
    best_thresholds,
    exact_match,
    f1,
    normalised,
    question_scores,
    squad_scores,
)

PIECES = (
    *("a", "an", "the", "The", "AN", "theory", "another", "cat", "Cat", "dog's", "dogs", "50%"),
    *("$5.00", "1,000", "1\u20132", "the\u2013end", "naïve", "Straße", "İstanbul", "東京", "a.b"),
    *("e\u0301te\u0301", "\u00a0x", "“quoted”", "'quoted'", "-", ".", "a-", "_", "under_score"),
    *("\u2003wide", "x\ty", "new\nline", "U.S.", "theUS", "anna", "\u2019s", "ª", "ǅ", "٣", "²"),
)


def words(text: str) -> list[str]:
    """Letter by letter: lower case, no ASCII punctuation, no article between word boundaries."""
    bare = "".join(c for c in text.lower() if c not in set(string.punctuation))
    kept = []
    for is_word, run in itertools.groupby(bare, str.isalnum):
        piece = "".join(run)
        kept.append(" " if is_word and piece in ("a", "an", "the") else piece)
    return "".join(kept).split()


def overlap(prediction: str, answer: str, *, both_empty: float) -> float:
    left, right, same = words(prediction), words(answer), 0
    if not left and not right:
        return both_empty
    rest = list(right)
    for word in left:
        if word in rest:
            rest.remove(word)
            same += 1
    if same == 0:
        return 0.0
    precision, recall = same / len(left), same / len(right)
    return 2 * precision * recall / (precision + recall)


def second_scores(
    questions: Sequence[Known], predictions: dict[str, str], rules: str
) -> dict[str, tuple[float, float]]:
    found = {}
    for name, answers in questions:
        if rules == "v1.1":
            given = predictions.get(name)
            exact = [given is not None and words(given) == words(a) for a in answers]
            shared = [0.0 if given is None else overlap(given, a, both_empty=0.0) for a in answers]
        elif name in predictions:
            right = [a for a in answers if words(a)] or [""]
            exact = [words(predictions[name]) == words(a) for a in right]
            shared = [overlap(predictions[name], a, both_empty=1.0) for a in right]
        else:
            continue
        found[name] = float(any(exact)), max(shared)
    return found


def second_summary(
    questions: Sequence[Known],
    predictions: dict[str, str],
    rules: str,
    chances: dict[str, float],
    threshold: float,
) -> dict[str, float]:
    scores = second_scores(questions, predictions, rules)
    has = {name: len(answers) > 0 for name, answers in questions}
    if rules == "v2.0":
        for name in scores:
            if chances[name] > threshold:
                scores[name] = (0.0, 0.0) if has[name] else (1.0, 1.0)
    groups = {"": list(scores)}
    if rules == "v2.0":
        groups["HasAns_"] = [name for name in scores if has[name]]
        groups["NoAns_"] = [name for name in scores if not has[name]]
    result: dict[str, float] = {}
    for prefix, names in groups.items():
        if names:
            exact, shared = np.mean([scores[name] for name in names], axis=0)
            result |= {f"{prefix}exact": 100 * exact, f"{prefix}f1": 100 * shared}
            result[f"{prefix}total"] = len(names)
    return result


def second_thresholds(
    questions: Sequence[Known], predictions: dict[str, str], chances: dict[str, float]
) -> dict[str, tuple[float, float]]:
    """Answers are let through one by one, the surest first; the best number of them counts."""
    scores = second_scores(questions, predictions, "v2.0")
    has = {name: len(answers) > 0 for name, answers in questions}
    order = sorted((name for name in chances if name in scores), key=lambda name: chances[name])
    found = {}
    for column, metric in enumerate(("exact", "f1")):
        gains = [
            scores[name][column] if has[name] else -1.0 if predictions[name] else 0.0
            for name in order
        ]
        sums = list(itertools.accumulate(gains, initial=float(list(has.values()).count(False))))
        let = sums.index(max(sums))
        found[metric] = 100 * max(sums) / len(scores), chances[order[let - 1]] if let else 0.0
    return found


def some_text(rng: random.Random, most: int = 4) -> str:
    return rng.choice((" ", " ", "  ", "")).join(rng.choices(PIECES, k=rng.randint(0, most)))


def a_set(rng: random.Random, *, all_answered: bool) -> tuple[list[Known], dict[str, str]]:
    """Questions with one to four right answers, and predictions that are often near one."""
    questions, predictions = [], {}
    for number in range(rng.randint(1, 8)):
        least = 1 if all_answered else 0
        answers = tuple(some_text(rng) for _ in range(rng.randint(least, 4)))
        name = f"q{number}"
        questions.append(Known(name, answers))
        near = rng.choice(answers) if answers else ""
        guess = rng.choice(
            [near, near.upper(), f"the {near}.", f"{near} {rng.choice(PIECES)}", some_text(rng), ""]
        )
        if rng.random() < 0.95 or not predictions:
            predictions[name] = guess
    return questions, predictions


@pytest.mark.parametrize("rules", ["v1.1", "v2.0"])
def test_a_thousand_random_prediction_sets(rules):
    rng = random.Random(7)
    seen: dict[str, set[float]] = {"exact": set(), "f1": set()}
    for _ in range(1000):
        questions, predictions = a_set(rng, all_answered=rules == "v1.1")
        chances = {q.id: rng.choice((0.0, 0.25, 0.5, 0.9, 1.0)) for q in questions}
        threshold = rng.choice((0.0, 0.3, 0.5, 1.0))
        ours = squad_scores(
            questions, predictions, rules=rules, no_answer=chances, threshold=threshold
        )
        second = second_summary(questions, predictions, rules, chances, threshold)
        assert ours.keys() == second.keys()
        for name, value in second.items():
            np.testing.assert_allclose(ours[name], value, atol=1e-9, err_msg=f"{name} {questions}")
        for name, values in seen.items():
            values.add(round(ours[name], 6))
        if rules == "v2.0":
            best = best_thresholds(questions, predictions, chances)
            for name, expected in second_thresholds(questions, predictions, chances).items():
                np.testing.assert_allclose(best[name], expected, atol=1e-9, err_msg=str(questions))
    assert min(map(len, seen.values())) > 10, "the sets are too much alike to tell anything"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat!", "cat"),
        ("An apple a day", "apple day"),
        ("theory", "theory"),
        ("U.S.A.", "usa"),
        ("A", ""),
        ("the\u2013end", "\u2013end"),
        ("co-operate", "cooperate"),
        ("\u00a0no\u2003break ", "no break"),
        ("“a”", "“ ”"),
    ],
)
def test_normalisation_by_hand(text, expected):
    assert normalised(text) == expected


def test_f1_by_hand():
    assert f1("the big cat", "a cat", "v1.1") == pytest.approx(2 / 3)
    assert f1("cat cat dog", "cat cat cat", "v2.0") == pytest.approx(2 / 3)
    assert f1("dog", "cat", "v1.1") == 0
    # What is only an article is equal to another article, and shares no word with it.
    assert exact_match("a", "the") == 1
    assert f1("a", "the", "v1.1") == 0
    assert f1("a", "the", "v2.0") == 1


def test_missing_predictions_are_wrong_in_1_and_left_out_in_2():
    questions = [Known("a", ("cat",)), Known("b", ("dog",))]
    assert squad_scores(questions, {"a": "cat"}, rules="v1.1")["exact"] == 50
    assert squad_scores(questions, {"a": "cat"}, rules="v2.0")["exact"] == 100
    assert question_scores(questions, {"a": "cat"}, rules="v1.1")["b"] == (0, 0)


def test_a_threshold_empties_answers():
    questions = [Known("a", ("cat",)), Known("b", ())]
    predictions, chances = {"a": "cat", "b": "dog"}, {"a": 0.2, "b": 0.8}
    unsure = squad_scores(questions, predictions, rules="v2.0", no_answer=chances)
    assert (unsure["exact"], unsure["HasAns_exact"], unsure["NoAns_exact"]) == (50, 100, 0)
    best = best_thresholds(questions, predictions, chances)["f1"]
    assert best == (100, 0.2)
    sure = squad_scores(
        questions, predictions, rules="v2.0", no_answer=chances, threshold=best.threshold
    )
    assert (sure["exact"], sure["f1"], sure["total"]) == (100, 100, 2)


def test_what_can_not_be_scored_is_refused():
    twice = [Known("a", ("cat",)), Known("a", ("dog",))]
    with pytest.raises(ValueError, match="an id twice"):
        squad_scores(twice, {"a": "cat"}, rules="v1.1")
    for scorer in (
        lambda: squad_scores(twice[:1], {}, rules="v2.0"),
        lambda: best_thresholds(twice[:1], {}, {}),
    ):
        with pytest.raises(ValueError, match="no prediction for any"):
            scorer()
