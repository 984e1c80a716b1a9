"""`DialogueDataConfig`: `--data builtin`, `tfds:<name>` or a path, as one `DialogueData`."""

from __future__ import annotations

from dataclasses import dataclass

from train.common.dialogue.dialogues import DialogueData
from train.common.dialogue.source import DialogueSource


@dataclass(frozen=True)
class DialogueDataConfig(DialogueSource):
    """Which data set, how to read it, and how it is split.

    Raises:
        ValueError: a fraction is out of range or options contradict each other.
    """

    def load(self) -> DialogueData:
        """Reads the whole data set into memory.

        Raises:
            ValueError: the data can't be what was asked for; names the file and line.
            FileNotFoundError: a path does not exist.
            ConnectionError: a `tfds:` data set has to be fetched and can't be; says what to do.
            MissingExtraError: a `tfds:` data set needs TensorFlow.
        """
        # Imported here: reading a file should not wait for tensorflow-datasets.
        if self.is_file:
            from train.common.dialogue.files import load_files as load
        else:
            from train.common.dialogue.tfds import load_tfds as load
        return load(self).limited(self.max_train, seed=self.split_seed)
