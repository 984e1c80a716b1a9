"""`PairBatches`: encoded pairs of texts as batches of similar length, in a reproducible order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np

from train.common.data.held_out import SPLITS
from train.common.order import Batches, Order, one_pass
from train.common.pairs.text_pairs import TextPairs
from train.common.pairs.tokenise import PAD_ID
from train.common.pairs.tokens import Encoded, PairTokens
from train.common.task import Batch

CHUNK = 64
"""Batches that are drawn together and then sorted by the lengths of both sides."""
WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Each side is padded to one of these widths, or to its limit, for every shape compiles anew."""
COARSE = (16, 32, 64, 128, 256, 512, 1024, 2048)
"""Widths of what is read only now and then, where compiling costs more than padding; those of
training batches, too, where a run is short."""


class PairBatches:
    """Batches of a `TextPairs`; the `TaskData` of tasks that write a text for a text.

    Every batch holds `source` int32 `[B, S]` (`END_ID` last), `source_length` int32 `[B]`,
    `target_in` int32 `[B, T]` (`BEGIN_ID` first), `target_out` int32 `[B, T]` (`END_ID` last) and
    `target_length` int32 `[B]`; evaluation batches also `weight` float32 `[B]`, `index` int32
    `[B]`, the place of each example in its split, and the pairs themselves as strings,
    `source_text` and `target_text` `[B]`.

    Args:
        data: the pairs.
        tokens: tokenisers and limits.

    Raises:
        ValueError: all training pairs are too long.
    """

    def __init__(self, data: TextPairs, tokens: PairTokens):
        self.fingerprint = data.fingerprint
        self._limits = tokens.config.max_source, tokens.config.max_target
        self._widths = WIDTHS if tokens.config.padding == "fine" else COARSE
        self._encoded = {
            split: tokens.encode(data.sources(split), data.targets(split)) for split in SPLITS
        }
        self._pairs = dict(data.splits)
        self.too_long = {s: sum(e.cut for e in encoded) for s, encoded in self._encoded.items()}
        self._skips = tokens.config.too_long == "skip"
        if self._skips:
            fits = [i for i, e in enumerate(self._encoded["train"]) if not e.cut]
            self._encoded["train"] = [self._encoded["train"][i] for i in fits]
            self._pairs["train"] = tuple(data.splits["train"][i] for i in fits)
            if not self._encoded["train"]:
                raise ValueError(
                    f"all {self.too_long['train']} training pairs are longer than max_source="
                    f"{tokens.config.max_source} or max_target={tokens.config.max_target} tokens; "
                    "raise these limits, or cut with too_long=cut"
                )
        self.train_size = len(self._encoded["train"])
        self.mean_target = float(np.mean([len(e.target) - 1 for e in self._encoded["train"]]))
        """Tokens of a training target on average, the end included."""
        self._keys = {s: self._sort_keys(encoded) for s, encoded in self._encoded.items()}

    def notes(self) -> tuple[str, ...]:
        """What did not fit into the limits, counted, for people."""
        source, target = self._limits
        return tuple(
            f"{'left out' if split == 'train' and self._skips else 'cut'} {count} {split} pairs of "
            f"more than {source} source or {target} target tokens"
            for split, count in self.too_long.items()
            if count
        )

    def train_batches(
        self, *, batch_size: int, seed: int, start_step: int, rows: np.ndarray | None = None
    ) -> Iterator[Batch]:
        """Yields training batches without end, from the one of step `start_step` on."""
        order = Order(self._keys["train"], batch_size, seed, chunk=CHUNK)
        return Batches(order, partial(self._batch, "train", rows=rows)).from_step(start_step)

    def eval_batches(
        self, split: str, *, batch_size: int, rows: np.ndarray | None = None
    ) -> Iterable[Batch]:
        """Yields one pass over a split, shortest sources first.

        Raises:
            ValueError: there is no such split.
        """
        if split not in self._encoded:
            raise ValueError(f"there is no split {split!r}, only {sorted(self._encoded)}")
        here = slice(None) if rows is None else rows
        longest = max(len(e.target) - 1 for e in self._encoded[split])
        for index, weight in one_pass(self._keys[split], batch_size):
            batch = self._batch(split, index, rows=rows, widths=COARSE, target=longest)
            pairs = [self._pairs[split][i] for i in index[here]]
            yield {
                **batch,
                "weight": weight[here],
                "index": index[here],
                "source_text": np.array([pair.source for pair in pairs], object),
                "target_text": np.array([pair.target for pair in pairs], object),
            }

    def _batch(
        self,
        split: str,
        index: np.ndarray,
        *,
        rows: np.ndarray | None,
        widths: Sequence[int] = (),
        target: int = 0,
    ) -> Batch:
        """The examples `index`, or `rows` of them, as wide as all of them together are.

        Targets are padded as if one of `target` tokens were among them, to the widths of training
        where no others are given.
        """
        widths = widths or self._widths
        everything = [self._encoded[split][i] for i in index]
        mine = everything if rows is None else [everything[i] for i in rows]
        source_limit, target_limit = self._limits
        longest = max(target, *(len(e.target) - 1 for e in everything))
        source_width = width(max(len(e.source) for e in everything), source_limit, widths)
        target_width = width(longest, target_limit, widths)
        return {
            "source": padded([e.source for e in mine], source_width),
            "source_length": np.array([len(e.source) for e in mine], np.int32),
            "target_in": padded([e.target[:-1] for e in mine], target_width),
            "target_out": padded([e.target[1:] for e in mine], target_width),
            "target_length": np.array([len(e.target) - 1 for e in mine], np.int32),
        }

    def _sort_keys(self, encoded: Sequence[Encoded]) -> np.ndarray:
        """Sorts by the padded width of the source, then by the length of the target."""
        source_limit, target_limit = self._limits
        return np.array(
            [
                width(len(e.source), source_limit, self._widths) * (target_limit + 1)
                + len(e.target)
                for e in encoded
            ]
        )


def width(longest: int, limit: int, widths: Sequence[int] = WIDTHS) -> int:
    """The padded width for sequences of up to `longest` tokens where none has more than `limit`."""
    return min((w for w in widths if longest <= w <= limit), default=limit)


def padded(rows: Sequence[np.ndarray], to: int) -> np.ndarray:
    """Rows of ids below each other, int32 `[rows, to]`, filled up with `PAD_ID`."""
    out = np.full((len(rows), to), PAD_ID, np.int32)
    for place, row in zip(out, rows, strict=True):
        place[: len(row)] = row
    return out
