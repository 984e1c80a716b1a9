"""`DocumentSource`: which texts, what a document is, and what is held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import tyro

from train.common.data.source import DataSource
from train.common.lm.documents import HoldOut


@dataclass(frozen=True)
class DocumentSource(DataSource):
    """Which texts, what a document is, and what is held out.

    Raises:
        ValueError: a fraction is out of range or options contradict each other.
    """

    source: Annotated[tuple[str, ...], tyro.conf.arg(name="data", prefix_name=False)] = ("builtin",)
    """builtin (docstrings of NumPy and SciPy), tfds:NAME, or paths of the training texts: plain
    text or .jsonl, each also .gz, or folders of them."""
    validation: tuple[str, ...] = ()
    """Files or folders with the validation split; without any, part of the training data."""
    test: tuple[str, ...] = ()
    """Files or folders with the test split; without any, part of the training data."""
    document: Literal["file", "paragraph", "line"] = "file"
    """What is one document in a plain text file; blank lines separate paragraphs. In a .jsonl file
    each record is one."""
    column: str | None = None
    """The column of .jsonl records, or the feature of a tfds data set, that holds the text."""
    encoding: str = "utf-8"
    """Encoding of the files, latin-1 for instance."""
    hold_out: HoldOut = "auto"
    """documents: hold out whole documents, drawn at random; end: the last characters of the text;
    auto: the end where there are fewer than 20 documents."""
    validation_fraction: float = 0.1
    """Share held out when the source has no validation split."""
    test_fraction: float = 0.1
    """Share held out when the source has no test split; with 0 validation is what is measured."""
    split_seed: int = 0
    """Seeds which documents are held out; not moved by the training seed."""
    max_train: int | None = None
    """Use only this many training documents (the first ones after a shuffle), for quick trials."""
    data_dir: str | None = None
    """Where prepared data sets live; by default $ATTNJAX_DATA_DIR, else ~/.cache/attnjax/data."""

    def __post_init__(self) -> None:
        """Rejects values that cannot mean anything."""
        if not self.source:
            raise ValueError("--data needs builtin, tfds:NAME or at least one path")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction must lie between 0 and 1, got {self.validation_fraction}"
            )
        if not 0 <= self.test_fraction < 1:
            raise ValueError(f"test_fraction must lie in [0, 1), got {self.test_fraction}")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction leave nothing to train on")
        self.check_max_train()
        named = [s for s in self.source if s == "builtin" or s.startswith("tfds:")]
        if named and len(self.source) > 1:
            raise ValueError(f"--data takes {named[0]} alone, got it among {list(self.source)}")
        if named and (self.validation or self.test):
            raise ValueError(
                f"separate validation and test files go with files as --data, got {named[0]!r}"
            )

    @classmethod
    def from_json(cls, described: dict[str, Any]) -> Self:
        """The config that `dataclasses.asdict` and JSON made `described` of."""
        paths = {name: tuple(described[name]) for name in ("source", "validation", "test")}
        return cls(**{**described, **paths})

    @property
    def is_file(self) -> bool:
        """Whether the sources are paths."""
        return self.source[0] != "builtin" and not self.source[0].startswith("tfds:")
