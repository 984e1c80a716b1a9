"""`SpanBatches`: windows of texts behind their questions, as batches of similar length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np

from train.common.order import Batches, Order, one_pass
from train.common.spans.data import SpanData, SpanQuestion
from train.common.task import Batch
from train.common.tokenise import PAD_ID, UNKNOWN_ID, TextTokeniser, TokeniserConfig, Tokens

QUESTION, TEXT, SHARED = range(3)
"""What a token is: part of the question or a mark, of the text, of the text and in the question,
too."""
SEGMENTS = 3
_WIDTHS = (32, 48, 64, 96, 128, 192, 256, 320, 384, 512)
"""Batches are padded to one of these widths, for each compiles anew."""


@dataclass(frozen=True)
class SpanTokensConfig(TokeniserConfig):
    """How texts are cut into words and windows.

    Raises:
        ValueError: a size is out of range.
    """

    word_pattern: ClassVar[str] = r"\w+|[^\w\s]"
    """Answers may begin or end at a hyphen or an apostrophe, so these stand alone."""

    max_tokens: int = 256
    """Most tokens of a question, a window of its text and three marks together."""
    max_question: int = 48
    """Longer questions are cut; how many were is reported."""
    stride: int = 96
    """Tokens from the beginning of one window to that of the next."""

    def __post_init__(self) -> None:
        """Rejects sizes that leave nothing, or gaps between windows."""
        super().__post_init__()
        for name in ("max_question", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        room = self.max_tokens - self.max_question - 2
        if self.stride > room:
            raise ValueError(
                f"stride {self.stride} would leave gaps between windows of {room} tokens ("
                f"max_tokens {self.max_tokens} less max_question {self.max_question} and two marks)"
            )


class Words(NamedTuple):
    """A tokenised text."""

    ids: np.ndarray
    """int32 `[tokens]`."""
    spans: np.ndarray
    """Where each token's word begins and ends in the text, int32 `[tokens, 2]`."""


class Window(NamedTuple):
    """A question and a stretch of its text."""

    question: SpanQuestion
    asked: np.ndarray
    """The question's token ids."""
    words: Words
    """Of the whole text."""
    begin: int
    """The first token of the stretch."""
    end: int
    """The token after its last."""
    answer: tuple[int, int]
    """The first and the last token of the answer within the whole text; -1, -1 where the stretch
    does not hold all of it."""

    @property
    def offset(self) -> int:
        """How many tokens stand before the stretch: two marks and the question."""
        return len(self.asked) + 2

    @property
    def length(self) -> int:
        """Tokens in all."""
        return self.offset + self.end - self.begin


class SpanEncoder:
    """Turns questions into windows, and windows into the arrays that the model reads.

    The first token is a mark whose place stands for no answer; another mark ends the question.

    Args:
        tokeniser: of all texts, without a limit.
        config: sizes of windows.
    """

    def __init__(self, tokeniser: TextTokeniser, config: SpanTokensConfig):
        self.tokeniser, self.config = tokeniser, config
        self._begin, self._middle = tokeniser.size, tokeniser.size + 1
        self._words: dict[str, Words] = {}

    @property
    def vocabulary(self) -> int:
        """Number of token ids, both marks included."""
        return self.tokeniser.size + 2

    def windows(self, questions: Sequence[SpanQuestion]) -> list[Window]:
        """All windows of all questions, in their order."""
        new = {t for q in questions for t in (q.context, q.question)} - self._words.keys()
        texts = sorted(new)
        self._words |= dict(
            zip(texts, map(_words, self.tokeniser.encode_batch(texts)), strict=True)
        )
        return [window for question in questions for window in self._of(question)]

    def pad(self, windows: Sequence[Window], *, longest: int = 0) -> Batch:
        """Stacks windows.

        Args:
            windows: from `windows`.
            longest: pads as if one of so many tokens were among them.

        Returns:
            `tokens` int32 `[B, T]`, `length` int32 `[B]`, `segment` int32 `[B, T]`, `start` and
            `end` int32 `[B]`: the answer's first and last token, 0 and 0 where there is none.
        """
        longest = max(longest, *(window.length for window in windows))
        width = min((w for w in _WIDTHS if w >= longest), default=longest)
        tokens = np.full((len(windows), width), PAD_ID, np.int32)
        segment = np.full((len(windows), width), QUESTION, np.int32)
        for row, kinds, window in zip(tokens, segment, windows, strict=True):
            ids = window.words.ids[window.begin : window.end]
            row[: window.length] = [self._begin, *window.asked, self._middle, *ids]
            known = window.asked[window.asked != UNKNOWN_ID]
            kinds[window.offset : window.length] = np.where(np.isin(ids, known), SHARED, TEXT)
        answer = np.array([w.answer for w in windows], np.int32)
        moved = np.array([[w.offset - w.begin] for w in windows], np.int32)
        answer = np.where(answer < 0, 0, answer + moved)
        return {
            "tokens": tokens,
            "length": np.array([window.length for window in windows], np.int32),
            "segment": segment,
            "start": answer[:, 0],
            "end": answer[:, 1],
        }

    def _of(self, question: SpanQuestion) -> Iterator[Window]:
        config, words = self.config, self._words[question.context]
        asked = self._words[question.question].ids[: config.max_question]
        room = config.max_tokens - len(asked) - 2
        first, last = _answer(question, words)
        begin = 0
        while True:
            end = min(begin + room, len(words.ids))
            inside = begin <= first and last < end
            yield Window(question, asked, words, begin, end, (first, last) if inside else (-1, -1))
            if end == len(words.ids):
                return
            begin += config.stride


