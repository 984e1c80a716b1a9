"""Files as people have them: every fault is named with its file and line, or counted as skipped."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from train.common.text.loading import TextDataConfig

TEXTS = [f"text number {i}" for i in range(20)]
ROWS = [(text, "even" if i % 2 == 0 else "odd") for i, text in enumerate(TEXTS)]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def csv_of(rows: list[tuple[str, str]], header: str = "text,label\n") -> str:
    return header + "".join(f'"{text}",{label}\n' for text, label in rows)


@pytest.fixture
def train_csv(tmp_path: Path) -> Path:
    return write(tmp_path / "train.csv", csv_of(ROWS))


def records(data) -> set[tuple[str, str]]:
    return {
        (text, data.labels[label]) for examples in data.splits.values() for text, label in examples
    }


def test_a_csv_with_a_header_needs_no_options(train_csv: Path) -> None:
    data = TextDataConfig(source=str(train_csv)).load()
    assert data.labels == ("even", "odd")
    assert records(data) == set(ROWS)
    assert [len(data.splits[s]) for s in ("train", "validation", "test")] == [16, 2, 2]
    assert any("held out" in note for note in data.notes)


def test_the_random_split_follows_its_own_seed(train_csv: Path) -> None:
    first, again, other = (
        TextDataConfig(source=str(train_csv), split_seed=seed).load() for seed in (0, 0, 1)
    )
    assert first.splits == again.splits and first.fingerprint == again.fingerprint
    assert first.splits != other.splits and first.fingerprint != other.fingerprint


def test_tsv_jsonl_and_gz_hold_the_same_records(tmp_path: Path, train_csv: Path) -> None:
    wanted = TextDataConfig(source=str(train_csv)).load()
    tsv = write(tmp_path / "t.tsv", "text\tlabel\n" + "".join(f"{t}\t{y}\n" for t, y in ROWS))
    lines = "".join(json.dumps({"label": y, "text": t}) + "\n" for t, y in ROWS)
    jsonl = write(tmp_path / "t.jsonl", lines)
    gz = write(tmp_path / "t.jsonl.gz", gzip.compress(lines.encode()))
    for path in (tsv, jsonl, gz):
        data = TextDataConfig(source=str(path)).load()
        assert data.splits == wanted.splits
        assert data.fingerprint == wanted.fingerprint


def test_columns_by_number_mean_no_header(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tsv", "".join(f'{t} "\t{y}\n' for t, y in ROWS))
    data = TextDataConfig(source=str(path), text_column=("0",), label_column="1").load()
    # In a tsv a lone quotation mark is a character like any other.
    assert records(data) == {(f'{t} "', y) for t, y in ROWS}


def test_columns_by_number_below_a_header(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "a,b\n" + "".join(f"{y},{t}\n" for t, y in ROWS))
    data = TextDataConfig(
        source=str(path), text_column=("1",), label_column="0", header=True
    ).load()
    assert records(data) == set(ROWS)


def test_several_text_columns_are_joined(tmp_path: Path) -> None:
    rows = "".join(f"title {i};{t};{y}\n" for i, (t, y) in enumerate(ROWS))
    path = write(tmp_path / "t.csv", "title;body;y\n" + rows)
    data = TextDataConfig(
        source=str(path), separator=";", text_column=("title", "body"), label_column="y"
    ).load()
    assert ("title 0 text number 0", "even") in records(data)


def test_quoted_cells_may_hold_separators_and_line_ends(tmp_path: Path) -> None:
    rows = [("one, two\nthree", "even"), *ROWS]
    data = TextDataConfig(source=str(write(tmp_path / "t.csv", csv_of(rows)))).load()
    assert records(data) == set(rows)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", b"\xef\xbb\xbf" + csv_of(ROWS).encode())
    assert records(TextDataConfig(source=str(path)).load()) == set(ROWS)


def test_trec_lines_in_latin_1(tmp_path: Path) -> None:
    lines = [f"NUM:date When was caf\xe9 {i} ?\nHUM:ind Who is {i} ?" for i in range(10)]
    path = write(tmp_path / "t.train", "\n".join(lines).encode("latin-1"))
    data = TextDataConfig(source=str(path), format="trec", encoding="latin-1").load()
    assert data.labels == ("HUM", "NUM")
    assert ("When was caf\xe9 3 ?", "NUM") in records(data)


def test_any_line_layout_by_a_pattern(tmp_path: Path) -> None:
    path = write(tmp_path / "t.txt", "".join(f"__label__{y} {t}\n" for t, y in ROWS))
    data = TextDataConfig(
        source=str(path), format="regex", pattern=r"__label__(?P<label>\S+) (?P<text>.*)"
    ).load()
    assert records(data) == set(ROWS)


def test_separate_files_keep_their_own_examples(tmp_path: Path, train_csv: Path) -> None:
    dev = write(tmp_path / "dev.csv", csv_of([("a", "odd")]))
    test = write(tmp_path / "test.csv", csv_of([("b", "even"), (TEXTS[0], "even")]))
    data = TextDataConfig(source=str(train_csv), validation=str(dev), test=str(test)).load()
    assert [len(data.splits[s]) for s in ("train", "validation", "test")] == [20, 1, 2]
    assert data.notes == ("1 of 2 test texts also stand in the training split",)


def test_lines_without_text_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", csv_of(ROWS) + "\n" + '"  ",odd\n')
    data = TextDataConfig(source=str(path)).load()
    assert records(data) == set(ROWS)
    assert any("skipped 2 lines without text (lines 22, 23)" in note for note in data.notes)


def test_max_train_shortens_only_the_training_split(train_csv: Path) -> None:
    data = TextDataConfig(source=str(train_csv), max_train=5).load()
    assert [len(data.splits[s]) for s in ("train", "validation", "test")] == [5, 2, 2]


BAD_FILES = {
    "empty file": ("t.csv", "", {}, r"t\.csv: no line holds a text"),
    "header only": ("t.csv", "text,label\n", {}, r"t\.csv: no line holds a text"),
    "no text column": ("t.csv", "a,label\nx,y\n", {}, r"line 1: no column is known as the text"),
    "no label column": ("t.csv", "text,b\nx,y\n", {}, r"line 1: no column is known as the label"),
    "wrong name": (
        "t.csv",
        csv_of(ROWS),
        {"label_column": "stars"},
        r"line 1: no column 'stars'; the columns are \['text', 'label'\]",
    ),
    "number too large": (
        "t.csv",
        csv_of(ROWS),
        {"text_column": ("0",), "label_column": "7"},
        r"no column '7'",
    ),
    "missing cell": ("t.csv", csv_of(ROWS[:3]) + "lonely\n", {}, r"line 5: expected 2 columns"),
    "extra cell": ("t.csv", csv_of(ROWS[:3]) + "a,b,c\n", {}, r"line 5: .*got 3"),
    "open quotation": ("t.csv", csv_of(ROWS[:3]) + '"never closed,odd\n', {}, r"t\.csv, line 5"),
    "one label": ("t.csv", csv_of([(t, "same") for t in TEXTS]), {}, r"at least two labels"),
    "unknown ending": ("t.dat", csv_of(ROWS), {}, r"give --data\.format"),
    "not JSON": ("t.jsonl", '{"text": "a", "label": 1}\n{oops\n', {}, r"line 2: not JSON"),
    "JSON array": ("t.jsonl", "[1, 2]\n", {}, r"line 1: expected one JSON object a line, got list"),
    "JSON number as text": ("t.jsonl", '{"text": 3, "label": "x"}\n', {}, r"expected a string"),
    "JSON list as label": ("t.jsonl", '{"text": "a", "label": []}\n', {}, r"whole number"),
    "JSON key missing": (
        "t.jsonl",
        '{"text": "a", "label": "x"}\n{"text": "b"}\n',
        {},
        r"line 2: no column is known as the label",
    ),
    "wrong encoding": (
        "t.csv",
        csv_of(ROWS).encode() + b'"caf\xe9",odd\n',
        {},
        r"line 22: not utf-8 text .*latin-1",
    ),
    "unknown encoding": ("t.csv", csv_of(ROWS), {"encoding": "utf-9"}, r"encoding utf-9"),
    "not gzip": ("t.csv.gz", csv_of(ROWS), {}, r"not a whole gzip file"),
    "cut gzip": ("t.csv.gz", gzip.compress(csv_of(ROWS).encode())[:-9], {}, r"not a whole gzip"),
    "trec without colon": ("t.x", "NUM:a b\nplain words\n", {"format": "trec"}, r"line 2: .*match"),
    "pattern without groups": (
        "t.x",
        "a b\n",
        {"format": "regex", "pattern": r"(\S+) (.*)"},
        r"needs the groups",
    ),
    "broken pattern": ("t.x", "a\n", {"format": "regex", "pattern": "("}, r"no regular expression"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_with_the_place(tmp_path: Path, name: str) -> None:
    file, content, options, message = BAD_FILES[name]
    path = write(tmp_path / file, content)
    with pytest.raises(ValueError, match=message):
        TextDataConfig(source=str(path), **options).load()


def test_a_label_that_training_never_saw_is_refused(tmp_path: Path, train_csv: Path) -> None:
    test = write(tmp_path / "test.csv", csv_of([("a", "odd"), ("b", "strange")]))
    with pytest.raises(ValueError, match=r"test\.csv, line 3: label 'strange' never occurs"):
        TextDataConfig(source=str(train_csv), test=str(test)).load()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv: no such file"):
        TextDataConfig(source=str(tmp_path / "nowhere.csv")).load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 0.0}, "validation_fraction"),
        ({"test_fraction": 1.0}, "test_fraction"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "nothing to train on"),
        ({"format": "regex"}, "pattern"),
        ({"pattern": "x"}, "pattern"),
        ({"max_train": 0}, "max_train"),
        ({"source": "builtin", "test": "t.csv"}, "go with a file"),
    ],
)
def test_options_that_cannot_mean_anything_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextDataConfig(**{"source": "t.csv", **options})


def test_a_config_survives_json(train_csv: Path) -> None:
    import dataclasses

    config = TextDataConfig(source=str(train_csv), text_column=("text",), label_column="label")
    assert TextDataConfig.from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_label_counts_are_those_of_the_split(train_csv: Path) -> None:
    data = TextDataConfig(source=str(train_csv)).load()
    for split, examples in data.splits.items():
        counts = [sum(label == i for _, label in examples) for i in range(2)]
        np.testing.assert_array_equal(data.label_counts(split), counts)
