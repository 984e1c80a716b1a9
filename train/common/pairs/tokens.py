"""Tokenisers of both sides of a pair, trained on the training split, and where they are kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro

from train.common.files import sha256_json
from train.common.pairs.text_pairs import TextPairs
from train.common.pairs.tokenise import BEGIN_ID, END_ID, SeqTokeniser, SeqTokeniserConfig
from train.common.rundir import CONFIG

SOURCE_FILE, TARGET_FILE = "source_tokens.json", "target_tokens.json"


class Encoded(NamedTuple):
    """One pair as numbers."""

    source: np.ndarray
    """The source and `END_ID`, int32 `[S]`."""
    target: np.ndarray
    """`BEGIN_ID`, the target and `END_ID`, int32 `[T + 1]`."""
    cut: bool
    """Whether something did not fit and is gone."""


@dataclass(frozen=True)
class PairTokensConfig:
    """How both sides of a pair are cut into tokens, and how many of them there may be.

    Raises:
        ValueError: a size is out of range.
    """

    tokens: Annotated[SeqTokeniserConfig, tyro.conf.arg(name="")] = field(
        default_factory=SeqTokeniserConfig
    )
    """How texts are cut into tokens."""
    joint: bool = True
    """One vocabulary for both sides; otherwise each has one of its own, of the same size."""
    max_source: int = 128
    """Most tokens of a source, the end included."""
    max_target: int = 128
    """Most tokens of a target, the end included; also how long an output can get."""
    too_long: Literal["skip", "cut"] = "skip"
    """Training pairs beyond these limits are left out, or cut; others are always cut. Counted."""
    padding: Literal["fine", "coarse"] = "fine"
    """Widths that training batches are padded to: coarse ones are fewer to compile, and longer."""

    def __post_init__(self) -> None:
        """Rejects limits that leave nothing."""
        for name in ("max_source", "max_target"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> PairTokensConfig:
        """The config that `dataclasses.asdict` and JSON made `fields` of."""
        return cls(**{**fields, "tokens": SeqTokeniserConfig(**fields["tokens"])})

    def train(self, data: TextPairs) -> PairTokens:
        """Trains the tokenisers, on the training split only."""
        sources, targets = data.sources("train"), data.targets("train")
        if self.joint:
            both = self.tokens.train([*sources, *targets])
            return PairTokens(self, both, both)
        return PairTokens(self, self.tokens.train(sources), self.tokens.train(targets))


class PairTokens:
    """The tokenisers of a run.

    Args:
        config: the limits.
        source: of what is read.
        target: of what is written; the same object where the vocabulary is shared.
    """

    def __init__(self, config: PairTokensConfig, source: SeqTokeniser, target: SeqTokeniser):
        self.config, self.source, self.target = config, source, target

    @property
    def joint(self) -> bool:
        """Whether both sides share one vocabulary."""
        return self.source is self.target

    @property
    def fingerprint(self) -> str:
        """sha256 of both."""
        return sha256_json([self.source.fingerprint, self.target.fingerprint])

    def encode_sources(self, texts: list[str]) -> list[tuple[np.ndarray, bool]]:
        """Sources as numbers, `END_ID` last, each with whether it was cut."""
        limit = self.config.max_source
        return [
            (np.array([*ids[: limit - 1], END_ID], np.int32), len(ids) >= limit)
            for ids in self.source.encode_batch(texts)
        ]

    def encode(self, sources: list[str], targets: list[str]) -> list[Encoded]:
        """Pairs as numbers."""
        limit = self.config.max_target
        return [
            Encoded(
                source,
                np.array([BEGIN_ID, *ids[: limit - 1], END_ID], np.int32),
                source_cut or len(ids) >= limit,
            )
            for (source, source_cut), ids in zip(
                self.encode_sources(sources), self.target.encode_batch(targets), strict=True
            )
        ]

    def save(self, run_dir: Path) -> None:
        """Writes the tokenisers into a run directory that no run has claimed yet.

        One that was given up before, by a run of another data set perhaps, may hold other ones.
        """
        if not (run_dir / CONFIG).exists():
            run_dir.mkdir(parents=True, exist_ok=True)
            self.source.save(run_dir / SOURCE_FILE)
            self.target.save(run_dir / TARGET_FILE)

    @classmethod
    def load(cls, run_dir: Path, config: PairTokensConfig) -> PairTokens:
        """Reads what `save` wrote.

        Raises:
            ValueError: the files are not there, or are no tokenisers.
        """
        try:
            source = SeqTokeniser.load(run_dir / SOURCE_FILE)
            target = source if config.joint else SeqTokeniser.load(run_dir / TARGET_FILE)
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise ValueError(f"{run_dir}: its tokenisers can't be read: {error}") from error
        return cls(config, source, target)
