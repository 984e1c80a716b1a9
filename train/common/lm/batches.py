"""`LmBatches`: documents as rows of tokens in which none sees another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import grain
import numpy as np

from train.common.lm.documents import Documents
from train.common.lm.packing import Piece, Stream, joined, pack, pieces
from train.common.lm.tokenise import BOUNDARY, UNKNOWN, LmTokeniser
from train.common.order import Batches, Order, one_pass
from train.common.task import Batch

Windows = Literal["packed", "random"]


@dataclass(frozen=True)
class _Split:
    """A split ready to be cut into rows."""

    stream: Stream
    pieces: list[Piece]
    rows: list[list[int]]
    """The pieces of each row."""
    bytes: np.ndarray
    """Bytes up to each place of the stream, int64 `[n + 1]`."""
    characters: np.ndarray
    """Characters that begin before each place of the stream, int64 `[n + 1]`."""


class LmBatches:
    """Batches of a `Documents`; the `TaskData` of language modelling.

    Every batch holds int32 `[B, T]`: `tokens` that are read, `targets` that follow them,
    `segments`, which number the documents of a row from 1 and are 0 on padding, and `positions`,
    which count from 0 in each document of a row. `weight` float32 `[B]` is how many targets of a
    row are real. Evaluation batches also hold, of the targets of a row, int32 `[B]`: how many
    `bytes` and `characters` they are, and how many `unknown` characters are among them; and
    `index`, the row's place in its split.

    Args:
        data: the documents.
        tokeniser: trained on the training split.
        length: T.
        windows: `packed` cuts each document into pieces of at most T and packs these into rows;
            `random` begins each training row anywhere in the documents put behind each other, as
            often as there are places, which gives long documents no fixed cuts. Evaluation is
            always packed: every token of every document is predicted once.
    """

    def __init__(
        self, data: Documents, tokeniser: LmTokeniser, length: int, windows: Windows = "packed"
    ) -> None:
        self.fingerprint = data.fingerprint
        self._length, self._windows = length, windows
        self._splits = {
            split: _prepare(documents, tokeniser, length)
            for split, documents in data.splits.items()
        }
        train = self._splits["train"]
        self.train_size = (
            len(train.rows) if windows == "packed" else -(-len(train.stream.tokens) // length)
        )
        if windows == "random" and len(train.stream.tokens) <= length:
            raise ValueError(
                f"windows random: expected more training tokens than length {length}, got "
                f"{len(train.stream.tokens)}; take a smaller length"
            )

    def tokens(self, split: str) -> int:
        """How many tokens of a split are predicted, the ends of documents included."""
        return sum(piece.size for piece in self._splits[split].pieces)

    def notes(self) -> tuple[str, ...]:
        """A line for people on each split, with what is unknown in it or cut."""
        lines = []
        for name, split in self._splits.items():
            documents = len(split.stream.boundaries) - 1
            unknown = int(np.sum(split.stream.tokens == UNKNOWN))
            lines.append(
                f"{name}: {self.tokens(name):,} tokens in {len(split.rows):,} rows of "
                f"{self._length}, {self.tokens(name) / (len(split.rows) * self._length):.1%} full"
                f"; {len(split.pieces) - documents:,} cuts inside documents"
                + (f"; {unknown:,} unknown characters" if unknown else "")
            )
        return tuple(lines)

    def train_batches(
        self, *, batch_size: int, seed: int, start_step: int, rows: np.ndarray | None = None
    ) -> Iterator[Batch]:
        """Yields training batches without end, from the one of step `start_step` on."""
        train = self._splits["train"]
        if self._windows == "packed":
            make = partial(self._packed, train, here=rows)
            order = Order(np.zeros(len(train.rows)), batch_size, seed)
            return Batches(order, make).from_step(start_step)
        batches = grain.MapDataset.range(2**40).map(
            lambda step: self._random(train, batch_size, seed, int(step), rows)
        )
        iterator = iter(batches.to_iter_dataset())
        grain.experimental.set_next_index(iterator, start_step)
        return iterator

    def eval_batches(
        self, split: str, *, batch_size: int, rows: np.ndarray | None = None
    ) -> Iterable[Batch]:
        """Yields one pass over a split.

        Raises:
            ValueError: there is no such split.
        """
        if split not in self._splits:
            raise ValueError(f"there is no split {split!r}, only {sorted(self._splits)}")
        part = self._splits[split]
        for index, real in one_pass(np.zeros(len(part.rows)), batch_size):
            batch = self._packed(part, index, here=rows)
            here = slice(None) if rows is None else rows
            counts = self._counts(part, index[here])
            weight = batch["weight"] * real[here]
            yield {**batch, **counts, "weight": weight, "index": index[here]}

    def _packed(self, split: _Split, index: np.ndarray, *, here: np.ndarray | None) -> Batch:
        """The rows `index`, or `here` of them."""
        chosen = index if here is None else index[here]
        rows = [[split.pieces[place] for place in split.rows[row]] for row in chosen]
        return packed(split.stream, rows, self._length)

    def _random(
        self, split: _Split, batch_size: int, seed: int, step: int, here: np.ndarray | None
    ) -> Batch:
        """Rows that begin anywhere; a row that begins within a document counts from there."""
        tokens, boundaries = split.stream
        rng = np.random.default_rng([seed, 2, step])
        starts = rng.integers(0, len(tokens) - self._length, batch_size)
        places = (starts if here is None else starts[here])[:, None] + np.arange(self._length)
        # A boundary is read as the beginning of the document after it.
        document = np.searchsorted(boundaries, places, side="right")
        begin = np.maximum(boundaries[document - 1], places[:, :1])
        return {
            "tokens": tokens[places],
            "targets": tokens[places + 1],
            "segments": (document - document[:, :1] + 1).astype(np.int32),
            "positions": (places - begin).astype(np.int32),
            "weight": np.full(len(places), self._length, np.float32),
        }

    def _counts(self, split: _Split, index: np.ndarray) -> Batch:
        """What the targets of each row amount to."""
        counts = np.zeros((3, len(index)), np.int32)
        for b, row in enumerate(index):
            for piece in (split.pieces[place] for place in split.rows[row]):
                first, last = piece.start + 1, piece.stop
                counts[0, b] += split.bytes[last] - split.bytes[first]
                counts[1, b] += split.characters[last] - split.characters[first]
                counts[2, b] += np.sum(split.stream.tokens[first:last] == UNKNOWN)
        return dict(zip(("bytes", "characters", "unknown"), counts, strict=True))


def packed(stream: Stream, rows: Sequence[Sequence[Piece]], length: int) -> Batch:
    """Rows of pieces as arrays.

    Args:
        stream: what the pieces are of.
        rows: the pieces of each row, not more than fit.
        length: of a row.

    Returns:
        `tokens`, `targets`, `segments`, `positions` and `weight`, as in `LmBatches`.
    """
    shape = (len(rows), length)
    batch: Batch = {
        "tokens": np.full(shape, BOUNDARY, np.int32),
        "targets": np.full(shape, BOUNDARY, np.int32),
        "segments": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
    }
    for b, row in enumerate(rows):
        at = 0
        for number, piece in enumerate(row, 1):
            inside = slice(at, at + piece.size)
            read = stream.tokens[piece.start : piece.stop]
            batch["tokens"][b, inside], batch["targets"][b, inside] = read[:-1], read[1:]
            batch["segments"][b, inside] = number
            batch["positions"][b, inside] = np.arange(piece.size)
            at += piece.size
    batch["weight"] = np.sum(batch["segments"] > 0, axis=1).astype(np.float32)
    return batch


def _prepare(documents: tuple[str, ...], tokeniser: LmTokeniser, length: int) -> _Split:
    encoded = tokeniser.encode_batch(documents)
    stream = joined([document.ids for document in encoded])
    cut = pieces(stream, length)

    def up_to(counts: list[np.ndarray]) -> np.ndarray:
        """Sums up to each place of the stream, where boundaries count nothing."""
        return np.concatenate([[0], np.cumsum(joined(counts).tokens, dtype=np.int64)])

    return _Split(
        stream,
        cut,
        pack([piece.size for piece in cut], length),
        up_to([document.bytes for document in encoded]),
        up_to([document.characters for document in encoded]),
    )
