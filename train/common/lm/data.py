"""`DocumentConfig`: `--data builtin`, `tfds:<name>` or paths, as one `Documents`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from train.common.lm.documents import Documents
from train.common.lm.source import DocumentSource


@dataclass(frozen=True)
class DocumentConfig(DocumentSource):
    """Which texts, what a document is, and what is held out.

    Raises:
        ValueError: a fraction is out of range or options contradict each other.
    """

    def load(self) -> Documents:
        """Reads all documents into memory.

        Raises:
            ValueError: the data can't be what was asked for; names the file and line.
            FileNotFoundError: a path does not exist.
            ConnectionError: a `tfds:` data set has to be fetched and can't be; says what to do.
            MissingExtraError: a `tfds:` data set needs TensorFlow.
        """
        # Imported here: reading a text file should not wait for tensorflow-datasets.
        if self.is_file:
            from train.common.lm.files import load_files as load
        else:
            from train.common.lm.tfds import load_tfds as load
        data = load(self)
        if self.max_train is not None:
            train = data.splits["train"]
            order = np.random.default_rng(self.split_seed).permutation(len(train))
            kept = tuple(train[i] for i in order[: self.max_train])
            data = replace(data, splits={**data.splits, "train": kept})
        return data.with_leak_note()
