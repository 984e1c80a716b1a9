"""Dialogues as pairs of texts: what was said, the newest first, and the answer to write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax.models.decode import Sampling, decode_fn, stream
from train.common.data.held_out import SPLITS
from train.common.dialogue.batches import context_of
from train.common.dialogue.dialogues import Dialogue, DialogueData, Turn, Utterance, utterances
from train.common.pairs.batches import padded, width
from train.common.pairs.models import SeqModelConfig
from train.common.pairs.text_pairs import Pair, TextPairs
from train.common.pairs.tokenise import BEGIN_ID, END_ID, PAD_ID, UNKNOWN_ID, UNKNOWN_TEXT
from train.common.pairs.tokens import PairTokens, PairTokensConfig
from train.common.result import load_model


def as_pairs(data: DialogueData, history: int) -> TextPairs:
    """Makes a pair of every answer.

    Args:
        data: the dialogues.
        history: how many utterances and rows the source tells, the one to answer among them.
    """
    splits = {split: answer_pairs(data.splits[split], history) for split in SPLITS}
    return TextPairs(splits, data.origin, data.notes)


def answer_pairs(dialogues: Sequence[Dialogue], history: int) -> tuple[Pair, ...]:
    """The pairs of some dialogues, one for each answer, as `as_pairs` makes them."""
    pairs = []
    for dialogue in dialogues:
        said, places = utterances(dialogue)
        pairs += [
            Pair(source_of(said[: place + 1], history), turn.bot)
            for place, turn in zip(places, dialogue, strict=True)
        ]
    return tuple(pairs)


def source_of(context: Sequence[Utterance], history: int) -> str:
    """What was said as one text, the newest first, so that what does not fit is the oldest."""
    latest = list(reversed(context))[:history]
    return " ".join(f"{utterance.speaker}: {utterance.text}" for utterance in latest)


class DialogueScores:
    """Compares written answers with those of the data: `f1` and `exact`, in percent."""

    primary = "f1"

    def __call__(self, outputs: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """The mean over the answers."""
        pairs = list(zip(outputs, references, strict=True))
        return {
            "f1": 100 * float(np.mean([_overlap(*pair) for pair in pairs])),
            "exact": 100 * float(np.mean([output == wanted for output, wanted in pairs])),
        }

    def signatures(self) -> Mapping[str, str]:
        """How each score is computed, for people."""
        return {
            "f1": "F1 of the words between spaces, in lower case, counted; mean over the answers",
            "exact": "share of the answers that are the same text",
        }


def _overlap(output: str, reference: str) -> float:
    """The F1 of the words that two texts share."""
    a, b = (Counter(text.lower().split()) for text in (output, reference))
    shared = (a & b).total()
    return 2 * shared / (a.total() + b.total()) if a or b else 1.0


class ChatWriter:
    """Writes answers in a dialogue, token by token.

    Args:
        model: an encoder-decoder in eval mode.
        tokens: as in training.
        history: as in training.
        sampling: how tokens are drawn.
        seed: of the draws; each answer has a key of its own.
    """

    def __init__(
        self, model: nnx.Module, tokens: PairTokens, history: int, sampling: Sampling, seed: int
    ):
        self._tokens, self._history, self._sampling = tokens, history, sampling
        self._key = jax.random.key(seed)
        # An answer is never padding, nor what the tokeniser has no text for.
        ids = np.arange(tokens.target.size)
        self._allowed = jnp.asarray(~np.isin(ids, (PAD_ID, UNKNOWN_ID, BEGIN_ID)))
        self._decode = decode_fn(model)
        graph, state = nnx.split(model)
        limit = tokens.config.max_target

        def begin(state: Any, source: jax.Array, length: jax.Array) -> Any:
            model: Any = nnx.merge(graph, state)
            return model.init_cache(source, length, limit)

        self._begin = partial(jax.jit(begin), state)

    @classmethod
    def load(
        cls, run_dir: Path, described: dict[str, Any], sampling: Sampling, seed: int
    ) -> ChatWriter:
        """Reads the model of a run directory, finished or not.

        Args:
            run_dir: the directory.
            described: the task's part of its config.
            sampling: how tokens are drawn.
            seed: of the draws.

        Raises:
            ValueError: the directory is not whole, or its checkpoint is of another config.
            BrokenCheckpointError: it has no checkpoint that can be read.
        """
        tokens = PairTokens.load(run_dir, PairTokensConfig.from_json(described["tokens"]))
        config = SeqModelConfig.from_json(described["model"])
        model = load_model(lambda rngs: config.build(tokens, rngs=rngs), run_dir)
        return cls(model, tokens, described["history"], sampling, seed)

    def stream(self, turns: Sequence[Turn], user: str, rows: Sequence[str]) -> Iterator[str]:
        """Yields the pieces of the answer as they are written."""
        source = source_of(context_of(turns, user, rows), self._history)
        ids = self._tokens.encode_sources([source])[0][0]
        wide = width(len(ids), self._tokens.config.max_source)
        cache = self._begin(padded([ids], wide), np.array([len(ids)], np.int32))
        tokens = stream(
            self._decode,
            cache,
            jnp.full((1, 1), BEGIN_ID, jnp.int32),
            max_tokens=self._tokens.config.max_target,
            end=END_ID,
            sampling=self._sampling,
            keys=None if self._sampling.greedy else self._answer_key(turns),
            allowed=self._allowed,
            pad=PAD_ID,
        )
        written: list[int] = []
        shown = ""
        for token in tokens:
            written.append(int(token[0]))
            text = self._tokens.target.decode(written)
            # Half a character waits for the bytes that make it whole.
            if text.startswith(shown) and not text.endswith(UNKNOWN_TEXT):
                yield text[len(shown) :]
                shown = text
        yield self._tokens.target.decode(written)[len(shown) :]

    def _answer_key(self, turns: Sequence[Turn]) -> jax.Array:
        return jax.random.fold_in(self._key, len(turns))[None]
