"""Words of dialogues as numbers: those that training shows, and those that can only be matched."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from train.common.dialogue.dialogues import DialogueData, all_turns
from train.common.files import write_json
from train.common.tokenise import PAD_ID, UNKNOWN_ID

_WHOLE = re.compile(r"<\w+>|\w+(?:['\u2019-]\w+)*|[^\w\s]")
_PARTS = re.compile(r"<\w+>|[^\W_]+(?:['\u2019-][^\W_]+)*|[^\w\s]")
_SPECIAL = 2


@dataclass(frozen=True)
class DialogueWordsConfig:
    """How utterances are cut into words.

    Raises:
        ValueError: a size is not positive.
    """

    names: Literal["parts", "whole"] = "parts"
    """parts: a name such as blue_heron_phone is three words, so that a new one is not unheard-of;
    whole: it is one."""
    min_count: int = 1
    """Words seen fewer times in training have no embedding of their own."""
    max_vocabulary: int = 30_000
    """At most this many words with an embedding of their own, the most frequent ones."""
    max_words: int = 48
    """Longer utterances are cut; how many were is reported."""

    def __post_init__(self) -> None:
        """Rejects sizes that leave nothing."""
        for name in ("min_count", "max_vocabulary", "max_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def collect(self, data: DialogueData) -> DialogueWords:
        """Collects the words of the training split, then those of candidates and knowledge."""
        counts: Counter[str] = Counter()
        for turn in all_turns(data.splits["train"]):
            for text in (turn.user, turn.bot, *turn.rows):
                counts.update(self.split(text))
        common = [word for word, count in counts.items() if count >= self.min_count]
        known = sorted(common, key=lambda word: (-counts[word], word))[: self.max_vocabulary]
        others: set[str] = set()
        for text in (*data.candidates, *data.knowledge):
            others.update(self.split(text))
        return DialogueWords(self, known, sorted(others - set(known)))

    def split(self, text: str) -> list[str]:
        """The words of a text, in lower case."""
        return (_PARTS if self.names == "parts" else _WHOLE).findall(text.lower())


class DialogueWords:
    """Numbers of words.

    The ids from 2 to `known` are words that training shows. Those after them stand in candidates or
    in the knowledge base only: a model can see that two are the same, and nothing else.

    Args:
        config: how utterances are cut.
        known: words with an embedding of their own.
        matched: words without.
    """

    def __init__(self, config: DialogueWordsConfig, known: Sequence[str], matched: Sequence[str]):
        self.config = config
        self._known, self._matched = list(known), list(matched)
        self._ids = {w: i for i, w in enumerate((*known, *matched), _SPECIAL)}

    @property
    def known(self) -> int:
        """The number of ids with an embedding, padding and unknown included."""
        return len(self._known) + _SPECIAL

    @property
    def size(self) -> int:
        """The number of ids."""
        return len(self._ids) + _SPECIAL

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text's words, int32; a text without words gives one unknown."""
        ids = [self._ids.get(word, UNKNOWN_ID) for word in self.config.split(text)]
        return np.array(ids[: self.config.max_words] or [UNKNOWN_ID], np.int32)

    def is_cut(self, text: str) -> bool:
        """Whether `encode` leaves words out."""
        return len(self.config.split(text)) > self.config.max_words

    def save(self, path: Path) -> None:
        """Writes the words as JSON."""
        write_json(
            path,
            {"config": asdict(self.config), "known": self._known, "matched": self._matched},
        )

    @classmethod
    def load(cls, path: Path) -> DialogueWords:
        """Reads what `save` wrote."""
        saved = json.loads(path.read_text(encoding="utf-8"))
        return cls(DialogueWordsConfig(**saved["config"]), saved["known"], saved["matched"])


def padded_bags(rows: Iterable[np.ndarray], width: int = 0) -> np.ndarray:
    """Ids of several texts below each other, int32 `[texts, words]`, at least `width` wide."""
    rows = list(rows)
    width = max(width, *(len(row) for row in rows)) if rows else width
    out = np.full((len(rows), width), PAD_ID, np.int32)
    for place, row in zip(out, rows, strict=True):
        place[: len(row)] = row
    return out
