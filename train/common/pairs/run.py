"""The text side of a run directory: what it takes to write texts with a finished run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attnjax.models.decode import beam_search, generate
from train.common.pairs.batches import COARSE, padded, width
from train.common.pairs.models import SeqModelConfig
from train.common.pairs.tokenise import BEGIN_ID, END_ID, PAD_ID
from train.common.pairs.tokens import TARGET_FILE, PairTokens, PairTokensConfig
from train.common.result import Which, load_model
from train.common.rundir import described_task

_BATCH = 32


@dataclass(frozen=True)
class DecodingConfig:
    """How the likeliest output is searched for.

    Raises:
        ValueError: a number is out of range.
    """

    beams: int = 5
    """Outputs that are kept at each step; 1 is greedy."""
    length_penalty: float = 1.0
    """How much longer outputs are favoured; 0 is not at all (Wu et al., 2016)."""
    coverage_penalty: float = 0.0
    """How much outputs that look at all of the source are favoured (likewise)."""
    max_tokens: int | None = None
    """Longest output; None for the `max_target` of training."""

    def __post_init__(self) -> None:
        """Rejects values that cannot mean anything."""
        if self.beams < 1:
            raise ValueError(f"beams must be at least 1, got {self.beams}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.coverage_penalty < 0:
            raise ValueError(f"coverage_penalty must not be negative, got {self.coverage_penalty}")


@dataclass(frozen=True)
class Written:
    """What the model wrote for one text."""

    source: str
    text: str
    score: float
    """By which it won the search: the log-probability, divided by the length penalty."""
    source_cut: bool
    """Whether the source was longer than the model reads."""
    ended: bool
    """Whether the output ended by itself, and not at the limit."""

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)


@dataclass(frozen=True)
class Alignment:
    """Where the model looked in the source when it wrote each piece."""

    source: tuple[str, ...]
    """Pieces of the source, S of them; the last is its end."""
    output: tuple[str, ...]
    """Pieces of the output, T of them."""
    weights: np.ndarray
    """float32 `[T, S]`; rows sum to 1."""


class Writer:
    """A model with what turns texts into its input and its output into texts.

    Args:
        model: an encoder-decoder in eval mode.
        tokens: as in training.
        decoding: how outputs are searched for.
    """

    def __init__(self, model: nnx.Module, tokens: PairTokens, decoding: DecodingConfig):
        self.tokens = tokens
        self._limit = min(decoding.max_tokens or tokens.config.max_target, tokens.config.max_target)
        graph, state = nnx.split(model)
        search = jax.jit(partial(_search, graph, decoding, self._limit))
        look = jax.jit(partial(_look, graph))
        self._search: Callable[..., Any] = partial(search, state)
        self._look: Callable[..., Any] = partial(look, state)

    @classmethod
    def load(cls, run_dir: Path, decoding: DecodingConfig, which: Which = "best") -> Writer:
        """Reads the model of a run directory, finished or not.

        Raises:
            ValueError: the directory is not one of a run that writes texts.
            BrokenCheckpointError: it has no checkpoint that can be read.
        """
        described = described_seq_run(run_dir)
        config = PairTokensConfig.from_json(described["tokens"])
        tokens = PairTokens.load(run_dir, config)
        model = SeqModelConfig.from_json(described["model"])

        def build(rngs: nnx.Rngs) -> nnx.Module:
            return model.build(tokens, rngs=rngs)

        return cls(load_model(build, run_dir, which=which), tokens, decoding)

    def write(self, texts: Sequence[str]) -> list[Written]:
        """Writes for texts, in their order; those of similar length are read together."""
        encoded = self.tokens.encode_sources(list(texts))
        order = np.argsort([len(ids) for ids, _ in encoded], kind="stable")
        found: dict[int, Written] = {}
        for start in range(0, len(order), _BATCH):
            some = [int(i) for i in order[start : start + _BATCH]]
            tokens, scores, ended = self._searched([encoded[i][0] for i in some])
            for i, row, score, end in zip(some, tokens, scores, ended, strict=False):
                text = self.tokens.target.decode(row)
                found[i] = Written(texts[i], text, float(score), encoded[i][1], bool(end))
        return [found[i] for i in range(len(texts))]

    def alignments(self, written: Sequence[Written]) -> Iterator[Alignment]:
        """Where the model looks when it reads a source and writes its output."""
        for one in written:
            source = self.tokens.encode_sources([one.source])[0][0]
            output = np.array(self.tokens.target.encode(one.text), np.int32)[: self._limit - 1]
            target = np.array([BEGIN_ID, *output], np.int32)
            weights = self._look(
                padded([source], width(len(source), self.tokens.config.max_source, COARSE)),
                np.array([len(source)], np.int32),
                padded([target], width(len(target), self.tokens.config.max_target, COARSE)),
            )
            pieces = self.tokens.source.pieces(source[:-1].tolist())
            yield Alignment(
                (*pieces, "(end)"),
                (*self.tokens.target.pieces(output.tolist()), "(end)"),
                np.asarray(weights)[: len(target), : len(source)],
            )

    def _searched(self, sources: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Tokens, score and end of the best output of each source, and of rows that only fill."""
        rows = sources + [sources[-1]] * (_BATCH - len(sources))
        wide = width(max(len(ids) for ids in sources), self.tokens.config.max_source, COARSE)
        lengths = np.array([len(ids) for ids in rows], np.int32)
        return tuple(jax.device_get(self._search(padded(rows, wide), lengths)))


def _search(
    graph: Any, decoding: DecodingConfig, limit: int, state: Any, source: Any, lengths: Any
) -> tuple[jax.Array, ...]:
    model: Any = nnx.merge(graph, state)
    cache = model.init_cache(source, lengths, limit, attention=decoding.coverage_penalty > 0)
    begin = jnp.full((source.shape[0], 1), BEGIN_ID, jnp.int32)
    if decoding.beams == 1 and not decoding.coverage_penalty:
        # Unlike a search with one beam, which looks for the best place to end.
        one = generate(model.decode, cache, begin, max_tokens=limit, end=END_ID, pad=PAD_ID)
        length = one.lengths + one.ended
        return one.tokens, one.logprobs / ((5 + length) / 6) ** decoding.length_penalty, one.ended
    found = beam_search(
        model.decode,
        cache,
        begin,
        max_tokens=limit,
        end=END_ID,
        beams=decoding.beams,
        length_penalty=decoding.length_penalty,
        coverage_penalty=decoding.coverage_penalty,
        pad=PAD_ID,
    )
    return found.tokens[:, 0], found.scores[:, 0], found.ended[:, 0]


def _look(graph: Any, state: Any, source: Any, lengths: Any, target: Any) -> jax.Array:
    """The weights `[T, S]` of each position of one target, `[1, T]`, step by step."""
    model: Any = nnx.merge(graph, state)
    cache = model.init_cache(source, lengths, target.shape[1], attention=True)

    def one(cache: Any, token: Any) -> tuple[Any, jax.Array]:
        _, cache = model.decode(token[None, None], cache)
        return cache, cache.attention[0]

    return jax.lax.scan(one, cache, target[0])[1]


def described_seq_run(run_dir: Path) -> dict[str, Any]:
    """The task's part of a run's config.

    Raises:
        ValueError: there is no such run, or it is one of another task.
    """
    return described_task(run_dir, "a task that writes texts", TARGET_FILE)
