"""`SpanSource`: which texts and questions, and how they are split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Self

import tyro

from train.common.data.source import DataSource


@dataclass(frozen=True)
class SpanSource(DataSource):
    """Which texts and questions, and how they are split.

    Raises:
        ValueError: a fraction is out of range or options contradict each other.
    """

    source: Annotated[str, tyro.conf.arg(name="data", prefix_name=False)] = "builtin"
    """builtin (our own stories, some questions without an answer), tfds:NAME (squad/v1.1, say), or
    the path of the training file in SQuAD's layout, plain or .gz."""
    validation: str | None = None
    """A file with the validation split; without it, some training articles are held out."""
    test: str | None = None
    """A file with the test split, SQuAD's dev file for instance; without it, as above."""
    validation_fraction: float = 0.05
    """Share of the training articles held out when there is no validation split."""
    test_fraction: float = 0.1
    """Share of the training articles held out when there is no test split."""
    split_seed: int = 0
    """Seeds which articles are held out; not moved by the training seed."""
    max_train: int | None = None
    """Use only this many training questions (the first ones after a shuffle), for quick trials."""
    data_dir: str | None = None
    """Where prepared data sets live; by default $ATTNJAX_DATA_DIR, else ~/.cache/attnjax/data."""

    def __post_init__(self) -> None:
        """Rejects values that cannot mean anything."""
        self.check_split()
        if not self.is_file and (self.validation or self.test):
            raise ValueError(
                f"separate validation and test files go with a file as --data, got {self.source!r}"
            )

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """The config that `dataclasses.asdict` and JSON made `fields` of."""
        return cls(**fields)
