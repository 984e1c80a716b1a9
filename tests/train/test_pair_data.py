"""Pairs of texts from files and from tensorflow-datasets."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from train.common.builders import spelt, spelt_corpus
from train.common.pairs.text_pairs import Pair, TextPairs, hold_out_pairs
from train.common.pairs.tfds import load_pair_tfds
from train.common.pairs.translation_data import TranslationData

ROWS = [(f"source {i}", f"target {i}") for i in range(20)]


def lines(path: Path, texts: list[str]) -> str:
    content = "".join(f"{text}\n" for text in texts).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def sides(folder: Path, name: str, rows: list[tuple[str, str]], end: str = "") -> tuple[str, str]:
    source = lines(folder / f"{name}.en{end}", [row[0] for row in rows])
    return source, lines(folder / f"{name}.de{end}", [row[1] for row in rows])


def everything(data: TextPairs) -> set[tuple[str, str]]:
    return {tuple(pair) for split in data.splits.values() for pair in split}


@pytest.mark.parametrize("end", ["", ".gz"])
def test_parallel_files_line_by_line_or_by_prefix(tmp_path: Path, end: str) -> None:
    source, target = sides(tmp_path, "train", ROWS, end)
    dev = sides(tmp_path, "dev", [("a", "b")], end)
    data = TranslationData(
        source=source, target=target, validation=dev[0], validation_target=dev[1]
    ).load()
    assert everything(data) == {*ROWS, ("a", "b")}
    assert [len(data.splits[s]) for s in ("train", "validation", "test")] == [18, 1, 2]
    assert any("held out of" in note and "test (2)" in note for note in data.notes)
    again = TranslationData(
        source=str(tmp_path / "train"), validation=str(tmp_path / "dev"), languages=("en", "de")
    ).load()
    assert again.splits == data.splits and again.fingerprint == data.fingerprint
    turned = TranslationData(
        source=str(tmp_path / "train"), validation=str(tmp_path / "dev"), languages=("de", "en")
    ).load()
    assert turned.splits["validation"] == (Pair("b", "a"),)


def test_only_newlines_end_lines(tmp_path: Path) -> None:
    rows = [(f"a\u2028b\x0c{i}", f"c\x85 {i}") for i in range(20)]
    source, target = sides(tmp_path, "train", rows)
    assert everything(TranslationData(source=source, target=target).load()) == set(rows)
    (tmp_path / "train.en").write_bytes("\r\n".join(row[0] for row in rows).encode())
    assert everything(TranslationData(source=source, target=target).load()) == set(rows)


def test_tables_hold_both_sides(tmp_path: Path) -> None:
    tsv = tmp_path / "t.tsv"
    tsv.write_text("".join(f"{i}\t{s}\t{t}\n" for i, (s, t) in enumerate(ROWS)))
    by_number = TranslationData(source=str(tsv), source_column=("1",), target_column=("2",))
    jsonl = tmp_path / "t.jsonl"
    jsonl.write_text("".join(json.dumps({"src": s, "tgt": t}) + "\n" for s, t in ROWS))
    assert everything(by_number.load()) == everything(TranslationData(source=str(jsonl)).load())


def test_blank_sides_are_skipped_and_counted(tmp_path: Path) -> None:
    source, target = sides(tmp_path, "train", [*ROWS, ("", "b"), ("a", " "), ("", "")])
    data = TranslationData(source=source, target=target).load()
    assert everything(data) == set(ROWS)
    assert any("skipped 3 pairs with a blank side (lines 21, 22, 23)" in n for n in data.notes)


def test_held_out_sources_are_not_trained_on() -> None:
    train = [Pair(f"s{i % 10}", f"t{i}") for i in range(40)]
    splits = hold_out_pairs(train, {"validation": 0.1, "test": 0.2}, seed=0)
    assert [len(splits[s]) for s in ("train", "validation", "test")] == [28, 4, 8]
    sources = [{pair.source for pair in split} for split in splits.values()]
    assert not sources[0] & sources[1] and not sources[0] & sources[2]
    assert splits == hold_out_pairs(train, {"validation": 0.1, "test": 0.2}, seed=0)


def test_leaks_and_limits() -> None:
    some = tuple(Pair(*row) for row in ROWS)
    data = TextPairs({"train": some, "validation": some[:3], "test": (Pair("x", "y"),)}, "here")
    assert data.with_leak_note().notes == (
        "3 of 3 validation sources also stand in the training split",
    )
    fewer = data.limited(4, seed=0)
    assert len(fewer.splits["train"]) == 4 and len(fewer.splits["validation"]) == 3
    assert set(fewer.splits["train"]) < set(some) and data.limited(None, seed=0) is data
    assert fewer.fingerprint != data.fingerprint
    assert data.summary() == (
        "here: train 20, validation 3, test 1 pairs; 2.0 words to 2.0 on average"
    )


@pytest.fixture(scope="module")
def few_values(tmp_path_factory) -> Path:
    """The builtin data, prepared with few values."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spelt_corpus, "SIZES", {"train": 30, "validation": 5, "test": 10})
        spelt.prepared(folder)
    return folder


