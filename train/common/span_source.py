"""`SpanSource`: which texts and questions, and how they are split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import tyro

from train.common.text_source import default_data_dir


@dataclass(frozen=True)
class SpanSource:
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
        for name in ("validation_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction leave nothing to train on")
        if self.max_train is not None and self.max_train < 1:
            raise ValueError(f"max_train must be at least 1, got {self.max_train}")
        if not self.is_file and (self.validation or self.test):
            raise ValueError(
                f"separate validation and test files go with a file as --data, got {self.source!r}"
            )

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """The config that `dataclasses.asdict` and JSON made `fields` of."""
        return cls(**fields)

    @property
    def is_file(self) -> bool:
        """Whether the source is a path."""
        return self.source != "builtin" and not self.source.startswith("tfds:")

    @property
    def prepared_dir(self) -> Path:
        """The folder of prepared data sets, absolute."""
        return default_data_dir(self.data_dir)
