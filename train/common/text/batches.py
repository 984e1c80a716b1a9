"""`TextBatches`: encoded, labelled texts as batches of similar length, in a reproducible order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np

from train.common.order import Batches, Order, one_pass
from train.common.task import Batch
from train.common.text.labelled_text import LabelledText
from train.common.text.subwords import SubwordConfig, SubwordTable
from train.common.tokenise import PAD_ID, TextTokeniser

_WIDTHS = (24, 48, 96, 192, 384)
"""Batches are padded to one of these widths (or the longest text), for each compiles anew."""


class TextEncoder:
    """Turns texts into the arrays that the model reads."""

    def __init__(self, tokeniser: TextTokeniser, subwords: SubwordConfig):
        self.tokeniser = tokeniser
        self._table = SubwordTable(subwords) if subwords.buckets else None

    def encode(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns, for each text, its token ids and its rows in the sub-word table, int32 `[T]`."""
        tokens = self.tokeniser.encode_batch(texts)
        return [
            (
                np.array(t.ids, np.int32),
                self._table.rows(t.pieces) if self._table else np.zeros(len(t.ids), np.int32),
            )
            for t in tokens
        ]

    def pad(self, encoded: Sequence[tuple[np.ndarray, np.ndarray]], *, longest: int = 0) -> Batch:
        """Stacks encoded texts.

        Args:
            encoded: from `encode`.
            longest: pads as if a text of so many tokens were among them.

        Returns:
            `ids` int32 `[B, T]`, `length` int32 `[B]` and, where sub-words are on, `subwords`
            int32 `[B, T, per_word]`.
        """
        longest = max(longest, *(len(ids) for ids, _ in encoded))
        limit = self.tokeniser.max_tokens
        width = min([w for w in _WIDTHS if w >= longest] or [limit])
        width = max(min(width, limit), longest)
        ids = np.full((len(encoded), width), PAD_ID, np.int32)
        rows = np.zeros((len(encoded), width), np.int32)
        length = np.array([len(i) for i, _ in encoded], np.int32)
        for b, (token_ids, token_rows) in enumerate(encoded):
            ids[b, : len(token_ids)] = token_ids
            rows[b, : len(token_rows)] = token_rows
        batch = {"ids": ids, "length": length}
        if self._table:
            inside = np.arange(width)[None, :, None] < length[:, None, None]
            batch["subwords"] = np.where(inside, self._table.array()[rows], 0)
        return batch


class TextBatches:
    """Batches of a `LabelledText`; the `TaskData` of text classification.

    Every batch holds what `TextEncoder.pad` gives and `label` int32 `[B]`; evaluation batches also
    `weight` float32 `[B]` and `index` int32 `[B]`, the place of each example in its split.
    """

    def __init__(self, data: LabelledText, encoder: TextEncoder):
        self.fingerprint = data.fingerprint
        self.train_size = len(data.splits["train"])
        self._encoder = encoder
        self._encoded = {
            split: encoder.encode([text for text, _ in examples])
            for split, examples in data.splits.items()
        }
        self._lengths = {
            split: np.array([len(ids) for ids, _ in encoded])
            for split, encoded in self._encoded.items()
        }
        self._labels = {
            split: np.array([label for _, label in examples], np.int32)
            for split, examples in data.splits.items()
        }

    def truncated(self, split: str) -> int:
        """How many texts of a split reach the tokeniser's limit, and so may have been cut."""
        limit = self._encoder.tokeniser.max_tokens
        return sum(len(ids) >= limit for ids, _ in self._encoded[split])

    def train_batches(
        self, *, batch_size: int, seed: int, start_step: int, rows: np.ndarray | None = None
    ) -> Iterator[Batch]:
        """Yields training batches without end, from the one of step `start_step` on."""
        order = Order(self._lengths["train"], batch_size, seed)
        return Batches(order, partial(self._batch, "train", rows=rows)).from_step(start_step)

    def eval_batches(
        self, split: str, *, batch_size: int, rows: np.ndarray | None = None
    ) -> Iterable[Batch]:
        """Yields one pass over a split, shortest texts first.

        Raises:
            ValueError: there is no such split.
        """
        if split not in self._encoded:
            raise ValueError(f"there is no split {split!r}, only {sorted(self._encoded)}")
        here = slice(None) if rows is None else rows
        for index, weight in one_pass(self._lengths[split], batch_size):
            batch = self._batch(split, index, rows=rows)
            yield {**batch, "weight": weight[here], "index": index[here]}

    def _batch(self, split: str, index: np.ndarray, *, rows: np.ndarray | None) -> Batch:
        """The examples `index`, or `rows` of them, as wide as all of them together are."""
        longest = int(self._lengths[split][index].max())
        mine = index if rows is None else index[rows]
        batch = self._encoder.pad([self._encoded[split][i] for i in mine], longest=longest)
        return {**batch, "label": self._labels[split][mine]}