def test_the_builtin_data_is_read_in_any_direction(few_values: Path) -> None:
    data = TranslationData(data_dir=str(few_values)).load()
    assert [len(data.splits[s]) for s in ("train", "validation", "test")] == [30, 5, 10]
    turned = TranslationData(data_dir=str(few_values), languages=("de", "en")).load()
    assert {Pair(t, s) for s, t in data.splits["test"]} == set(turned.splits["test"])
    with pytest.raises(ValueError, match="no language xx, only en, de"):
        TranslationData(data_dir=str(few_values), languages=("xx", "en")).load()


def test_features_are_chosen_by_name(few_values: Path) -> None:
    builder = spelt.prepared(few_values)
    chosen = TranslationData(source_column=("fr", "it"), target_column=("ru",))
    data = load_pair_tfds(chosen, builder)
    french = load_pair_tfds(TranslationData(source_column=("fr",), target_column=("it",)), builder)
    assert set(data.sources("test")) == {f"{s} {t}" for s, t in french.splits["test"]}
    with pytest.raises(ValueError, match=r"source \['fr'\] and target \['klingon'\]; its features"):
        load_pair_tfds(TranslationData(source_column=("fr",), target_column=("klingon",)), builder)


class Nested(tfds.core.GeneratorBasedBuilder):
    """What has no two texts."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "n": tfds.features.Scalar(np.int32)}
            ),
        )

    def _split_generators(self, dl_manager):
        raise AssertionError("is never prepared")

    def _generate_examples(self):
        raise AssertionError("is never prepared")


def test_a_data_set_without_two_texts_is_refused(tmp_path: Path) -> None:
    builder = Nested(data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"source \[\] and target \[\]; its features are "):
        load_pair_tfds(TranslationData(source="tfds:nested"), builder)


def test_values_are_held_out_and_written_out() -> None:
    values = spelt_corpus.values()
    assert {split: len(found) for split, found in values.items()} == spelt_corpus.SIZES
    assert len({value for found in values.values() for value in found}) == 13_500
    assert values == spelt_corpus.values() != spelt_corpus.values(seed=1)


def test_what_is_written_for_a_value() -> None:
    from datetime import date

    spelt_out = spelt_corpus.spelt
    assert spelt_out(4827, "de") == "viertausendachthundertsiebenundzwanzig"
    assert spelt_out((12, 50), "fr") == "douze euros et cinquante centimes"
    assert spelt_out((0, 1), "en") == "zero euro, one cent"
    assert spelt_out(date(1987, 3, 12), "en") == "Thursday, March twelve, nineteen eighty-seven"
    assert spelt_out(date(1987, 3, 12), "de").startswith("Donnerstag, zwölfte März neunzehnhundert")
    for language in spelt_corpus.LANGUAGES:
        for value in (7, (3, 99), date(2004, 2, 29)):
            assert not any(c.isdigit() for c in spelt_out(value, language))


def test_multi30k_as_it_is_published(shared_data) -> None:
    folder = shared_data("machine_translation/multi30k_en_de")
    train, dev, test = (str(folder / name) for name in ("train", "val", "test_2016_flickr"))
    config = TranslationData(source=train, validation=dev, test=test, languages=("en", "de"))
    data = config.load()
    assert [len(data.splits[s]) for s in ("train", "validation", "test")] == [29_000, 1_014, 1_000]
    assert data.splits["test"][0] == Pair(
        "A man in an orange hat starring at something.",
        "Ein Mann mit einem orangefarbenen Hut, der etwas anstarrt.",
    )
    assert data.notes == ("1 of 1014 validation sources also stand in the training split",)
