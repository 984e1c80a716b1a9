"""Documents cut into pieces of a limited length, and pieces packed into rows of that length."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from train.common.lm.tokenise import BOUNDARY


class Piece(NamedTuple):
    """Some predictions of one document: tokens `start` to `stop` of its stream are predicted."""

    start: int
    """Place of the first token that is read; the first that is predicted follows it."""
    stop: int
    """Place of the last token that is predicted, plus one; `stop - start - 1` predictions."""

    @property
    def size(self) -> int:
        """Predictions."""
        return self.stop - self.start - 1


class Stream(NamedTuple):
    """Documents one after another, a boundary before the first and after each."""

    tokens: np.ndarray
    """int32 `[n]`."""
    boundaries: np.ndarray
    """Places of the boundaries in `tokens`, ascending, one more than there are documents."""


def joined(documents: Sequence[np.ndarray]) -> Stream:
    """Puts documents behind each other; a boundary ends one document and begins the next.

    Args:
        documents: token ids, int32 `[n]` each.
    """
    boundary = np.array([BOUNDARY], np.int32)
    parts = [boundary]
    for ids in documents:
        parts += [ids, boundary]
    sizes = np.array([len(ids) + 1 for ids in documents])
    return Stream(np.concatenate(parts), np.concatenate([[0], np.cumsum(sizes)]))


def pieces(stream: Stream, length: int) -> list[Piece]:
    """Cuts each document into pieces of at most `length` predictions; each prediction is in one.

    What a document's end is read as is its boundary, so that a document of n tokens has n + 1
    predictions. A piece that goes on sees nothing of the piece before but its last token.
    """
    return [
        Piece(start, min(start + length, end) + 1)
        for begin, end in pairwise(stream.boundaries.tolist())
        for start in range(begin, end, length)
    ]


def pack(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Puts pieces into as few rows as best fit finds, largest first.

    Args:
        sizes: of the pieces, each at least 1 and at most `length`.
        length: of a row.

    Returns:
        The pieces of each row, by their place in `sizes`; rows in no particular order.
    """
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(length + 1)]
    # Bit r is set where some row has room for r: the tightest fit is one shift away.
    open_rooms = 0
    for place in np.argsort(-np.asarray(sizes), kind="stable").tolist():
        size = sizes[place]
        fitting = open_rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                open_rooms &= ~(1 << room)
        else:
            room, row = length, len(rows)
            rows.append([])
        rows[row].append(place)
        left = room - size
        if left:
            by_room[left].append(row)
            open_rooms |= 1 << left
    return rows
