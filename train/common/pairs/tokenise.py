"""Tokenisers of sequences that a model reads and writes: to numbers, and back to text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

# No token of a text holds a space, so none is taken for one of these.
_SPECIAL = ("[ pad ]", "[ unknown ]", "[ begin ]", "[ end ]")
PAD_ID, UNKNOWN_ID, BEGIN_ID, END_ID = 0, 1, 2, 3
UNKNOWN_TEXT = "\N{REPLACEMENT CHARACTER}"
"""What an unknown token, or bytes that are no text, read as."""


@dataclass(frozen=True)
class SeqTokeniserConfig:
    """How texts are cut into the tokens that a model reads and writes.

    Raises:
        ValueError: a size is not positive.
    """

    kind: Literal["bpe", "word", "char"] = "bpe"
    """bpe: byte-pair pieces, none unknown; word: what stands between spaces, rare ones unknown;
    char: characters."""
    lowercase: bool = False
    """Fold case, of what is read and of what is written."""
    max_vocabulary: int = 8_000
    """At most this many entries, the most frequent ones."""
    min_count: int = 1
    """What was seen fewer times in training is unknown (bpe: pairs are not merged)."""

    def __post_init__(self) -> None:
        """Rejects sizes that leave nothing."""
        for name in ("max_vocabulary", "min_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def train(self, texts: Iterable[str]) -> SeqTokeniser:
        """Trains a tokeniser; give it the training split and nothing else."""
        tokeniser = Tokenizer(
            models.BPE() if self.kind == "bpe" else models.WordLevel(unk_token=_SPECIAL[UNKNOWN_ID])
        )
        lower = [normalizers.Lowercase()] if self.lowercase else []
        tokeniser.normalizer = normalizers.Sequence([normalizers.NFC(), *lower])
        options: dict[str, Any] = {
            "vocab_size": self.max_vocabulary,
            "min_frequency": self.min_count,
            "special_tokens": list(_SPECIAL),
            "show_progress": False,
        }
        trainer: Any
        if self.kind == "bpe":
            tokeniser.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
            tokeniser.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(**options, initial_alphabet=alphabet)
        else:
            tokeniser.pre_tokenizer = (
                pre_tokenizers.WhitespaceSplit()
                if self.kind == "word"
                else pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
            )
            trainer = trainers.WordLevelTrainer(**options)
        tokeniser.train_from_iterator(texts, trainer)
        return SeqTokeniser(tokeniser)


class SeqTokeniser:
    """A trained tokeniser whose tokens can be joined to text again.

    The ids 0 to 3 are padding, unknown, the begin and the end of a sequence; no text becomes the
    last two, or padding.
    """

    def __init__(self, tokeniser: Tokenizer):
        # Otherwise their names in a text would be read as these tokens.
        tokeniser.encode_special_tokens = True
        self._tokeniser = tokeniser
        self._bytes = isinstance(tokeniser.model, models.BPE)
        self._words = isinstance(tokeniser.pre_tokenizer, pre_tokenizers.WhitespaceSplit)

    @property
    def size(self) -> int:
        """Number of vocabulary entries, the four special ones included."""
        return self._tokeniser.get_vocab_size()

    @property
    def fingerprint(self) -> str:
        """sha256 of what `save` would write."""
        return sha256(self._tokeniser.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without begin and end."""
        return self._tokeniser.encode(text).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenises many texts at once, on several threads."""
        return [encoding.ids for encoding in self._tokeniser.encode_batch(texts)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, up to the first `END_ID`; padding and begin are left out.

        It is the text that was encoded, but for what is unknown and case (if it is folded); word
        keeps no more than one space between words, and bpe may lose the first of leading spaces.
        """
        kept = self._kept(ids)
        if self._bytes:
            return self._tokeniser.decode(kept).removeprefix(" ")
        return (" " if self._words else "").join(self.pieces(kept))

    def decode_batch(self, batch: Iterable[Iterable[int]]) -> list[str]:
        """The texts of many rows of ids."""
        return [self.decode(ids) for ids in batch]

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """What each id stands for, for people: one string per id, spaces kept as in the text."""
        return [self._piece(int(i)) for i in ids]

    def _piece(self, i: int) -> str:
        if i == UNKNOWN_ID:
            return UNKNOWN_TEXT
        if self._bytes and i >= len(_SPECIAL):
            return self._tokeniser.decode([i])
        piece = self._tokeniser.id_to_token(i)
        if piece is None:
            raise ValueError(f"ids: expected tokens from 0 to {self.size - 1}, got {i}")
        return piece

    def _kept(self, ids: Iterable[int]) -> list[int]:
        kept = []
        for i in map(int, ids):
            if i == END_ID:
                break
            if i not in (PAD_ID, BEGIN_ID):
                kept.append(i)
        return kept

    def save(self, path: Path) -> None:
        """Writes the tokeniser in the `tokenizers` library's own JSON format."""
        self._tokeniser.save(str(path))

    @classmethod
    def load(cls, path: Path) -> SeqTokeniser:
        """Reads what `save` wrote."""
        return cls(Tokenizer.from_file(str(path)))
