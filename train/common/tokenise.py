"""Tokenisers trained on the training split, with each token's place in the original text."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from tokenizers import (
    Encoding,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

PAD, UNKNOWN = "[PAD]", "[UNK]"
PAD_ID, UNKNOWN_ID = 0, 1
_WORD = r"'?\w+(?:['\u2019-]\w+)*|[^\w\s]"
"""A word with its inner apostrophes and hyphens, a clitic such as 's, or one other character."""


class Tokens(NamedTuple):
    """A tokenised text; the lists run in parallel."""

    ids: list[int]
    """Vocabulary indices; `UNKNOWN_ID` for what training never saw."""
    pieces: list[str]
    """The normalised string of each token, also where its id is unknown."""
    words: list[int]
    """Which word (counted from 0) each token is part of; tokens are words but under bpe."""
    spans: list[tuple[int, int]]
    """Start and end of each WORD in the original text, in characters."""


@dataclass(frozen=True)
class TokeniserConfig:
    """How text is cut into tokens.

    Raises:
        ValueError: a size is not positive.
    """

    word_pattern: ClassVar[str] = _WORD
    """What counts as a word; the regular expression of tasks that need another."""

    kind: Literal["word", "bpe"] = "word"
    """word: whole words, rare ones unknown; bpe: byte-pair pieces of words, none unknown."""
    lowercase: bool = True
    """Fold case; the words shown to people keep theirs."""
    max_vocabulary: int = 30_000
    """At most this many entries, the most frequent ones."""
    min_count: int = 1
    """Words seen fewer times in training are unknown (bpe: pairs are not merged)."""
    max_tokens: int = 256
    """Longer texts are cut; how many were is reported."""

    def __post_init__(self) -> None:
        """Rejects sizes that leave nothing."""
        for name in ("max_vocabulary", "min_count", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def train(self, texts: Iterable[str]) -> TextTokeniser:
        """Trains a tokeniser; give it the training split and nothing else."""
        word_level = self.kind == "word"
        model = (models.WordLevel if word_level else models.BPE)(unk_token=UNKNOWN)
        tokeniser = Tokenizer(model)
        lower = [normalizers.Lowercase()] if self.lowercase else []
        tokeniser.normalizer = normalizers.Sequence([normalizers.NFC(), *lower])
        words = pre_tokenizers.Split(Regex(self.word_pattern), behavior="removed", invert=True)
        options: dict[str, Any] = {
            "vocab_size": self.max_vocabulary,
            "min_frequency": self.min_count,
            "special_tokens": [PAD, UNKNOWN],
            "show_progress": False,
        }
        if word_level:
            tokeniser.pre_tokenizer = words
            trainer: Any = trainers.WordLevelTrainer(**options)
        else:
            bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            tokeniser.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_of])
            tokeniser.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(**options, initial_alphabet=alphabet)
        tokeniser.train_from_iterator(texts, trainer)
        return TextTokeniser(tokeniser, self.max_tokens)


class TextTokeniser:
    """A trained tokeniser that keeps track of words and characters."""

    def __init__(self, tokeniser: Tokenizer, max_tokens: int):
        self._tokeniser = tokeniser
        self.max_tokens = max_tokens

    @property
    def size(self) -> int:
        """Number of vocabulary entries, padding and unknown included."""
        return self._tokeniser.get_vocab_size()

    @property
    def fingerprint(self) -> str:
        """sha256 of what `save` would write."""
        return sha256(self._tokeniser.to_str().encode()).hexdigest()

    def encode(self, text: str) -> Tokens:
        """Tokenises one text, cut to `max_tokens`; a text without words gives one unknown."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokenises many texts at once, on several threads."""
        return [
            self._tokens(text, encoding)
            for text, encoding in zip(texts, self._tokeniser.encode_batch(texts), strict=True)
        ]

    def _tokens(self, text: str, encoding: Encoding) -> Tokens:
        if not encoding.ids:
            return Tokens([UNKNOWN_ID], [text], [0], [(0, len(text))])
        limit = self.max_tokens
        words: list[Any] = encoding.word_ids[:limit]  # without special tokens each has a word
        spans: list[tuple[int, int]] = []
        for word, (start, end) in zip(words, encoding.offsets, strict=False):
            # A composed letter's offsets cover the first of its characters only.
            while end < len(text) and unicodedata.combining(text[end]):
                end += 1
            if word == len(spans):
                spans.append((start, end))
            else:
                spans[word] = (spans[word][0], max(end, spans[word][1]))
        pieces = [
            # An unknown token still has letters, which sub-word features can use.
            text[start:end].lower() if token == UNKNOWN else token
            for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True)
        ]
        return Tokens(encoding.ids[:limit], pieces[:limit], words, spans)

    def save(self, path: Path) -> None:
        """Writes the tokeniser in the `tokenizers` library's own JSON format."""
        self._tokeniser.save(str(path))

    @classmethod
    def load(cls, path: Path, max_tokens: int) -> TextTokeniser:
        """Reads what `save` wrote."""
        return cls(Tokenizer.from_file(str(path)), max_tokens)
