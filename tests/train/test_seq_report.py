"""The end of a run that writes texts: the baseline, scores, notes, examples and pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from train.common.pairs import nearest
from train.common.pairs.outcome import SeqOutcome, chosen, search_notes, seeds_table
from train.common.pairs.report import alignment_figure
from train.common.pairs.run import Alignment, DecodingConfig, Written
from train.common.pairs.scores import SeqBaseline, scores_line
from train.common.pairs.text_pairs import Pair, TextPairs
from train.common.pairs.translation_scores import TranslationScores

TRAIN = tuple(Pair(f"the {a} {b}", f"{b}/{a}") for a in ("red", "big") for b in ("cat", "house"))
TEST = (Pair("a red cat", "cat/red"), Pair("big houses", "house/big"))
DATA = TextPairs({"train": TRAIN, "validation": TEST, "test": TEST}, "things")


def test_the_nearest_source_is_found(monkeypatch) -> None:
    found = nearest.nearest_baseline(DATA, TranslationScores())
    assert found.outputs == ("cat/red", "house/big")
    assert found.test["chrf"] == pytest.approx(100)
    assert found.description == nearest.DESCRIPTION
    monkeypatch.setattr(nearest, "_ROWS", 1)
    assert nearest.nearest_targets(DATA, ["big houses", "xyz"]) == ["house/big", "cat/red"]
    monkeypatch.setattr(nearest, "SEARCHED", 1)
    assert nearest.nearest_baseline(DATA, TranslationScores()).outputs == ("cat/red", "cat/red")
    assert "of the first 1" in nearest.nearest_baseline(DATA, TranslationScores()).description


def test_scores_are_those_of_sacrebleu() -> None:
    scorer = TranslationScores()
    scores = scorer(["the cat sat on the mat"], ["the cat sat on a mat"])
    # Precisions 5/6, 3/5, 2/4, 1/3 and no brevity penalty.
    assert scores["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert scorer(["same"] * 3, ["same"] * 3)["chrf"] == pytest.approx(100)
    assert scorer(["", ""], ["a", "b"]) == {"bleu": 0.0, "chrf": 0.0}
    signatures = scorer.signatures()
    assert "case:mixed" in signatures["bleu"] and "version:" in signatures["chrf"]


def written(source: str, text: str, *, cut: bool = False, ended: bool = True) -> Written:
    return Written(source, text, -1.0, cut, ended)


def test_what_went_wrong_is_counted() -> None:
    outputs = [written("a", "b"), written("a", "b", cut=True), written("a", "b", ended=False)]
    assert search_notes(outputs[:1]) == ()
    assert search_notes(outputs) == (
        "1 of 3 sources were longer than the model reads, and cut",
        "1 of 3 outputs did not end by themselves, and were cut at the limit",
    )


def test_examples_of_all_lengths_are_shown_middling_ones_first() -> None:
    sources = ["x" * n for n in range(1, 301)]
    pairs = tuple(Pair(source, "y") for source in sources)
    data = TextPairs({"train": pairs, "validation": pairs, "test": pairs}, "x")
    places = chosen(data, [written(source, "y") for source in sources], count=10)
    lengths = [len(sources[i]) for i in places]
    assert len(set(places)) == 10 and min(lengths) == 1 and max(lengths) == 300
    assert all(20 <= n <= 120 for n in lengths[:3])


def test_a_picture_shows_every_piece_as_it_is() -> None:
    weights = np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]])
    figure = alignment_figure(Alignment((" <b>", "$x_1$", " "), (" ja", "(end)"), weights))
    assert figure == alignment_figure(Alignment((" <b>", "$x_1$", " "), (" ja", "(end)"), weights))
    assert "&lt;b&gt;" in figure and "$x_1$" in figure and "(end)" in figure
    assert "\N{OPEN BOX}" in figure and "<b>" not in figure


def test_seeds_have_a_mean_and_a_spread(tmp_path: Path) -> None:
    baseline = SeqBaseline("nothing", ("", ""), {"bleu": 1.0, "chrf": 2.0})
    outcomes = {
        seed: SeqOutcome(tmp_path, {"bleu": bleu, "chrf": 50.0}, baseline, "bleu")
        for seed, bleu in ((0, 10.0), (3, 14.0))
    }
    rows = [line.split() for line in seeds_table(outcomes).splitlines()]
    assert rows[0] == ["seed", "bleu", "chrf"] and rows[2] == ["3", "14.00", "50.00"]
    assert rows[3:] == [
        ["mean", "12.00", "50.00"],
        ["sd", "2.83", "0.00"],
        ["base", "1.00", "2.00"],
    ]
    assert "(+9.00 bleu for the model)" in outcomes[0].describe()
    assert scores_line({"bleu": 1, "chrf": 2.345}) == "bleu 1.00, chrf 2.35"


@pytest.mark.parametrize(
    ("field", "value"), [("beams", 0), ("max_tokens", 0), ("coverage_penalty", -1.0)]
)
def test_searches_that_mean_nothing_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        DecodingConfig(**{field: value})
