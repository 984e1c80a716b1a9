"""Tokenisers: trained on what they are given, offsets that point into the original text."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.common.text.subwords import SubwordConfig, SubwordTable
from train.common.tokenise import UNKNOWN_ID, TextTokeniser, TokeniserConfig

CORPUS = ["The cat sat.", "The dog sat, too.", "A cat's tail isn't a dog's tail."] * 3
HARD = "The Über-cat's 漢字 don't\u2014e\u0301te\u0301 cat\u2019s?! x_0=3.5\t\U0001f600"


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_every_word_knows_its_place_in_the_original(kind: str) -> None:
    tokens = TokeniserConfig(kind=kind).train(CORPUS).encode(HARD)
    words = [HARD[start:end] for start, end in tokens.spans]
    assert words[:3] == ["The", "Über-cat's", "漢字"]
    assert "don't" in words and "cat\u2019s" in words and "\U0001f600" in words
    assert len(tokens.ids) == len(tokens.pieces) == len(tokens.words)
    assert sorted(set(tokens.words)) == list(range(len(tokens.spans)))
    # Together the words are the text without its blanks; none overlaps another.
    assert "".join(words) == "".join(HARD.split())
    assert all(a[1] <= b[0] for a, b in zip(tokens.spans, tokens.spans[1:], strict=False))


def test_words_of_training_are_known_and_others_are_not() -> None:
    tokens = TokeniserConfig().train(CORPUS).encode("THE zebra sat")
    assert [i == UNKNOWN_ID for i in tokens.ids] == [False, True, False]
    assert tokens.pieces == ["the", "zebra", "sat"]


def test_case_can_be_kept() -> None:
    tokeniser = TokeniserConfig(lowercase=False).train(CORPUS)
    assert [i == UNKNOWN_ID for i in tokeniser.encode("The the").ids] == [False, True]


def test_bpe_has_no_unknown_words() -> None:
    tokens = TokeniserConfig(kind="bpe", max_vocabulary=400).train(CORPUS).encode("zebra 漢")
    assert UNKNOWN_ID not in tokens.ids
    assert len(tokens.ids) > len(tokens.spans) == 2


def test_rare_words_and_a_small_vocabulary_are_unknown() -> None:
    rare = TokeniserConfig(min_count=4).train(CORPUS)
    assert [i == UNKNOWN_ID for i in rare.encode("sat too").ids] == [False, True]
    assert TokeniserConfig(max_vocabulary=5).train(CORPUS).size == 5


def test_long_texts_are_cut_with_their_words() -> None:
    tokens = TokeniserConfig(max_tokens=2).train(CORPUS).encode("the cat sat too")
    assert len(tokens.ids) == len(tokens.pieces) == len(tokens.words) == len(tokens.spans) == 2


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_a_text_without_words_is_one_unknown(text: str) -> None:
    tokens = TokeniserConfig().train(CORPUS).encode(text)
    assert tokens.ids == [UNKNOWN_ID] and tokens.words == [0]
    assert tokens.spans == [(0, len(text))]


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_training_again_and_saving_change_nothing(kind: str, tmp_path: Path) -> None:
    config = TokeniserConfig(kind=kind)
    first, again = config.train(CORPUS), config.train(CORPUS)
    first.save(tmp_path / "tokeniser.json")
    loaded = TextTokeniser.load(tmp_path / "tokeniser.json", config.max_tokens)
    assert first.encode(HARD) == again.encode(HARD) == loaded.encode(HARD)


@pytest.mark.parametrize("field", ["max_vocabulary", "min_count", "max_tokens"])
def test_sizes_of_nothing_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        TokeniserConfig(**{field: 0})


def test_subwords_of_similar_words_overlap() -> None:
    config = SubwordConfig(buckets=100_000)
    wanted = {*config.hashed("eigenvalue")} & {*config.hashed("eigenvalues")}
    assert len(wanted) > len({*config.hashed("eigenvalue")} & {*config.hashed("histogram")})
    assert config.hashed("ab") == config.hashed("ab")
    # <ab>: two of three letters, one of four.
    assert len(config.hashed("ab")) == 3
    assert len(config.hashed("x" * 50)) == config.per_word
    assert min(config.hashed("eigenvalue")) >= 1


def test_the_subword_table_grows_and_keeps_its_rows() -> None:
    table = SubwordTable(SubwordConfig(buckets=50, per_word=4))
    first = table.rows(["cat", "dog", "cat"])
    assert first.tolist() == [0, 1, 0]
    before = table.array().copy()
    assert table.rows(["bird", "dog"]).tolist() == [2, 1]
    assert table.array().shape == (3, 4)
    assert (table.array()[:2] == before).all()
    assert table.array().max() <= 50


@pytest.mark.parametrize(
    "options",
    [{"buckets": -1}, {"per_word": 0}, {"shortest": 0}, {"shortest": 4, "longest": 3}],
)
def test_subword_sizes_that_give_nothing_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="expected buckets"):
        SubwordConfig(**options)
