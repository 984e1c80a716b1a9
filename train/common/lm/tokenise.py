"""Tokenisers of whole documents: every document comes back from its tokens, byte by byte."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from train.common.files import write_text

BOUNDARY, UNKNOWN = 0, 1
"""Ids of what stands before and after each document, and of a character that training never saw."""
CODE_POINTS = 0x110000
"""As many characters there can be: what an unknown one is chosen from."""
Kind = Literal["character", "byte", "bpe"]


class Encoded(NamedTuple):
    """A document as numbers; the arrays run in parallel."""

    ids: np.ndarray
    """int32 `[n]`, without boundaries."""
    bytes: np.ndarray
    """How many bytes of UTF-8 each token stands for, int32 `[n]`."""
    characters: np.ndarray
    """How many characters begin in each token, int32 `[n]`."""


@dataclass(frozen=True)
class LmTokeniserConfig:
    """What a token is.

    Raises:
        ValueError: the vocabulary is smaller than the 256 bytes it begins with.
    """

    kind: Kind = "bpe"
    """character: each character that training holds; byte: bytes of UTF-8; bpe: byte-pair pieces
    of words, spaces included."""
    max_vocabulary: int = 2_000
    """At most this many entries (bpe)."""
    min_count: int = 2
    """Pairs seen fewer times in training are not merged (bpe)."""

    def __post_init__(self) -> None:
        """Rejects sizes that no vocabulary can have."""
        if self.max_vocabulary < 258:
            raise ValueError(
                f"max_vocabulary must be at least 258 (256 bytes and 2 of our own), got "
                f"{self.max_vocabulary}"
            )
        if self.min_count < 1:
            raise ValueError(f"min_count must be at least 1, got {self.min_count}")

    def train(self, documents: Sequence[str]) -> LmTokeniser:
        """Trains a tokeniser; give it the training split and nothing else."""
        if self.kind == "character":
            return LmTokeniser("character", sorted(set().union(*documents)))
        if self.kind == "byte":
            return LmTokeniser("byte")
        tokeniser = Tokenizer(models.BPE())
        tokeniser.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokeniser.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.max_vocabulary,
            min_frequency=self.min_count,
            special_tokens=["[BOUNDARY]", "[UNKNOWN]"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokeniser.train_from_iterator(documents, trainer)
        return LmTokeniser("bpe", bpe=tokeniser)


class LmTokeniser:
    """A trained tokeniser. Ids 0 and 1 are the boundary of documents and the unknown character.

    Args:
        kind: what a token is.
        characters: the known ones, for `character`; ids go from 2 in this order.
        bpe: the trained merges, for `bpe`.
    """

    def __init__(
        self, kind: Kind, characters: Sequence[str] = (), *, bpe: Tokenizer | None = None
    ) -> None:
        self.kind = kind
        self._characters = tuple(characters)
        self._bpe = bpe
        if bpe is not None:
            # Otherwise "[BOUNDARY]" in a text would be read as one.
            bpe.encode_special_tokens = True

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """The bytes that each id stands for; none for the boundary."""
        unknown = "\N{REPLACEMENT CHARACTER}".encode()
        if self.kind == "character":
            return (b"", unknown, *(c.encode() for c in self._characters))
        if self._bpe is None:
            return (b"", unknown, *(bytes([i]) for i in range(256)))
        byte = _bytes_by_letter()
        names = [str(self._bpe.id_to_token(i)) for i in range(2, self.size)]
        return (b"", unknown, *(bytes(byte[letter] for letter in name) for name in names))

    @property
    def size(self) -> int:
        """Number of vocabulary entries, boundary and unknown included."""
        if self._bpe is not None:
            return self._bpe.get_vocab_size()
        return 2 + (len(self._characters) if self.kind == "character" else 256)

    @property
    def never(self) -> np.ndarray:
        """Ids that a sample must not hold: bool `[V]`, true for the unknown character."""
        return np.arange(self.size) == UNKNOWN

    @property
    def fingerprint(self) -> str:
        """sha256 of what `save` would write."""
        return sha256(self._text().encode()).hexdigest()

    def encode(self, document: str) -> Encoded:
        """A document as tokens, without boundaries."""
        return self.encode_batch([document])[0]

    def encode_batch(self, documents: Sequence[str]) -> list[Encoded]:
        """Many documents as tokens."""
        if self._bpe is not None:
            found = self._bpe.encode_batch_fast(list(documents))
            return [self._measured(np.array(encoding.ids, np.int32)) for encoding in found]
        if self.kind == "byte":
            return [
                self._measured(np.frombuffer(document.encode(), np.uint8).astype(np.int32) + 2)
                for document in documents
            ]
        return [self._encode_characters(document) for document in documents]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; bytes that are no text become the replacement character."""
        return b"".join(self.pieces[int(i)] for i in ids).decode("utf-8", "replace")

    def save(self, path: Path) -> None:
        """Writes the tokeniser as JSON, whole or not at all."""
        write_text(path, self._text())

    @classmethod
    def load(cls, path: Path) -> LmTokeniser:
        """Reads what `save` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        bpe = content["bpe"]
        return cls(
            content["kind"],
            [chr(c) for c in content["characters"]],
            bpe=None if bpe is None else Tokenizer.from_str(json.dumps(bpe)),
        )

    def _text(self) -> str:
        return json.dumps(
            {
                "kind": self.kind,
                "characters": [ord(c) for c in self._characters],
                "bpe": None if self._bpe is None else json.loads(self._bpe.to_str()),
            }
        )

    @cached_property
    def _sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Bytes and beginnings of characters in each token, int32 `[V]`."""
        starts = [sum(b & 0xC0 != 0x80 for b in piece) for piece in self.pieces]
        return np.array([len(p) for p in self.pieces], np.int32), np.array(starts, np.int32)

    def _measured(self, ids: np.ndarray) -> Encoded:
        sizes, starts = self._sizes
        return Encoded(ids, sizes[ids], starts[ids])

    def _encode_characters(self, document: str) -> Encoded:
        points = np.frombuffer(document.encode("utf-32-le"), np.uint32)
        known = np.array([ord(c) for c in self._characters], np.uint32)  # sorted, as `train` does
        place = np.minimum(np.searchsorted(known, points), len(known) - 1)
        ids = np.where(known[place] == points, place + 2, UNKNOWN).astype(np.int32)
        sizes = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
        return Encoded(ids, sizes.astype(np.int32), np.ones(len(ids), np.int32))


def _bytes_by_letter() -> dict[str, int]:
    """Which byte each letter of byte-level pieces stands for, as the library itself writes them."""
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # Together these characters hold every byte that UTF-8 has.
    points = [*range(0x800), *range(0x800, 0x10000, 0x400), *range(0x10000, 0x110000, 0x10000)]
    found: dict[str, int] = {}
    for character in (chr(p) for p in points if not 0xD800 <= p < 0xE000):
        letters = cut.pre_tokenize_str(character)[0][0]
        found |= dict(zip(letters, character.encode(), strict=True))
    # Bytes that no text holds stand in the alphabet all the same.
    missing = sorted(set(range(256)) - set(found.values()))
    return found | dict(zip(sorted(set(cut.alphabet()) - set(found)), missing, strict=True))
