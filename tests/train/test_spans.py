"""Questions in SQuAD's layout: what is read, cut into windows, found again, and refused."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from train.common.spans.answers import collect, known, texts
from train.common.spans.baseline import closest_sentence, guess, last_word, longest_name
from train.common.spans.batches import (
    QUESTION,
    SHARED,
    TEXT,
    SpanBatches,
    SpanEncoder,
    SpanTokensConfig,
)
from train.common.spans.data import Span, SpanData, SpanQuestion
from train.common.spans.loading import SpanDataConfig
from train.common.spans.models import best_spans, span_loss
from train.common.spans.task import make_encoder

CONTEXT = "In 1990-95 Zoë's na\u0308ive dog  (a\u00a0pug) ate 3,000 U.S. bones.\nThen Ada slept."


def squad(articles: int = 6, *, v2: bool = False) -> dict[str, Any]:
    data = []
    for a in range(articles):
        context = f"Ada has {a} cats. Ben lives in Town {a}. {CONTEXT}"
        asked = [("How many cats has Ada?", str(a)), ("Where does Ben live?", f"Town {a}")]
        qas: list[dict[str, Any]] = [
            {
                "id": f"{a}-{i}",
                "question": question,
                "answers": [{"text": text, "answer_start": context.index(text)}],
            }
            for i, (question, text) in enumerate(asked)
        ]
        if v2:
            nothing = {"id": f"{a}-x", "question": "Who is Zed?", "answers": []}
            qas = [{**qa, "is_impossible": False} for qa in qas]
            qas.append({**nothing, "is_impossible": True, "plausible_answers": []})
        data.append({"title": f"T{a}", "paragraphs": [{"context": context, "qas": qas}]})
    return {"version": "2.0" if v2 else "1.1", "data": data}


def write(path: Path, content: Any) -> Path:
    text = json.dumps(content).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def load(path: Path, **options) -> SpanData:
    return SpanDataConfig(source=str(path), **options).load()


def question(context: str, *answers: str, asked: str = "Who ate bones?") -> SpanQuestion:
    spans = tuple(Span(answer, context.index(answer)) for answer in answers)
    return SpanQuestion("q", "", context, asked, spans)


def encoder_of(*questions: SpanQuestion, **options) -> SpanEncoder:
    splits = dict.fromkeys(("train", "validation", "test"), questions)
    return make_encoder(SpanData(splits, "here"), SpanTokensConfig(**options))


def test_plain_and_packed_files_hold_the_same(tmp_path: Path):
    plain = load(write(tmp_path / "train.json", squad()))
    packed = load(write(tmp_path / "train.json.gz", squad()))
    assert plain.fingerprint == packed.fingerprint
    assert plain.rules == "v1.1"
    assert sum(map(len, plain.splits.values())) == 12
    titles = [{q.title for q in questions} for questions in plain.splits.values()]
    assert not set.intersection(*titles), "whole articles are held out"
    assert "held out of" in plain.notes[0]
    dev = load(tmp_path / "train.json", test=str(write(tmp_path / "dev.json", squad(2, v2=True))))
    assert (len(dev.splits["test"]), dev.rules) == (6, "v2.0")
    assert "2 of 2 test texts also stand in training" in dev.notes[-1]
    assert len(load(tmp_path / "train.json", max_train=3).splits["train"]) == 3


def test_misplaced_answers_move_to_the_nearest_place(tmp_path: Path):
    content = squad()
    paragraph = content["data"][0]["paragraphs"][0]
    paragraph["context"] = "cat. A cat and a cat, and far away a cat"
    answers = [{"text": "cat", "answer_start": s} for s in (7, 15, 38, 0, 99)]
    paragraph["qas"][0]["answers"] = [*answers, {"text": "dog", "answer_start": 3}]
    paragraph["qas"][1]["question"] = "  "
    data = load(write(tmp_path / "train.json", content))
    found = next(q for q in sum(data.splits.values(), ()) if q.id == "0-0")
    assert [answer.start for answer in found.answers] == [7, 17, 37, 0, 37, -1]
    notes = "\n".join(data.notes)
    assert "3 answers did not stand where the file says" in notes
    assert "2 answers do not stand in their text" in notes
    assert "skipped 1 questions without a text or without words" in notes


def _without(name: str):
    return lambda content: content["data"][0]["paragraphs"][0]["qas"][0].pop(name)


def _set(name: str, value: Any, *, level: str = "qas"):
    def change(content: Any) -> None:
        paragraph = content["data"][0]["paragraphs"][0]
        where = {"data": content, "paragraph": paragraph, "qas": paragraph["qas"][0]}[level]
        where[name] = value

    return change


QA = r"data\[0\].paragraphs\[0\].qas\[0\]"
BAD_CONTENT = [
    (lambda content: content.pop("data"), "expected 'data', got only version"),
    (_set("data", {}, level="data"), "expected a list as 'data', got {}"),
    (_set("data", [], level="data"), "the file holds no question"),
    (_set("data", ["x"], level="data"), r"data\[0\]: expected a JSON object, got str"),
    (_set("context", 3, level="paragraph"), r"paragraphs\[0\]: expected a string as 'context'"),
    (_without("question"), f"{QA}: expected 'question', got only id, answers"),
    (_set("id", 7), f"{QA}: expected a string as 'id', got 7"),
    (_set("id", "1-0"), "two questions have the id '1-0'"),
    (_set("answers", [{"text": "x"}]), r"answers\[0\]: expected 'answer_start', got only text"),
    (_set("answers", [{"text": "0", "answer_start": True}]), "a whole number as 'answer_start'"),
    (_set("answers", [{"text": " ", "answer_start": 0}]), "expected the text of an answer"),
    (_set("is_impossible", True), f"{QA}: is_impossible must be true where .* got 1 answers"),
]


@pytest.mark.parametrize(("change", "message"), BAD_CONTENT, ids=[m for _, m in BAD_CONTENT])
def test_bad_content_is_named(tmp_path: Path, change, message):
    content = copy.deepcopy(squad())
    change(content)
    with pytest.raises(ValueError, match=message) as error:
        load(write(tmp_path / "train.json", content))
    assert "train.json" in str(error.value)


def test_bad_files_are_named(tmp_path: Path):
    def refused(content: bytes, message: str, name: str = "train.json") -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load(tmp_path / name)

    with pytest.raises(FileNotFoundError, match="no such file"):
        load(tmp_path / "nowhere.json")
    refused(b'{"data": [', "not JSON, or not the whole file")
    refused(b"[]", "expected a JSON object, got list")
    refused(b'{"data": "K\xfcche"}', "line 1: not utf-8 text")
    refused(gzip.compress(b"{}" * 99)[:-9], "not a whole gzip file", "train.json.gz")
    nobody = squad(v2=True)
    for article in nobody["data"]:
        article["paragraphs"][0]["qas"] = article["paragraphs"][0]["qas"][2:]
    refused(json.dumps(nobody).encode(), "no training question has an answer")
    refused(json.dumps(squad(1)).encode(), "the train split holds no questions")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test": "dev.json"}, "go with a file as --data, got 'builtin'"),
        ({"validation_fraction": 0}, "validation_fraction must lie between 0 and 1"),
        ({"test_fraction": 0.97}, "leave nothing to train on"),
        ({"max_train": 0}, "max_train must be at least 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SpanDataConfig(**options)


def test_windows_must_overlap():
    with pytest.raises(ValueError, match="stride 96 would leave gaps between windows of 14 tokens"):
        SpanTokensConfig(max_tokens=64)
    with pytest.raises(ValueError, match="stride must be at least 1"):
        SpanTokensConfig(stride=0)


@pytest.mark.parametrize("kind", ["word", "bpe"])
@pytest.mark.parametrize(
    "answer", ["1990", "95", "Zoë", "na\u0308ive dog", "(a\u00a0pug)", "3,000", "U.S.", "Ada slept"]
)
def test_answers_come_back_to_the_character(answer, kind):
    asked = question(CONTEXT, answer)
    encoder = encoder_of(asked, kind=kind)
    (window,) = encoder.windows([asked])
    first, last = window.answer
    shift = window.offset - window.begin
    span = {"start": first + shift, "end": last + shift, "score": -1.0, "none": -2.0}
    found = collect([window], [span])["q"]
    assert found.text == answer
    assert CONTEXT[found.start :].startswith(answer)


def test_every_token_stands_in_a_window_and_answers_in_whole_ones():
    words = [f"w{i}" for i in range(100)]
    context = " ".join(words)
    asked = question(context, "w50 w51 w52", asked="what is w50 or w7 ?")
    encoder = encoder_of(asked, max_tokens=32, max_question=5, stride=10)
    windows = encoder.windows([asked])
    assert [w.begin for w in windows] == list(range(0, 90, 10))
    assert windows[-1].end == 100
    assert all(w.length <= 32 for w in windows)
    whole = [w.begin for w in windows if w.answer == (50, 52)]
    assert whole == [b for b in range(0, 90, 10) if b <= 50 and b + 25 > 52]
    batch = encoder.pad(windows)
    for row, window in enumerate(windows):
        place = batch["start"][row], batch["end"][row]
        if window.begin in whole:
            assert place == (window.offset + 50 - window.begin, window.offset + 52 - window.begin)
        else:
            assert place == (0, 0)
    kinds = batch["segment"]
    assert (kinds[:, :7] == QUESTION).all()
    assert kinds[4, 7 + 10] == SHARED  # w50 stands in the question, too
    assert (np.delete(kinds[4, 7:32], 10) == TEXT).all()
    # The question is cut after five tokens, the marks around it are two further ids.
    assert batch["tokens"][:, 0].tolist() == [encoder.vocabulary - 2] * len(windows)
    assert batch["tokens"][:, 6].tolist() == [encoder.vocabulary - 1] * len(windows)


def test_what_does_not_fit_is_counted(tmp_path: Path):
    data = load(write(tmp_path / "train.json", squad()))
    config = SpanTokensConfig(max_tokens=16, max_question=3, stride=4)
    batches = SpanBatches(data, make_encoder(data, config))
    count = len(data.splits["train"])
    assert f"{count} training questions make {batches.train_size} windows" in batches.notes()[0]
    assert f"{count} training questions have 3 tokens or more" in batches.notes()[1]
    assert len(batches.notes()) == 2
    batch = next(batches.train_batches(batch_size=4, seed=1, start_step=5))
    assert batch["tokens"].shape == (4, 32)
    whole = next(iter(batches.eval_batches("test", batch_size=6)))
    part = next(iter(batches.eval_batches("test", batch_size=6, rows=np.array([1, 4]))))
    for name in ("tokens", "start", "weight", "window"):
        np.testing.assert_array_equal(part[name], whole[name][[1, 4]])
    with pytest.raises(ValueError, match="no split 'dev'"):
        next(iter(batches.eval_batches("dev", batch_size=2)))


def test_the_best_span_is_that_of_a_plain_search():
    rng = np.random.default_rng(0)
    start, end = rng.normal(size=(2, 5, 11)).astype(np.float32)
    allowed = rng.random((5, 11)) < 0.8
    allowed[:, :2] = False
    found = best_spans(jnp.asarray(start), jnp.asarray(end), jnp.asarray(allowed), 3)
    for b in range(5):
        log_start = start[b] - np.log(np.exp(start[b]).sum())
        log_end = end[b] - np.log(np.exp(end[b]).sum())
        spans = {
            (i, j): log_start[i] + log_end[j]
            for i in range(11)
            for j in range(i, min(i + 3, 11))
            if allowed[b, i] and allowed[b, j]
        }
        best = max(spans, key=lambda span: spans[span])
        assert (int(found["start"][b]), int(found["end"][b])) == best
        np.testing.assert_allclose(found["score"][b], spans[best], rtol=1e-5)
        np.testing.assert_allclose(found["none"][b], log_start[0] + log_end[0], rtol=1e-5)
    batch = {"start": jnp.arange(5), "end": jnp.arange(5) + 1}
    logs = [np.log(np.exp(x).sum(-1)) for x in (start, end)]
    right = start[np.arange(5), np.arange(5)] + end[np.arange(5), np.arange(5) + 1] - sum(logs)
    np.testing.assert_allclose(span_loss(start, end, batch), -right.mean() / 2, rtol=1e-5)


def test_the_surest_window_answers_and_the_most_doubtful_one_says_no():
    asked = question(" ".join(f"w{i}" for i in range(60)), "w3")
    encoder = encoder_of(asked, max_tokens=32, max_question=5, stride=20)
    windows = encoder.windows([asked])
    spans = [
        {"start": w.offset + 1, "end": w.offset + 2, "score": s, "none": n}
        for w, s, n in zip(windows, (-3.0, -1.0, -2.0), (-0.5, -4.0, -0.1), strict=True)
    ]
    found = collect(windows, spans)["q"]
    assert found.text == "w21 w22"
    np.testing.assert_allclose(found.no_answer, 1 / (1 + np.exp(3)), rtol=1e-6)
    assert texts({"q": found}, 0.04) == {"q": ""}
    assert texts({"q": found}, 0.05) == texts({"q": found}, None) == {"q": "w21 w22"}
    assert "no answer (else 'w21 w22')" in found.as_text(0.04)
    assert known([asked])[0].answers == ("w3",)


def test_guesses_from_the_closest_sentence(tmp_path: Path):
    context = "It rained in May. The tower of Pisa was begun by Bonanno Pisano in 1173. Nice."
    asked = question(context, "1173", asked="Who began the tower in Pisa?")
    assert closest_sentence(asked).startswith("The tower of Pisa")
    assert longest_name(asked) == "Bonanno Pisano"
    assert last_word(asked) == "1173"
    baseline = guess(load(write(tmp_path / "train.json", squad(20))))
    assert "the sentence most like the question" in baseline.name
    assert baseline.test["f1"] > 50
    silent = guess(load(write(tmp_path / "v2.json", squad(20, v2=True))))
    assert silent.test["NoAns_total"] == 2
