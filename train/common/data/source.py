"""`DataSource`: what the options of all data sets, files or prepared ones, have in common."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class DataSource:
    """Base of options that name a data set; the fields are those of the classes themselves."""

    source: Any
    validation_fraction: float
    test_fraction: float
    max_train: int | None
    data_dir: str | None

    @property
    def is_file(self) -> bool:
        """Whether the source is a path."""
        return self.source != "builtin" and not self.source.startswith("tfds:")

    @property
    def prepared_dir(self) -> Path:
        """The folder of prepared data sets, absolute: the given one, or where they usually are."""
        default = os.environ.get("ATTNJAX_DATA_DIR", "~/.cache/attnjax/data")
        return Path(self.data_dir or default).expanduser().absolute()

    def check_split(self) -> None:
        """Raises ValueError if the shares held out leave nothing, or nothing is to be used."""
        for name in ("validation_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction leave nothing to train on")
        self.check_max_train()

    def check_max_train(self) -> None:
        """Raises ValueError if no training example is to be used."""
        if self.max_train is not None and self.max_train < 1:
            raise ValueError(f"max_train must be at least 1, got {self.max_train}")
