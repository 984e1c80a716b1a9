"""The docstring corpus: real sentences, no leak between splits, the same on every preparation."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from train.common.builders.docstring_corpus import (
    MAX_WORDS,
    MIN_WORDS,
    SUBPACKAGES,
    Sentence,
    corpus,
    sentences,
    split_of,
)
from train.common.builders.docstrings import prepared
from train.common.lm.data import DocumentConfig
from train.common.text.labelled_text import LabelledText
from train.common.text.loading import TextDataConfig

DOCSTRING = """resample(x, num, *, axis=0, window=None)

Resample `x` to `num` samples using the Fourier method along the axis.

The resampled signal starts at the same value as ``x`` does [1]_. It is however
sampled with another spacing, see :func:`decimate` for one that filters.

Parameters
----------
x : array_like
    The data that are to be resampled along the axis.
window : str, optional
    * A name means that the window of that name is used.
    * Short item here.

Notes
-----
The argument is used like so in all of the cases::

    this is code and not a sentence of English prose.

.. math::

    formula with more than six words is still not prose

After the formula the sentence goes on for a while.

References
----------
.. [1] An author wrote a paper with a long title once.

Examples
--------
>>> resample(x, 3)  # this is an example that nobody reads
"""


@pytest.fixture(scope="module")
def builtin(tmp_path_factory) -> tuple[LabelledText, Path]:
    folder = tmp_path_factory.mktemp("builtin")
    return TextDataConfig(data_dir=str(folder)).load(), folder


@pytest.fixture(scope="module")
def found() -> list[Sentence]:
    return corpus()


def test_only_prose_comes_out_of_a_docstring() -> None:
    assert list(sentences(DOCSTRING)) == [
        "Resample x to num samples using the Fourier method along the axis.",
        "The resampled signal starts at the same value as x does.",
        "It is however sampled with another spacing, see decimate for one that filters.",
        "The data that are to be resampled along the axis.",
        "A name means that the window of that name is used.",
        "After the formula the sentence goes on for a while.",
    ]


def test_sentences_stay_apart_that_no_blank_line_separates() -> None:
    text = "One sentence of six words here. Another one of six words here."
    assert len(list(sentences(text))) == 2
    assert list(sentences("Too short to be of use.  ")) == ["Too short to be of use."]
    assert list(sentences("Five words are not enough.")) == []


def test_the_corpus_is_large_and_every_label_occurs_in_every_split(found) -> None:
    assert len(found) > 15_000
    assert {s.label for s in found} == set(SUBPACKAGES)
    for split in ("train", "validation", "test"):
        assert {s.label for s in found if split_of(s.owner) == split} == set(SUBPACKAGES)
    shares = Counter(split_of(s.owner) for s in found)
    assert 0.6 < shares["train"] / len(found) < 0.8


def test_sentences_are_as_long_as_promised(found) -> None:
    for sentence in found:
        words = [word for word in sentence.text.split() if re.search(r"[^\W\d_]", word)]
        assert MIN_WORDS <= len(words) <= MAX_WORDS


def test_no_sentence_occurs_twice_not_even_under_another_label_or_spelling(found) -> None:
    spellings = Counter(re.sub(r"[\W_]+", " ", s.text.casefold()).strip() for s in found)
    assert [text for text, count in spellings.items() if count > 1] == []


def test_functions_do_not_straddle_splits(found) -> None:
    by_owner: dict[str, set[str]] = {}
    for sentence in found:
        by_owner.setdefault(sentence.owner, set()).add(split_of(sentence.owner))
    assert all(len(splits) == 1 for splits in by_owner.values())


def test_splits_do_not_depend_on_the_process() -> None:
    # A salted hash would pass every other test here.
    names = ("scipy.fft.fft", "scipy.stats.zscore", "numpy.linspace", "numpy.sort")
    assert [split_of(name) for name in names] == ["test", "train", "train", "test"]


def test_the_builder_stores_what_the_corpus_holds(builtin, found) -> None:
    data, _ = builtin
    wanted = {split: set() for split in data.splits}
    for sentence in found:
        wanted[split_of(sentence.owner)].add((sentence.text, sentence.label))
    for split, examples in data.splits.items():
        assert {(text, data.labels[label]) for text, label in examples} == wanted[split]
        assert len(examples) == len(wanted[split])
    assert data.notes == ()


@pytest.mark.slow
def test_another_preparation_has_the_same_fingerprint(builtin, tmp_path: Path) -> None:
    data, _ = builtin
    assert TextDataConfig(data_dir=str(tmp_path)).load().fingerprint == data.fingerprint


def test_prepared_data_are_read_not_made_again(builtin, monkeypatch) -> None:
    data, folder = builtin
    monkeypatch.setattr("train.common.builders.docstrings.corpus", lambda: pytest.fail("made"))
    assert TextDataConfig(data_dir=str(folder)).load().fingerprint == data.fingerprint


@pytest.mark.slow
def test_processes_that_start_together_all_get_the_data(tmp_path: Path) -> None:
    program = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "from train.common.text.loading import TextDataConfig\n"
        "print(TextDataConfig(data_dir=sys.argv[1]).load().fingerprint)"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    fingerprints = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(fingerprints) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["attnjax_docstrings"]


def test_the_owner_of_each_sentence_is_stored(builtin) -> None:
    _, folder = builtin
    record = prepared(folder).as_data_source("test")[0]
    assert split_of(record["owner"].decode()) == "test"
    assert set(record) == {*Sentence._fields, "place"}


def test_as_documents_the_sentences_of_each_docstring_stand_together_in_order(
    builtin, found
) -> None:
    _, folder = builtin
    wanted: dict[str, dict[str, list[str]]] = {s: {} for s in ("train", "validation", "test")}
    for sentence in found:
        wanted[split_of(sentence.owner)].setdefault(sentence.owner, []).append(sentence.text)
    data = DocumentConfig(data_dir=str(folder)).load()
    assert data.splits == {
        split: tuple("\n".join(texts) for texts in owners.values())
        for split, owners in wanted.items()
    }
    assert data.notes == ()
