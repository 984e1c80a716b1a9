import html.parser
import json
from pathlib import Path

import pytest

from attnjax.focus.report.comparison import comparison_page
from attnjax.focus.report.run_page import report_page
from attnjax.focus.report.runs import FILES, read_run
from tests.focus.report.runs import focus_rows, layout, metrics_rows, write_lines, write_run
from tests.focus.report.shown import digit, examples_object, review

VOID = {"meta", "link", "img", "input", "br", "hr"}
MOST = 5_000_000


class Outline(html.parser.HTMLParser):
    """The elements of a page; fails where tags do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def steady(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "steady", layers=3, heads=4, steps=30)


def missing(page: str) -> str:
    """The part of a page that says what is missing."""
    return page.partition("What is missing or broken")[2].partition("</aside>")[0]


@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_page_stands_alone_and_is_accessible(steady, kind):
    run = read_run(steady)
    page = report_page(run) if kind == "report" else comparison_page(run, run)
    outline = Outline(page)
    ids = [x["id"] for _, x in outline.elements if "id" in x]
    assert len(ids) == len(set(ids))
    for _, attributes in outline.elements:
        for name in ("src", "href", "data", "action"):
            value = attributes.get(name) or ""
            assert value == "" or value.startswith(("#", "data:"))
        for name in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(name, ids[0]) in ids
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in ids
        assert not any(name.startswith("on") for name in attributes)
    assert "url(http" not in page and "@import" not in page and "fetch(" not in page
    assert all("alt" in x for x in outline.all("img"))
    for tag, attributes in outline.elements:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
        if attributes.get("tabindex") == "0" and tag != "pre":
            assert attributes.get("aria-label") or attributes.get("aria-labelledby")
    assert all("scope" in x for x in outline.all("th"))
    assert missing(page) == ""


def test_what_a_page_says(steady):
    page = report_page(read_run(steady))
    for words in (
        "sentiment of reviews",
        "entropy collapse",
        "still stands",
        "logits of two heads passed 50",
        "Better than chance",
        "No better than chance; hardly depends on what was learned",
        "[0.141, 0.177]",
        "A handwritten nought",
        "loss: training",
    ):
        assert words in page or words.replace(": ", ". ") in page, words


def test_nobody_is_led_to_trust_what_was_not_measured(tmp_path):
    run = write_run(tmp_path / "run", layers=1, heads=2, steps=3)
    examples = examples_object() | {"faithful": None}
    (run / "focus_examples.json").write_text(json.dumps(examples))
    page = report_page(read_run(run))
    assert page.count("Nobody tested whether") == sum(
        len(example["maps"]) for example in examples["examples"]
    )
    assert "Nothing was measured" in page


HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}\u2028\ud800"
)


def test_nothing_of_a_run_becomes_markup(tmp_path):
    run = tmp_path / HOSTILE[:9].replace("/", "") / "a<b>&c"
    write_run(run, layers=2, heads=2, steps=4)
    rows = focus_rows(2, 2, 4, 50)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    wicked = json.dumps(HOSTILE)[1:-1]
    for word in ("encoder.layers.0.attention", "logit_growth", "qk_clip", "key 0", "output"):
        text = text.replace(word, f"{word}{wicked}")
    (run / "focus.jsonl").write_text(text)
    examples = json.dumps(examples_object())
    for word in (
        "film",
        "positive",
        "rollout",
        "Sofa",
        "couch",
        "across (g)",
        "A review",
        "sentim",
    ):
        examples = examples.replace(word, f"{word}{wicked}")
    (run / "focus_examples.json").write_text(examples)
    metrics = json.dumps(metrics_rows(200)).replace("grad_norm", f"grad{wicked}")
    write_lines(run / "metrics.jsonl", json.loads(metrics))
    (run / "config.json").write_text(json.dumps({"task": {HOSTILE: HOSTILE}}))
    one = read_run(run)
    clean = Outline(report_page(read_run(write_run(tmp_path / "run", layers=2, heads=2, steps=4))))
    for page in (report_page(one), comparison_page(one, one)):
        outline = Outline(page)
        assert len(outline.all("script")) == len(clean.all("script"))
        assert not any("onerror" in x for _, x in outline.elements)
        assert "<script>alert" not in page and "<img src=x" not in page
        assert "49" not in page.partition("alert(2)")[2][:40]
        page.encode("utf-8", "replace")
    assert HOSTILE[:30].replace("<", "&lt;").replace(">", "&gt;") in report_page(one)


@pytest.mark.parametrize("gone", FILES)
def test_a_missing_file_is_told(tmp_path, gone):
    run = write_run(tmp_path / "run", layers=2, heads=2, steps=4)
    (run / gone).unlink()
    page = report_page(read_run(run))
    assert f"{gone} is missing" in missing(page)
    Outline(page)
    Outline(comparison_page(read_run(run), read_run(run)))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
@pytest.mark.parametrize("cut", FILES)
def test_a_half_written_file_is_told(tmp_path, cut, share):
    run = write_run(tmp_path / "run", layers=2, heads=2, steps=4)
    whole = (run / cut).read_bytes()
    end = whole.rindex(b'"', 0, int(share * len(whole))) + 1  # inside a line
    (run / cut).write_bytes(whole[:end])
    page = report_page(read_run(run))
    assert cut in missing(page)
    Outline(page)


def test_a_directory_with_next_to_nothing(tmp_path):
    for name in FILES:
        (tmp_path / name).write_text("")
    page = report_page(read_run(tmp_path))
    for name in FILES:
        assert name in missing(page)
    assert "There are no metrics to show." in page
    Outline(page)
    Outline(comparison_page(read_run(tmp_path), read_run(tmp_path)))


def test_another_version_is_told(tmp_path):
    run = write_run(tmp_path / "run", layers=1, heads=1, steps=2)
    write_lines(run / "focus.jsonl", [layout({"a": 1}, version=2)])
    (run / "focus_examples.json").write_text(json.dumps({"version": 2}))
    said = missing(report_page(read_run(run)))
    assert said.count("is of version 2, and only version 1 is understood") == 2


def test_no_directory_or_none_of_a_run(tmp_path):
    with pytest.raises(ValueError, match="which is no directory"):
        read_run(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="which has none of"):
        read_run(tmp_path)


def test_a_large_run_fits_and_says_what_is_left_out(tmp_path):
    run = write_run(tmp_path / "run", layers=40, heads=40, steps=2)
    rows = focus_rows(40, 40, 35, 50)
    why = {"value": 1.0, "threshold": 0.5, "why": "w" * 5000}
    rows += [
        {"kind": "warning", "step": step, "module": "encoder.layers.3.attention", "head": 1}
        | {"what": "sink"}
        | why
        for step in range(1, 600)
    ]
    write_lines(run / "focus.jsonl", rows)
    long = review() | {"tokens": ["token"] * 3000, "faithful": None}
    long["maps"] = [{"name": "m", "weights": [0.1] * 3000}] * 4
    wide = digit() | {"maps": [{"name": "m", "weights": [[0.5] * 300] * 300}]}
    examples = examples_object() | {"examples": [long] * 20 + [wide] + [review()] * 90}
    (run / "focus_examples.json").write_text(json.dumps(examples))
    metrics = [
        {"kind": "train", "step": step, **{f"metric_{i}": step * i for i in range(40)}}
        for step in range(2000)
    ]
    write_lines(run / "metrics.jsonl", metrics)
    one = read_run(run)
    for page in (report_page(one), comparison_page(one, one)):
        assert len(page.encode()) < MOST
        assert "of the 35 recorded steps are shown." in page
        assert "of the 1,600 heads are shown" in page
        assert "warnings and remedies are marked." in page
    page = report_page(one)
    assert "more examples are in focus_examples.json" in page
    assert "of 3,000 tokens are shown; they have" in page
    assert "earlier ones are left out" in page
    assert "not shown: metric_" in page
    assert "more heads are left out." in page


def test_what_has_very_many_names_fits(tmp_path):
    run = write_run(tmp_path / "run", layers=1, heads=2, steps=2)
    many = {f"statistic_{place}": [0.1, 0.2] for place in range(800)}
    rows = [{"kind": "heads", "step": step, "modules": {"a": many}} for step in (1, 2)]
    event = {"module": "a", "head": 0, "why": "w"}
    rows += [
        {"kind": "warning", "step": 1, "what": f"kind_{place}{'x' * 300}", **event}
        for place in range(5000)
    ]
    write_lines(run / "focus.jsonl", [layout({"a": 2}), *rows])
    one = read_run(run)
    for page in (report_page(one), comparison_page(one, one)):
        assert len(page.encode()) < MOST
        assert "24 of the 800 statistics are shown." in page
        Outline(page)


def test_what_was_done_to_the_whole_model_is_shown(tmp_path):
    run = write_run(tmp_path / "run", layers=2, heads=2, steps=4)
    remedy = {"kind": "remedy", "step": 100, "module": "", "head": None, "what": "learning_rate"}
    rows = [*focus_rows(2, 2, 4, 50), remedy | {"strength": 0.5, "why": "halved"}]
    write_lines(run / "focus.jsonl", rows)
    focus = {"kind": "focus", "step": 50, "entropy_min": 0.5}
    write_lines(run / "metrics.jsonl", [*metrics_rows(200), focus])
    page = report_page(read_run(run))
    assert "whole model" in page and "learning rate" in page and "halved" in page
    assert "entropy min" not in page and missing(page) == ""


def test_runs_of_different_models_are_compared(tmp_path):
    one = read_run(write_run(tmp_path / "one", layers=2, heads=4, steps=4))
    other = read_run(write_run(tmp_path / "other", layers=3, heads=2, steps=6, learning_rate=0.1))
    page = comparison_page(one, other)
    assert "4 heads are in run A only." in page
    assert "2 heads are in run B only: encoder.layers.2.attention." in page
    assert "<code>train.optim.learning_rate</code>" in page and "<code>0.1</code>" in page
    assert "A at step 200, B at step 300" in page


def test_runs_that_share_nothing_are_compared(tmp_path):
    one = write_run(tmp_path / "one", layers=2, heads=4, steps=4)
    other = write_run(tmp_path / "other", layers=2, heads=4, steps=4)
    write_lines(other / "focus.jsonl", [layout({"a": 1})])
    (other / "metrics.jsonl").unlink()
    page = comparison_page(read_run(one), read_run(other))
    assert "No head was recorded in both runs" in page
    assert "This run has no record of it." in page
    Outline(page)
