"""Documents: what is one, what is held out, and what is refused or skipped."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from train.common.lm.data import DocumentConfig
from train.common.lm.documents import FEW, Documents, hold_out


def load(path: Path | str, *more: str, **options: object) -> Documents:
    return DocumentConfig(source=(str(path), *more), **options).load()


def texts(count: int) -> list[str]:
    return [f"document number {i}" for i in range(count)]


def write_lines(path: Path, count: int = 40) -> Path:
    path.write_text("\n".join(texts(count)), encoding="utf-8")
    return path


def test_whole_documents_are_held_out_at_random_and_none_is_lost() -> None:
    splits, note = hold_out(texts(50), {"validation": 0.1, "test": 0.2}, how="documents", seed=3)
    assert [len(splits[s]) for s in ("train", "validation", "test")] == [35, 5, 10]
    assert sorted(sum(splits.values(), ())) == sorted(texts(50))
    again, _ = hold_out(texts(50), {"validation": 0.1, "test": 0.2}, how="documents", seed=3)
    assert again == splits
    other, _ = hold_out(texts(50), {"validation": 0.1, "test": 0.2}, how="documents", seed=4)
    assert other != splits
    assert note.endswith("validation (10%) and test (20%), whole documents at random")


def test_the_end_of_the_text_is_held_out_to_the_character() -> None:
    documents = ["a" * 60, "b" * 30, "c" * 10]
    splits, _ = hold_out(documents, {"validation": 0.2, "test": 0.1}, how="end", seed=0)
    assert splits == {
        "train": ("a" * 60, "b" * 10),
        "validation": ("b" * 20,),
        "test": ("c" * 10,),
    }
    whole, note = hold_out(documents, {"validation": 0.1, "test": 0.0}, how="auto", seed=0)
    assert whole == {"train": ("a" * 60, "b" * 30), "validation": ("c" * 10,)}
    assert "last characters" in note


def test_auto_draws_documents_where_there_are_enough() -> None:
    _, note = hold_out(texts(FEW), {"validation": 0.1}, how="auto", seed=0)
    assert "whole documents" in note


def test_nanogpts_split_of_tiny_shakespeare(shared_data) -> None:
    path = shared_data("language_modelling/tinyshakespeare/input.txt.gz")
    data = load(path, test_fraction=0.0)
    text = gzip.decompress(path.read_bytes()).decode()
    assert data.splits == {
        "train": (text[: int(0.9 * len(text))],),
        "validation": (text[int(0.9 * len(text)) :],),
    }
    assert data.measured == "validation"


def test_a_document_is_a_file_a_paragraph_or_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n \n\nthree\n\nfour\n", encoding="utf-8")
    options = {"hold_out": "documents", "validation_fraction": 0.2, "test_fraction": 0.0}
    found = load(path, document="paragraph", **options)
    assert sorted(sum(found.splits.values(), ())) == ["four", "one\ntwo", "three"]
    found = load(path, document="line", **options)
    assert sorted(sum(found.splits.values(), ())) == ["four", "one", "three", "two"]
    assert any("skipped 3 empty documents" in note for note in found.notes)
    whole = load(path, validation_fraction=0.5, test_fraction=0.0)
    assert "".join(sum(whole.splits.values(), ())) == path.read_text(encoding="utf-8")


def test_folders_files_and_records_are_read_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "b.txt.gz").write_bytes(gzip.compress("zweiter Text ä".encode()))
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbffirst text")  # with a byte-order mark
    (folder / "picture.png").write_bytes(b"\x89PNG")
    rows = [json.dumps({"id": i, "text": t}) for i, t in enumerate(texts(3))]
    # A line separator inside a string is no line end.
    (folder / "c.jsonl").write_text("\n".join([*rows, '"x\u2028y"']), encoding="utf-8")
    dev = write_lines(tmp_path / "dev.txt", 3)
    data = load(folder, str(dev), validation=(str(dev),), test_fraction=0.0, document="file")
    expected = ("first text", "zweiter Text ä", *texts(3), "x\u2028y", dev.read_text())
    assert data.splits["train"] == expected
    assert any("skipped 1 files" in note for note in data.notes)
    assert any("1 of 1 validation documents also stand in the training" in n for n in data.notes)


def test_the_fingerprint_is_of_the_documents(tmp_path: Path) -> None:
    first = load(write_lines(tmp_path / "a.txt"), document="line")
    packed = tmp_path / "b.txt.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.txt").read_bytes()))
    assert load(packed, document="line").fingerprint == first.fingerprint
    fewer = load(packed, document="line", max_train=5)
    assert len(fewer.splits["train"]) == 5 and fewer.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", b"", {}, "there is no text in it"),
        ("a.txt", b" \n\n \t\n", {"document": "line"}, "there is no text in it"),
        ("a.txt", b"caf\xe9", {}, "line 1: not utf-8 text"),
        ("a.txt", b"fine", {"encoding": "utf-99"}, "utf-99"),
        ("a.txt.gz", b"no gzip at all", {}, "not a whole gzip file"),
        ("a.txt.gz", gzip.compress(b"cut" * 999, mtime=0)[:-9], {}, "not a whole gzip file"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": ', {}, "line 2: not JSON"),
        ("a.jsonl", b'{"text": "fine"}\n[1]', {}, "line 2: expected a JSON object, got list"),
        ("a.jsonl", b'{"title": "fine"}', {}, "the columns are ['title']"),
        ("a.jsonl", b'{"text": "fine"}', {"column": "body"}, "no column body"),
        ("a.jsonl", b'{"text": 3}', {}, "expected a string as 'text', got 3"),
        ("a.jsonl", b'{"text": "half \\ud83d"}', {}, "half a character"),
        ("a.txt", b"one\ntwo", {"document": "line", "hold_out": "documents"}, "more than 2"),
        ("a.txt", b"x", {"validation_fraction": 0.1}, "the train split holds no documents"),
    ],
)
def test_bad_files_are_refused_with_the_place(
    tmp_path: Path, name: str, content: bytes, options: dict, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load(path, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": ()}, "at least one path"),
        ({"source": ("builtin", "a.txt")}, "builtin alone"),
        ({"source": ("tfds:x",), "test": ("a.txt",)}, "go with files"),
        ({"validation_fraction": 0.0}, "validation_fraction"),
        ({"test_fraction": 1.0}, "test_fraction"),
        ({"validation_fraction": 0.6, "test_fraction": 0.5}, "nothing to train on"),
        ({"max_train": 0}, "max_train"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DocumentConfig(**options)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load(tmp_path / "nowhere.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="the folder holds no file"):
        load(tmp_path / "empty")


def test_a_config_comes_back_from_json(tmp_path: Path) -> None:
    config = DocumentConfig(source=("a.txt", "b.txt"), validation=("c.txt",), column="body")
    described = json.loads(json.dumps(config.__dict__))
    assert DocumentConfig.from_json(described) == config
