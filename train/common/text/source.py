"""`TextSource`: which texts, how their files are laid out, and how they are split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import tyro

from train.common.data.source import DataSource

FileFormat = Literal["auto", "csv", "tsv", "jsonl", "trec", "regex"]


@dataclass(frozen=True)
class TextSource(DataSource):
    """Which data set, how to read it, and how it is split.

    Raises:
        ValueError: a fraction is out of range or options contradict each other.
    """

    source: Annotated[str, tyro.conf.arg(name="data", prefix_name=False)] = "builtin"
    """builtin (docstrings of NumPy and SciPy), tfds:NAME, or the path of the training file."""
    validation: str | None = None
    """A file with the validation split; without it, part of the training file is held out."""
    test: str | None = None
    """A file with the test split; without it, part of the training file is held out."""
    format: FileFormat = "auto"
    """How files are laid out; auto goes by the name (.csv, .tsv, .jsonl, each also .gz). trec is
    `COARSE:fine text`, labelled by COARSE; regex takes `pattern`."""
    text_column: tuple[str, ...] = ()
    """Columns (names, or numbers from 0) that hold the text; several are joined by a space."""
    label_column: str | None = None
    """The column (a name, or a number from 0) that holds the label."""
    header: bool | None = None
    """Whether the first line of a csv or tsv names the columns; by default it does unless the
    columns are given by number."""
    separator: str | None = None
    """The character between columns; by default a comma for csv, a tab for tsv."""
    encoding: str = "utf-8"
    """Encoding of the files, latin-1 for instance."""
    pattern: str | None = None
    """With format regex: a regular expression with the groups `label` and `text`, per line."""
    validation_fraction: float = 0.1
    """Share of the training examples held out when the source has no validation split."""
    test_fraction: float = 0.1
    """Share of the training examples held out when the source has no test split."""
    split_seed: int = 0
    """Seeds which examples are held out; not moved by the training seed."""
    max_train: int | None = None
    """Use only this many training examples (the first ones after a shuffle), for quick trials."""
    data_dir: str | None = None
    """Where prepared data sets live; by default $ATTNJAX_DATA_DIR, else ~/.cache/attnjax/data."""

    def __post_init__(self) -> None:
        """Rejects values that cannot mean anything."""
        self.check_split()
        if (self.pattern is not None) != (self.format == "regex"):
            raise ValueError("give pattern with format regex, and only then")
        if not self.is_file and (self.validation or self.test):
            raise ValueError(
                f"separate validation and test files go with a file as --data, got {self.source!r}"
            )

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """The config that `dataclasses.asdict` and JSON made `fields` of."""
        return cls(**{**fields, "text_column": tuple(fields["text_column"])})
