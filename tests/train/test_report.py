"""The report: one self-contained file whose numbers are the run's."""

from __future__ import annotations

import html.parser
from pathlib import Path

import numpy as np
import pytest

from train.common.classification import Scores
from train.common.text.baseline import Baseline
from train.common.text.labelled_text import Example, LabelledText
from train.common.text.outcome import Outcome, chosen_examples, scores_table, seeds_table
from train.common.text.report import Report, class_rows, confusion_figure, shades, write_report
from train.common.text.run import Prediction, Word

LABELS = ("plain", 'odd <b> & "quoted"')
TEXT = "  A <i>cat</i>, sat "


def prediction(label: str = LABELS[0], share: float = 0.9) -> Prediction:
    other = LABELS[1 - LABELS.index(label)]
    words = (Word("A", 2, 0.1), Word("cat", 7, 0.6), Word("sat", 16, 0.3))
    return Prediction(TEXT, label, {label: share, other: 1 - share}, words)


def make_report(**changes) -> Report:
    splits = {s: tuple(Example(TEXT, i % 2) for i in range(4)) for s in ("train", "validation")}
    splits["test"] = tuple(Example(TEXT, y) for y in (0, 0, 1, 1))
    scores = Scores.of([0, 0, 1, 1], [0, 1, 1, 1], 2)
    worse = Scores.of([0, 0, 1, 1], [0, 1, 1, 0], 2)
    fields = {
        "data": LabelledText(splits, LABELS, origin="a <file>", notes=("3 lines & more skipped",)),
        "test": scores,
        "baseline": Baseline(test=worse, validation=worse, strength=3.0),
        "history": [
            {"kind": "train", "step": 1, "loss": 1.0, "accuracy": 0.5},
            {"kind": "eval", "step": 2, "loss": 0.9, "accuracy": 0.75},
        ],
        "best_step": 2,
        "shown": [(LABELS[0], prediction()), (LABELS[1], prediction())],
        "config": {"task": {"model": {"name": "transformer"}}},
        "manifest": {"seed": 0, "note": "</pre><script>"},
    }
    return Report(**{**fields, **changes})


class Page(html.parser.HTMLParser):
    """Collects tags, addresses and text; checks that tags close in order."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.shaded: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)
        if ("class", "w") in attrs:
            self.shaded.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "span" and self.shaded:
            self.shaded[-1] = data


@pytest.fixture
def page(tmp_path: Path) -> Page:
    write_report(tmp_path / "report.html", make_report())
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_the_file_is_whole_and_fetches_nothing(page: Page) -> None:
    assert page.open == []
    assert page.tags.count("svg") == 2
    assert "script" not in page.tags
    assert all(address.startswith(("#", "data:image/png;")) for address in page.addresses)


def test_the_numbers_are_those_of_the_run(page: Page) -> None:
    for shown in ("75.0%", "50.0%", "+25.0", "transformer", "step 2", "3 lines & more skipped"):
        assert shown in page.text
    assert make_report().data.fingerprint in page.text


def test_text_is_shown_as_it_stands_and_never_becomes_markup(page: Page) -> None:
    assert TEXT in page.text
    assert "i" not in page.tags and 'odd <b> & "quoted"' in page.text
    assert "</pre><script>" in page.text


def test_words_are_shaded_by_their_weight() -> None:
    pieces = shades(prediction())
    assert "".join(piece for piece, _, _ in pieces) == TEXT
    shaded = {piece: shade for piece, _, shade in pieces if shade > 0}
    assert shaded == pytest.approx({"A": 1 / 6, "cat": 1.0, "sat": 0.5})


def test_a_run_without_any_evaluation_can_be_shown(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", make_report(history=[], best_step=None, shown=[]))
    assert "Confusion matrix" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_class_rows_follow_their_definitions() -> None:
    rows = class_rows(make_report())
    assert [row["count"] for row in rows] == [2, 2]
    assert [row["precision"] for row in rows] == pytest.approx([1.0, 2 / 3])
    assert [row["recall"] for row in rows] == pytest.approx([0.5, 1.0])
    assert [row["f1"] for row in rows] == pytest.approx([2 / 3, 0.8])
    assert [row["baseline_f1"] for row in rows] == pytest.approx([0.5, 0.5])


def test_pictures_repeat_and_many_classes_fit() -> None:
    confusion = np.random.default_rng(0).integers(0, 50, (30, 30))
    names = [f"class {i}" for i in range(30)]
    assert confusion_figure(confusion, names) == confusion_figure(confusion, names)
    assert "class 29" in confusion_figure(confusion, names)


def test_shown_examples_are_the_surest_of_each_class_then_mistakes() -> None:
    splits = {s: (Example("t", 0), Example("t", 1)) for s in ("train", "validation")}
    wanted = [0, 0, 0, 1, 1, 0]
    guesses = [(0, 0.7), (0, 0.99), (1, 0.8), (1, 0.6), (0, 0.9), (0, 0.5)]
    splits["test"] = tuple(Example("t", y) for y in wanted)
    data = LabelledText(splits, LABELS, origin="here")
    predictions = [prediction(LABELS[label], share) for label, share in guesses]
    chosen = chosen_examples(data, predictions, right=3, wrong=1)
    shares = [p.probabilities[p.label] for _, p in chosen]
    assert shares == [0.99, 0.6, 0.7, 0.9]
    assert [label == p.label for label, p in chosen] == [True, True, True, False]


def test_tables_for_the_terminal() -> None:
    report = make_report()
    table = scores_table(report.test, ("ab", "c"))
    assert "accuracy 0.7500, macro F1 0.7333, 4 texts" in table
    assert [line.split() for line in table.splitlines()[-2:]] == [
        ["ab", "1", "1", "0"],
        ["c", "0", "2", "1"],
    ]
    outcomes = {
        seed: Outcome(Path("r"), Scores(accuracy, accuracy, report.test.confusion), report.baseline)
        for seed, accuracy in ((0, 0.7), (1, 0.8), (2, 0.9))
    }
    lines = [line.split() for line in seeds_table(outcomes).splitlines()]
    assert lines[4] == ["mean", "0.8000", "0.8000"]
    assert lines[5] == ["sd", "0.1000", "0.1000"]
    assert lines[6][:2] == ["base", "0.5000"]
