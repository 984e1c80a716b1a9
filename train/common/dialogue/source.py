"""`DialogueSource`: which dialogues, how their files are laid out, and how they are split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import tyro

from train.common.data.source import DataSource

DialogueFormat = Literal["auto", "babi", "transcript"]


@dataclass(frozen=True)
class DialogueSource(DataSource):
    """Which data set, how to read it, and how it is split.

    Raises:
        ValueError: a fraction is out of range or options contradict each other.
    """

    source: Annotated[str, tyro.conf.arg(name="data", prefix_name=False)] = "builtin"
    """builtin (our own booking dialogues), tfds:NAME, the path of the training file, or with `task`
    the folder of dialog-bAbI."""
    task: int | None = None
    """With a folder as --data: which task of dialog-bAbI, 1 to 5."""
    validation: str | None = None
    """A file with the validation split; without it, part of the training file is held out."""
    test: str | None = None
    """A file with the test split; without it, part of the training file is held out."""
    oov: str | None = None
    """A file with a second test split, of values that training never shows."""
    candidates: str | None = None
    """A file with the answers to choose from; without it, the answers of the training split."""
    knowledge: str | None = None
    """A file with the knowledge base that calls ask in a chat."""
    format: DialogueFormat = "auto"
    """How dialogues are laid out; auto goes by the first line. babi: `ID user<TAB>bot`, and lines
    without a tab are rows of the knowledge base. transcript: `NAME: text`, a blank line between
    conversations."""
    bot: str | None = None
    """In transcripts: whose lines to learn; by default those of all but who begins."""
    columns: tuple[str, ...] = ()
    """Of a tfds data set: the feature that holds a dialogue, or those of user and bot."""
    encoding: str = "utf-8"
    """Encoding of the files, latin-1 for instance."""
    validation_fraction: float = 0.1
    """Share of the training dialogues held out when the source has no validation split."""
    test_fraction: float = 0.1
    """Share of the training dialogues held out when the source has no test split."""
    split_seed: int = 0
    """Seeds which dialogues are held out; not moved by the training seed."""
    max_train: int | None = None
    """Use only this many training dialogues (the first ones after a shuffle), for quick trials."""
    data_dir: str | None = None
    """Where prepared data sets live; by default $ATTNJAX_DATA_DIR, else ~/.cache/attnjax/data."""

    def __post_init__(self) -> None:
        """Rejects values that cannot mean anything."""
        self.check_split()
        files = ("validation", "test", "oov", "candidates", "knowledge")
        given = [name for name in files if getattr(self, name) is not None]
        if given and (not self.is_file or self.task is not None):
            what = "builtin and tfds:NAME have" if not self.is_file else "a task has"
            raise ValueError(
                f"--data.{given[0]} goes with a training file as --data; {what} their own"
            )
        if self.task is not None and not (self.is_file and 1 <= self.task <= 5):
            raise ValueError(
                f"--data.task must be 1 to 5 and goes with the folder of dialog-bAbI as --data, "
                f"got {self.task} and {self.source!r}"
            )
        if self.columns and (not self.source.startswith("tfds:") or len(self.columns) > 2):
            raise ValueError(
                "--data.columns names one or two features of a tfds:NAME, got "
                f"{list(self.columns)} and {self.source!r}"
            )
        if self.bot is not None and (self.format == "babi" or self.source == "builtin"):
            raise ValueError("--data.bot goes with transcripts only")

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """The config that `dataclasses.asdict` and JSON made `fields` of."""
        return cls(**{**fields, "columns": tuple(fields["columns"])})
