"""Tokenisers that give texts back, and both sides of pairs as numbers within their limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from train.common.pairs.text_pairs import Pair, TextPairs
from train.common.pairs.tokenise import (
    BEGIN_ID,
    END_ID,
    PAD_ID,
    UNKNOWN_ID,
    UNKNOWN_TEXT,
    SeqTokeniser,
    SeqTokeniserConfig,
)
from train.common.pairs.tokens import PairTokens, PairTokensConfig
from train.common.rundir import CONFIG

TEXTS = ["Ein Mann, der läuft.", "A man isn't [ here ] now", "日本 🙂", "[END]"]
CONFIGS = {kind: SeqTokeniserConfig(kind=kind) for kind in ("bpe", "word", "char")}


@pytest.mark.parametrize("kind", CONFIGS)
def test_texts_come_back(kind: str, tmp_path: Path) -> None:
    tokeniser = CONFIGS[kind].train(TEXTS)
    tokeniser.save(tmp_path / "t.json")
    loaded = SeqTokeniser.load(tmp_path / "t.json")
    assert loaded.fingerprint == tokeniser.fingerprint
    for text in TEXTS:
        ids = tokeniser.encode(text)
        assert not {PAD_ID, UNKNOWN_ID, BEGIN_ID, END_ID} & set(ids)
        assert tokeniser.decode([BEGIN_ID, *ids, END_ID, *ids, PAD_ID]) == text
        assert loaded.encode(text) == ids and loaded.decode(ids) == text
        assert max(ids) < tokeniser.size
    assert tokeniser.encode_batch(TEXTS) == [tokeniser.encode(text) for text in TEXTS]


def test_bpe_writes_what_training_never_saw() -> None:
    tokeniser = CONFIGS["bpe"].train(TEXTS)
    text = "ganz\tanders: ßüñ [ end ] [ pad ] \n"
    assert tokeniser.decode(tokeniser.encode(text)) == text
    assert UNKNOWN_ID not in tokeniser.encode(text)


@pytest.mark.parametrize(("kind", "written"), [("word", "� �"), ("char", "�� �")])
def test_others_write_that_something_is_unknown(kind: str, written: str) -> None:
    tokeniser = CONFIGS[kind].train(["a b"])
    text = "[END] [end]" if kind == "word" else "ßü ñ"
    assert tokeniser.decode(tokeniser.encode(text)) == written
    assert tokeniser.pieces([UNKNOWN_ID]) == [UNKNOWN_TEXT]


def test_pieces_join_to_the_text() -> None:
    tokeniser = CONFIGS["bpe"].train(TEXTS * 3)
    assert "".join(tokeniser.pieces(tokeniser.encode(TEXTS[0]))) == " " + TEXTS[0]


def test_lowercase_folds_what_is_written_too() -> None:
    tokeniser = SeqTokeniserConfig(lowercase=True).train(TEXTS)
    assert tokeniser.decode(tokeniser.encode("Ein MANN")) == "ein mann"


def test_a_vocabulary_is_no_larger_than_asked() -> None:
    texts = [f"word{i} other{i}" for i in range(500)]
    assert SeqTokeniserConfig(max_vocabulary=300).train(texts).size == 300
    assert SeqTokeniserConfig(kind="word", max_vocabulary=50).train(texts).size == 50
    for field in ("max_vocabulary", "min_count"):
        with pytest.raises(ValueError, match=field):
            SeqTokeniserConfig(**{field: 0})


def pairs(*rows: tuple[str, str]) -> TextPairs:
    some = tuple(Pair(*row) for row in rows)
    return TextPairs({"train": some, "validation": some, "test": some}, "made up")


def test_pairs_become_numbers_within_their_limits(tmp_path: Path) -> None:
    config = PairTokensConfig(SeqTokeniserConfig(kind="word"), max_source=3, max_target=4)
    data = pairs(("a b", "x y z"), ("a b c", "x"), ("a", "x y z z"))
    tokens = config.train(data)
    fits, long_source, long_target = tokens.encode(data.sources("train"), data.targets("train"))
    word = tokens.source.encode("a b c x y z")
    a, b, _, x, y, z = word
    np.testing.assert_array_equal(fits.source, [a, b, END_ID])
    np.testing.assert_array_equal(fits.target, [BEGIN_ID, x, y, z, END_ID])
    np.testing.assert_array_equal(long_source.source, [a, b, END_ID])
    np.testing.assert_array_equal(long_target.target, [BEGIN_ID, x, y, z, END_ID])
    assert [one.cut for one in (fits, long_source, long_target)] == [False, True, True]
    tokens.save(tmp_path)
    loaded = PairTokens.load(tmp_path, config)
    assert loaded.joint and loaded.fingerprint == tokens.fingerprint


def test_each_side_can_have_a_vocabulary_of_its_own(tmp_path: Path) -> None:
    config = PairTokensConfig(SeqTokeniserConfig(kind="word"), joint=False)
    tokens = config.train(pairs(("a b c d", "x"), ("a", "y")))
    assert (tokens.source.size, tokens.target.size) == (8, 6)
    tokens.save(tmp_path)
    loaded = PairTokens.load(tmp_path, config)
    assert not loaded.joint and (loaded.source.size, loaded.target.size) == (8, 6)


def test_broken_tokenisers_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tokenisers can't be read"):
        PairTokens.load(tmp_path, PairTokensConfig())
    for field in ("max_source", "max_target"):
        with pytest.raises(ValueError, match=field):
            PairTokensConfig(**{field: 1})


def test_only_a_run_that_was_claimed_keeps_its_tokenisers(tmp_path: Path) -> None:
    config = PairTokensConfig(SeqTokeniserConfig(kind="word"))
    first, second = config.train(pairs(("a", "b"))), config.train(pairs(("c d", "e")))
    first.save(tmp_path)
    second.save(tmp_path)  # the first was given up before its run began
    assert PairTokens.load(tmp_path, config).fingerprint == second.fingerprint
    (tmp_path / CONFIG).write_text("{}")
    first.save(tmp_path)
    assert PairTokens.load(tmp_path, config).fingerprint == second.fingerprint
