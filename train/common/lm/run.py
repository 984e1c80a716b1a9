"""The text side of a language model's run directory: scores of texts and samples of new ones."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax.models.decode import Sampling, decode_fn, stream
from train.common.lm.batches import LmBatches, packed
from train.common.lm.documents import Documents
from train.common.lm.models import LmModelConfig
from train.common.lm.packing import joined, pieces
from train.common.lm.task import ARRAYS, surprise, target_nats, text_metrics
from train.common.lm.tokenise import BOUNDARY, LmTokeniser
from train.common.result import Which, load_model
from train.common.rundir import described_task

TOKENISER = "document_tokens.json"
_ROWS = 32


@dataclass(frozen=True)
class Scored:
    """A text and how surprising each of its words was."""

    words: tuple[tuple[str, float], ...]
    """The whole text in order, and the bits that each word took with the space before it."""
    end: float
    """Bits that the end of the text took."""
    bits_per_byte: float
    """Of the whole text, its end included."""


class Language:
    """A trained language model with its tokeniser.

    Args:
        model: in eval mode.
        tokeniser: as in training.
        length: the longest sequence that the model was trained on.
    """

    def __init__(self, model: nnx.Module, tokeniser: LmTokeniser, length: int) -> None:
        self._model: Any = model
        self._tokeniser, self._length = tokeniser, length
        graph, state = nnx.split(model)
        losses = jax.jit(lambda state, batch: target_nats(nnx.merge(graph, state), batch))
        self._losses = lambda batch: np.asarray(losses(state, {k: batch[k] for k in ARRAYS}))

    @classmethod
    def load(cls, run_dir: Path, which: Which = "best") -> Language:
        """Reads the model of a run directory, finished or not.

        Raises:
            ValueError: the directory is not one of a language-modelling run.
            BrokenCheckpointError: it has no checkpoint that can be read.
        """
        described = described_run(run_dir)
        tokeniser = LmTokeniser.load(run_dir / TOKENISER)
        config, length = LmModelConfig.from_json(described["model"]), described["length"]

        def build(rngs: nnx.Rngs) -> nnx.Module:
            return config.build(vocabulary=tokeniser.size, length=length, rngs=rngs)

        return cls(load_model(build, run_dir, which=which), tokeniser, length)

    def evaluate(self, data: Documents, split: str) -> dict[str, float]:
        """Metrics on a split, as `text_metrics` has them."""
        batches = LmBatches(data, self._tokeniser, self._length)
        return text_metrics(
            [
                ({"nats": self._losses(batch).sum(axis=1)}, batch)
                for batch in batches.eval_batches(split, batch_size=_ROWS)
            ]
        )

    def score(self, texts: Sequence[str]) -> list[Scored]:
        """Says of each text how surprising it was; a long one is cut as in evaluation."""
        encoded = self._tokeniser.encode_batch(texts)
        whole = joined([text.ids for text in encoded])
        cut = pieces(whole, self._length)
        nats = np.zeros(len(whole.tokens))
        for start in range(0, len(cut), _ROWS):
            some = cut[start : start + _ROWS]
            # One batch size, so that the last batch does not compile anew.
            rows = [[piece] for piece in some] + [[]] * (_ROWS - len(some))
            losses = self._losses(packed(whole, rows, self._length))
            for piece, row in zip(some, losses, strict=False):
                nats[piece.start + 1 : piece.stop] = row[: piece.size]
        bits = surprise(nats, whole.tokens)
        return [
            self._scored(text, whole.tokens[begin + 1 : end], bits[begin + 1 : end + 1])
            for text, begin, end in zip(
                texts, whole.boundaries[:-1], whole.boundaries[1:], strict=True
            )
        ]

    def sample(
        self, prompt: str, *, max_tokens: int, sampling: Sampling, seed: int
    ) -> Iterator[str]:
        """Continues a text, piece by piece as it is written, until the model ends the document.

        A text that outgrows the context is continued from the half of it that came last.

        Args:
            prompt: how the document begins; may be empty.
            max_tokens: tokens to write at most.
            sampling: how they are chosen.
            seed: of the draws.
        """
        ids = [BOUNDARY, *self._tokeniser.encode(prompt).ids.tolist()]
        decode, letters = decode_fn(self._model), codecs.getincrementaldecoder("utf-8")("replace")
        written = 0
        while written < max_tokens:
            ids = ids if len(ids) <= self._length else ids[-(self._length // 2) :]
            tokens = stream(
                decode,
                self._model.init_cache(1, self._length),
                jnp.array([ids], jnp.int32),
                # As many as there is room for, wanted or not: another number would compile anew.
                max_tokens=self._length + 1 - len(ids),
                end=BOUNDARY,
                sampling=sampling,
                keys=None
                if sampling.greedy
                else jax.random.split(jax.random.fold_in(jax.random.key(seed), written), 1),
                allowed=jnp.asarray(~self._tokeniser.never),
            )
            for (token,) in islice(tokens, max_tokens - written):
                if token == BOUNDARY:
                    yield letters.decode(b"", final=True)
                    return
                ids.append(int(token))
                written += 1
                yield letters.decode(self._tokeniser.pieces[int(token)])
        yield letters.decode(b"", final=True)

    def unknown(self, text: str) -> int:
        """How many characters of a text the model does not know."""
        return int(np.sum(self._tokeniser.never[self._tokeniser.encode(text).ids]))

    def _scored(self, text: str, ids: np.ndarray, bits: np.ndarray) -> Scored:
        """A text cut into words, from its tokens and the bits of these and the end."""
        content = text.encode()
        ends = np.cumsum(self._tokeniser.encode(text).bytes).tolist()
        words: list[tuple[bytes, float]] = []
        start = 0
        for stop, cost in zip(ends, bits[: len(ids)].tolist(), strict=True):
            piece = content[start:stop]
            # Spaces belong to the word that follows them.
            if words and (not piece[:1].isspace() or not words[-1][0].strip()):
                words[-1] = (words[-1][0] + piece, words[-1][1] + cost)
            else:
                words.append((piece, cost))
            start = stop
        return Scored(
            tuple((word.decode("utf-8", "replace"), cost) for word, cost in words),
            float(bits[-1]),
            float(bits.sum()) / max(len(content), 1),
        )


def save_text_side(run_dir: Path, tokeniser: LmTokeniser) -> None:
    """Writes the tokeniser into a run directory that does not have it yet."""
    if not (run_dir / TOKENISER).exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        tokeniser.save(run_dir / TOKENISER)


def described_run(run_dir: Path) -> dict[str, Any]:
    """The task's part of a run's config.

    Raises:
        ValueError: there is no such run, or it is one of another task.
    """
    return described_task(run_dir, "language modelling", TOKENISER)
