"""`TextDataConfig`: `--data builtin`, `tfds:<name>` or a path, as one `LabelledText`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from train.common.text.labelled_text import LabelledText
from train.common.text.source import TextSource


@dataclass(frozen=True)
class TextDataConfig(TextSource):
    """Which data set, how to read it, and how it is split.

    Raises:
        ValueError: a fraction is out of range or options contradict each other.
    """

    def load(self) -> LabelledText:
        """Reads the whole data set into memory.

        Raises:
            ValueError: the data can't be what was asked for; names the file and line.
            FileNotFoundError: a path does not exist.
            ConnectionError: a `tfds:` data set has to be fetched and can't be; says what to do.
            MissingExtraError: a `tfds:` data set needs TensorFlow.
        """
        # Imported here: reading a csv file should not wait for tensorflow-datasets.
        if self.is_file:
            from train.common.text.files import load_files as load
        else:
            from train.common.text.tfds import load_tfds as load
        data = load(self)
        if self.max_train is not None:
            data = replace(
                data, splits={**data.splits, "train": _shuffled(data, self)[: self.max_train]}
            )
        return data.with_leak_note()


def _shuffled(data: LabelledText, config: TextDataConfig) -> tuple:
    train = data.splits["train"]
    order = np.random.default_rng(config.split_seed).permutation(len(train))
    return tuple(train[i] for i in order)
