"""Tokenisers of documents: nothing is lost, and bytes and characters are counted right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.common.lm.tokenise import BOUNDARY, UNKNOWN, Kind, LmTokeniser, LmTokeniserConfig

DOCUMENTS = ["The cat sat on the mat. " * 9, "  Two\n\n\tspaces, 日本語 and 😀, é or é.", "x"]
KINDS: tuple[Kind, ...] = ("character", "byte", "bpe")


def trained(kind: Kind) -> LmTokeniser:
    return LmTokeniserConfig(kind=kind, max_vocabulary=300).train(DOCUMENTS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_document_comes_back_and_is_counted(kind: Kind) -> None:
    tokeniser = trained(kind)
    for document, encoded in zip(DOCUMENTS, tokeniser.encode_batch(DOCUMENTS), strict=True):
        assert tokeniser.decode(encoded.ids) == document
        assert encoded.bytes.sum() == len(document.encode())
        assert encoded.characters.sum() == len(document)
        assert encoded.ids.min() > UNKNOWN and encoded.ids.max() < tokeniser.size
    assert len(tokeniser.pieces) == tokeniser.size


@pytest.mark.parametrize("kind", ["byte", "bpe"])
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_from_bytes(kind: Kind, text: str) -> None:
    tokeniser = trained(kind)
    encoded = tokeniser.encode(text)
    assert tokeniser.decode(encoded.ids) == text
    assert encoded.bytes.sum() == len(text.encode()) and encoded.characters.sum() == len(text)
    assert not np.any(encoded.ids == UNKNOWN)


def test_unseen_characters_are_unknown_and_keep_their_size() -> None:
    encoded = trained("character").encode("caßz😀!")
    assert [bool(i) for i in encoded.ids == UNKNOWN] == [False, False, True, True, False, True]
    assert encoded.bytes.tolist() == [1, 1, 2, 1, 4, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_special_tokens_in_a_text_are_text(kind: Kind) -> None:
    tokeniser = LmTokeniserConfig(kind=kind).train(["[BOUNDARY] [UNKNOWN]"] * 3)
    ids = tokeniser.encode("[BOUNDARY] [UNKNOWN]").ids
    assert not np.any((ids == BOUNDARY) | (ids == UNKNOWN))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_what_is_loaded(kind: Kind, tmp_path: Path) -> None:
    tokeniser = trained(kind)
    tokeniser.save(tmp_path / "t.json")
    loaded = LmTokeniser.load(tmp_path / "t.json")
    assert loaded.fingerprint == tokeniser.fingerprint and loaded.size == tokeniser.size
    np.testing.assert_array_equal(
        loaded.encode(DOCUMENTS[1]).ids, tokeniser.encode(DOCUMENTS[1]).ids
    )


def test_pieces_grow_with_what_is_frequent() -> None:
    tokeniser = trained("bpe")
    assert b" cat" in tokeniser.pieces and tokeniser.size <= 300
    assert len(tokeniser.encode("The cat sat").ids) < 6


def test_no_sample_holds_the_unknown_character() -> None:
    never = trained("character").never
    assert never.sum() == 1 and never[UNKNOWN]


@pytest.mark.parametrize(("name", "value"), [("max_vocabulary", 257), ("min_count", 0)])
def test_sizes_that_no_vocabulary_has_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=name):
        LmTokeniserConfig(**{name: value})
