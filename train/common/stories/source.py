"""`StorySource`: which stories, and how they are split and cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Self

import tyro

from train.common.data.source import DataSource


@dataclass(frozen=True)
class StorySource(DataSource):
    """Which stories, and how they are split and cut.

    Raises:
        ValueError: a number is out of range, or the source can't hold stories.
    """

    source: Annotated[str, tyro.conf.arg(name="data", prefix_name=False)] = "builtin"
    """builtin (our own story generator), or a folder or .tar.gz of bAbI files."""
    tasks: tuple[str, ...] = ()
    """Only these tasks, all in one training: names, as qa1 or qa1_single-supporting-fact, or
    numbers; all by default."""
    folder: str | None = None
    """Which folder of stories, where there are several, as in the archive of bAbI v1.2."""
    encoding: str = "utf-8"
    """Encoding of the files."""
    max_sentences: int = 70
    """Only this many sentences before the question are read; how many stories lose some is said."""
    validation_fraction: float = 0.1
    """Share of the training stories held out where a task has no validation file."""
    split_seed: int = 0
    """Seeds which stories are held out; not moved by the training seed."""
    max_train: int | None = None
    """Use only this many training questions (the first ones after a shuffle), for quick trials."""
    data_dir: str | None = None
    """Where prepared data sets live; by default $ATTNJAX_DATA_DIR, else ~/.cache/attnjax/data."""

    def __post_init__(self) -> None:
        """Rejects values that cannot mean anything."""
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction must lie between 0 and 1, got {self.validation_fraction}"
            )
        if self.max_sentences < 1:
            raise ValueError(f"max_sentences must be at least 1, got {self.max_sentences}")
        self.check_max_train()
        if self.source.startswith("tfds:"):
            raise ValueError(
                "the catalogue of tensorflow-datasets has no stories; give builtin or a path, or "
                f"take the command `spans` for {self.source}"
            )

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """The config that `dataclasses.asdict` and JSON made `fields` of."""
        return cls(**{**fields, "tasks": tuple(fields["tasks"])})