class SpanBatches:
    """Batches of a `SpanData`; the `TaskData` of answers that are pieces of a text.

    An example is a window, of which a long text has several. Every batch holds what
    `SpanEncoder.pad` gives; evaluation batches also `weight` float32 `[B]` and `window`, the
    `Window` objects `[B]`.
    """

    def __init__(self, data: SpanData, encoder: SpanEncoder):
        self.fingerprint = data.fingerprint
        self._encoder = encoder
        self._windows = {s: encoder.windows(questions) for s, questions in data.splits.items()}
        self._lengths = {
            split: np.array([window.length for window in windows])
            for split, windows in self._windows.items()
        }
        self.train_size = len(self._windows["train"])

    def notes(self) -> tuple[str, ...]:
        """What does not fit into windows, counted, for people."""
        config, train = self._encoder.config, self._windows["train"]
        questions = {window.question.id: window for window in train}
        held = {window.question.id for window in train if window.answer[0] >= 0}
        without = sum(bool(w.question.answers) for n, w in questions.items() if n not in held)
        cut = sum(len(window.asked) == config.max_question for window in questions.values())
        counted = {
            f"{cut} training questions have {config.max_question} tokens or more; what is beyond "
            "is cut off": cut,
            f"{without} training answers do not fit into any window and teach nothing": without,
        }
        return (
            f"{len(questions):,} training questions make {len(train):,} windows",
            *(text for text, count in counted.items() if count),
        )

    def train_batches(
        self, *, batch_size: int, seed: int, start_step: int, rows: np.ndarray | None = None
    ) -> Iterator[Batch]:
        """Yields training batches without end, from the one of step `start_step` on."""
        order = Order(self._lengths["train"], batch_size, seed)
        return Batches(order, partial(self._batch, "train", rows=rows)).from_step(start_step)

    def eval_batches(
        self, split: str, *, batch_size: int, rows: np.ndarray | None = None
    ) -> Iterable[Batch]:
        """Yields one pass over a split, shortest windows first.

        Raises:
            ValueError: there is no such split.
        """
        if split not in self._windows:
            raise ValueError(f"there is no split {split!r}, only {sorted(self._windows)}")
        here = slice(None) if rows is None else rows
        for index, weight in one_pass(self._lengths[split], batch_size):
            batch = self._batch(split, index, rows=rows)
            windows = np.empty(len(index), object)
            windows[:] = [self._windows[split][i] for i in index]
            yield {**batch, "weight": weight[here], "window": windows[here]}

    def _batch(self, split: str, index: np.ndarray, *, rows: np.ndarray | None) -> Batch:
        """The windows `index`, or `rows` of them, as wide as all of them together are."""
        longest = int(self._lengths[split][index].max())
        mine = index if rows is None else index[rows]
        return self._encoder.pad([self._windows[split][i] for i in mine], longest=longest)


def _words(tokens: Tokens) -> Words:
    """Ids and the place of each token's word."""
    spans = np.array([tokens.spans[word] for word in tokens.words], np.int32)
    return Words(np.array(tokens.ids, np.int32), spans)


def _answer(question: SpanQuestion, words: Words) -> tuple[int, int]:
    """The first and the last token that the first answer touches; -1, -1 where there is none."""
    for answer in question.answers:
        if answer.start >= 0:
            touched = (words.spans[:, 1] > answer.start) & (
                words.spans[:, 0] < answer.start + len(answer.text)
            )
            if touched.any():
                places = np.flatnonzero(touched)
                return int(places[0]), int(places[-1])
    return -1, -1
