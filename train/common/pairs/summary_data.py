"""`SummaryData`: `--data builtin`, `tfds:<name>` or files, as `TextPairs` of text and summary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.common.pairs.files import load_pair_files
from train.common.pairs.source import PairSource
from train.common.pairs.subject_files import is_subjects, load_subjects, split_paths
from train.common.pairs.text_pairs import TextPairs


@dataclass(frozen=True)
class SummaryData(PairSource):
    """Which texts and summaries, how to read them, and how they are split.

    Besides what `PairSource` knows, --data takes e-mails with subject lines as AESLC has them:
    archives (.tar.gz) or folders of .subject files, one as each of --data, --data.validation and
    --data.test, or a folder that holds train, dev and test.

    Raises:
        ValueError: a fraction is out of range or options contradict each other.
    """

    def load(self) -> TextPairs:
        """Reads the whole data set into memory.

        Raises:
            ValueError: the data can't be what was asked for; names the file and line.
            FileNotFoundError: a path does not exist.
            ConnectionError: a `tfds:` data set has to be fetched and can't be; says what to do.
            MissingExtraError: a `tfds:` data set needs TensorFlow.
        """
        if self.is_file and is_subjects(Path(self.source)):
            data = load_subjects(self._subject_paths(), self.encoding)
        elif self.is_file:
            data = load_pair_files(self)
        else:
            # Imported here: reading a text file should not wait for tensorflow-datasets.
            from train.common.pairs.tfds import load_pair_tfds

            data = load_pair_tfds(self, self._builtin())
        return data.limited(self.max_train, seed=self.split_seed).with_leak_note()

    def _subject_paths(self) -> dict[str, Path]:
        parts = split_paths(Path(self.source)) if Path(self.source).is_dir() else None
        if parts is not None:
            if self.validation or self.test:
                raise ValueError(
                    f"--data {self.source} holds all three splits; leave --data.validation and "
                    "--data.test out"
                )
            return parts
        if not (self.validation and self.test):
            raise ValueError(
                f"--data {self.source} is one split of e-mails with subject lines; give the others "
                "as --data.validation and --data.test, or a folder with train, dev and test"
            )
        paths = {"train": self.source, "validation": self.validation, "test": self.test}
        return {split: Path(path) for split, path in paths.items()}

    def _builtin(self) -> Any:
        """The builder of the builtin data; None for any other."""
        if self.source != "builtin":
            return None
        from train.common.builders.summaries import prepared

        return prepared(self.prepared_dir)
