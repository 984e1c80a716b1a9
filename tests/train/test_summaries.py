"""Texts and their summaries: where they come from, their scores, and how texts begin."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import pytest

from train.common.builders.docstring_corpus import split_of
from train.common.builders.docstring_summaries import MIN_BODY_WORDS, Summarised, summaries
from train.common.pairs.lead import first_sentence, first_words, lead_baseline
from train.common.pairs.summary_data import SummaryData
from train.common.pairs.summary_scores import SummaryScores
from train.common.pairs.text_pairs import Pair, TextPairs

MAIL = (
    "Hello all,\n\nthe meeting is on {day}.\n@home is off.\n\n@subject\n{subject}\n\n@ann0\nother"
)


def mails(count: int, start: int = 0) -> dict[str, bytes]:
    return {
        f"box_{i:03}.subject": MAIL.format(day=f"day {i}", subject=f"Meeting  {i} ").encode()
        for i in range(start, start + count)
    }


def write_archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {**files, "README": b"not a mail"}.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def test_mails_are_bodies_with_subject_lines(tmp_path: Path) -> None:
    write_archive(tmp_path / "train.tar.gz", mails(3))
    write_folder(tmp_path / "dev", mails(1, 10))
    write_archive(tmp_path / "test.tgz", mails(2, 20))
    data = SummaryData(source=str(tmp_path)).load()
    assert [len(data.splits[s]) for s in ("train", "validation", "test")] == [3, 1, 2]
    body = "Hello all,\n\nthe meeting is on day 1.\n@home is off."
    assert data.splits["train"][1] == Pair(body, "Meeting 1")
    one_by_one = SummaryData(
        source=str(tmp_path / "train.tar.gz"),
        validation=str(tmp_path / "dev"),
        test=str(tmp_path / "test.tgz"),
    ).load()
    assert one_by_one.fingerprint == data.fingerprint
    assert data.notes == ()


def test_mails_without_a_part_are_left_out_and_counted(tmp_path: Path) -> None:
    odd = {"a.subject": b"\n\n@subject\nno body\n", "b.subject": b"no subject\n\n@subject\n\n"}
    windows = {"c.subject": b"Body\r\nmore\r\n@subject\r\nWindows line ends\r\n"}
    paths = {
        "source": write_archive(tmp_path / "a.tar.gz", {**mails(2), **odd, **windows}),
        "validation": write_archive(tmp_path / "b.tar.gz", mails(1, 10)),
        "test": write_archive(tmp_path / "c.tar.gz", mails(1)),
    }
    data = SummaryData(**{name: str(path) for name, path in paths.items()}).load()
    assert data.splits["train"][-1] == Pair("Body\nmore", "Windows line ends")
    assert any("a.tar.gz: left out 2 files" in note for note in data.notes)
    assert any("1 of 1 test sources also stand in the training" in note for note in data.notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.subject": b"no mark at all"}, "a.subject: expected a line @subject"),
        ({"a.subject": b"the word @subject\nin a line"}, "expected a line @subject"),
        ({"a.subject": b"caf\xe9\n@subject\nx"}, "line 1: not utf-8 text"),
        ({"a.txt": b"body\n@subject\nx"}, "it holds no file named *.subject"),
    ],
)
def test_bad_mails_are_refused_by_name(tmp_path: Path, content: dict, message: str) -> None:
    for split in ("train", "dev", "test"):
        write_archive(tmp_path / f"{split}.tar.gz", content)
    with pytest.raises(ValueError) as caught:
        SummaryData(source=str(tmp_path)).load()
    assert message in str(caught.value)


def test_bad_archives_and_missing_parts_are_refused(tmp_path: Path) -> None:
    whole = write_archive(tmp_path / "train.tar.gz", mails(50))
    with pytest.raises(ValueError, match=r"give the others as --data\.validation"):
        SummaryData(source=str(whole)).load()
    with pytest.raises(FileNotFoundError, match="holds train, but no dev"):
        SummaryData(source=str(tmp_path)).load()
    write_archive(tmp_path / "dev.tar.gz", mails(1))
    cut = tmp_path / "test.tar.gz"
    cut.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"test\.tar\.gz: not a whole tar archive"):
        SummaryData(source=str(tmp_path)).load()
    cut.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="not a whole tar archive"):
        SummaryData(source=str(tmp_path)).load()
    cut.unlink()
    write_archive(cut, mails(1))
    with pytest.raises(ValueError, match="holds all three splits"):
        SummaryData(source=str(tmp_path), test=str(cut)).load()
    with pytest.raises(FileNotFoundError, match="no such file"):
        SummaryData(source=str(tmp_path / "no.tar.gz"), validation=str(cut), test=str(cut)).load()


def test_the_published_mails(shared_data) -> None:
    data = SummaryData(source=str(shared_data("summarisation/aeslc"))).load()
    sizes = {split: len(pairs) for split, pairs in data.splits.items()}
    assert sizes == {"train": 14_436, "validation": 1_960, "test": 1_906}
    assert data.notes == ()


def test_columns_named_like_a_summary_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(f'{{"article": "text {i} here", "highlights": "{i}\\nb"}}\n' for i in range(30)),
        encoding="utf-8",
    )
    data = SummaryData(source=str(path)).load()
    assert {len(pair.target.split("\n")) for pair in data.splits["test"]} == {2}
    assert "rougeLsum" in SummaryScores.fitting(data).signatures()


def test_rouge_is_the_share_of_words_pairs_and_subsequences() -> None:
    scores = SummaryScores()
    found = scores(["The cat sat there"], ["the cat was there"])
    assert found == pytest.approx({"rouge1": 75.0, "rouge2": 100 / 3, "rougeL": 75.0})
    mean = scores(["The cat sat there", "a b"], ["the cat was there", "c"])
    assert mean == pytest.approx({name: value / 2 for name, value in found.items()})
    # Stems count as one word, and an empty output as nothing.
    assert scores(["meetings", ""], ["meeting", "x"])["rouge1"] == pytest.approx(50.0)
    assert set(scores.signatures()) == set(found)


def test_lines_are_compared_one_by_one() -> None:
    scores = SummaryScores(lines=True)
    found = scores(["c d\na b"], ["a b\nc d"])
    assert found["rougeLsum"] == pytest.approx(100.0)
    assert found["rougeL"] == pytest.approx(50.0)


def test_texts_begin_with_words_and_sentences() -> None:
    assert first_words(" one  two\nthree four", 3) == "one two three"
    assert first_sentence("  A b. C d.") == "A b."
    assert first_sentence("A b\nC d.") == "A b"
    assert first_sentence("Is it? Yes!") == "Is it?"
    assert first_sentence("version 1.2 is out") == "version 1.2 is out"


def test_the_baseline_is_what_is_best_on_validation() -> None:
    sentence = Pair("Only this sentence counts. And this does not at all.", "this sentence counts")
    words = Pair("one two three four five six seven eight nine ten", "one two three four")
    for pair, name in ((sentence, "the first sentence"), (words, "the first 4 words")):
        splits = {split: (pair,) for split in ("train", "validation", "test")}
        baseline = lead_baseline(TextPairs(splits, "here"), SummaryScores())
        assert baseline.description.startswith(name)
        assert baseline.test["rouge1"] > 80
    assert baseline.outputs == ("one two three four",)


@pytest.fixture(scope="module")
def builtin() -> list[Summarised]:
    return summaries()


def test_docstrings_are_split_into_body_and_first_line(builtin: list[Summarised]) -> None:
    assert len(builtin) > 1500
    by_owner = {one.owner: one for one in builtin}
    found = by_owner["scipy.special.cotdg"]
    assert found.summary == "Cotangent of the angle x given in degrees."
    assert found.summary not in found.body
    for one in builtin:
        assert 3 <= len(one.summary.split()) <= 30 and "\n" not in one.summary
        assert len(one.body.split()) >= MIN_BODY_WORDS and ">>>" not in one.summary


def test_no_body_and_no_summary_is_there_twice(builtin: list[Summarised]) -> None:
    for part in ("body", "summary"):
        spellings = [
            re.sub(r"[\W_]+", " ", getattr(one, part).casefold()).strip() for one in builtin
        ]
        assert len(set(spellings)) == len(spellings)
    splits = {split_of(one.owner) for one in builtin}
    assert splits == {"train", "validation", "test"}


@pytest.mark.slow
def test_the_builder_stores_what_was_found(builtin: list[Summarised], tmp_path: Path) -> None:
    data = SummaryData(data_dir=str(tmp_path)).load()
    for split, pairs in data.splits.items():
        wanted = {(o.body, o.summary) for o in builtin if split_of(o.owner) == split}
        assert set(pairs) == wanted
    assert SummaryData(data_dir=str(tmp_path)).load().fingerprint == data.fingerprint
