"""`PairSource`: which pairs of texts, how their files are laid out, and how they are split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import tyro

from train.common.data.source import DataSource

PairFormat = Literal["auto", "lines", "csv", "tsv", "jsonl"]


@dataclass(frozen=True)
class PairSource(DataSource):
    """Which data set, how to read it, and how it is split.

    Raises:
        ValueError: a fraction is out of range or options contradict each other.
    """

    source: Annotated[str, tyro.conf.arg(name="data", prefix_name=False)] = "builtin"
    """builtin, tfds:NAME, or the path of the training file: the sources, one per line, or a table
    (.csv, .tsv, .jsonl) with both; all also .gz."""
    target: str | None = None
    """The file with the training targets, line by line."""
    validation: str | None = None
    """The validation split, laid out as --data; without it, part of the training data."""
    validation_target: str | None = None
    """The file with the validation targets."""
    test: str | None = None
    """The test split, laid out as --data; without it, part of the training data."""
    test_target: str | None = None
    """The file with the test targets."""
    format: PairFormat = "auto"
    """How files are laid out; auto goes by the name: .csv, .tsv, .jsonl or else lines."""
    source_column: tuple[str, ...] = ()
    """Columns (names, or numbers from 0) or tfds features with the source, joined by a space."""
    target_column: tuple[str, ...] = ()
    """Columns or tfds features with the target."""
    header: bool | None = None
    """Whether the first line of a csv or tsv names the columns; by default it does unless the
    columns are given by number."""
    separator: str | None = None
    """The character between columns; by default a comma for csv, a tab for tsv."""
    encoding: str = "utf-8"
    """Encoding of the files, latin-1 for instance."""
    validation_fraction: float = 0.1
    """Share of the training sources held out when there is no validation split."""
    test_fraction: float = 0.1
    """Share of the training sources held out when there is no test split."""
    split_seed: int = 0
    """Seeds which pairs are held out; not moved by the training seed."""
    max_train: int | None = None
    """Use only this many training pairs (the first ones after a shuffle), for quick trials."""
    data_dir: str | None = None
    """Where prepared data sets live; by default $ATTNJAX_DATA_DIR, else ~/.cache/attnjax/data."""

    def __post_init__(self) -> None:
        """Rejects values that cannot mean anything."""
        self.check_split()
        for name in ("target", "validation", "validation_target", "test", "test_target"):
            if getattr(self, name) is not None and not self.is_file:
                raise ValueError(
                    f"--data.{name.replace('_', '-')} goes with a file as --data, got "
                    f"{self.source!r}"
                )
        for split in ("validation", "test"):
            if getattr(self, split) is None and getattr(self, f"{split}_target") is not None:
                raise ValueError(f"--data.{split}-target goes with --data.{split}, its sources")

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """The config that `dataclasses.asdict` and JSON made `fields` of."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        return cls(**values)
