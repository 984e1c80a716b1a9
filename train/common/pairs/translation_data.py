"""`TranslationData`: `--data builtin`, `tfds:<name>` or parallel files, as `TextPairs`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from train.common.pairs.files import load_pair_files
from train.common.pairs.source import PairSource
from train.common.pairs.text_pairs import TextPairs


@dataclass(frozen=True)
class TranslationData(PairSource):
    """Which translations, how to read them, and how they are split.

    Raises:
        ValueError: a fraction is out of range or options contradict each other.
    """

    languages: tuple[str, str] | None = None
    """From which language into which. builtin has en, de, fr, es, it, nl, pt, fi and ru (default:
    en de); of a tfds data set, two of its features; with a path, --data, --data.validation and
    --data.test are prefixes: `train` with `en de` is train.en and train.de, or both .gz."""

    def __post_init__(self) -> None:
        """Rejects values that cannot mean anything."""
        super().__post_init__()
        if self.languages is None:
            return
        if self.languages[0] == self.languages[1]:
            raise ValueError(f"languages must be two, got {' and '.join(self.languages)}")
        for name in ("source_column", "target_column", "target", "validation_target"):
            if getattr(self, name):
                raise ValueError(
                    f"--data.languages says what --data.{name.replace('_', '-')} says, too; give "
                    "one of them"
                )

    def load(self) -> TextPairs:
        """Reads the whole data set into memory.

        Raises:
            ValueError: the data can't be what was asked for; names the file and line.
            FileNotFoundError: a path does not exist.
            ConnectionError: a `tfds:` data set has to be fetched and can't be; says what to do.
            MissingExtraError: a `tfds:` data set needs TensorFlow.
        """
        if self.is_file:
            data = load_pair_files(self._with_prefixes())
        else:
            # Imported here: reading a text file should not wait for tensorflow-datasets.
            from train.common.pairs.tfds import load_pair_tfds

            data = load_pair_tfds(self._with_columns(), self._builtin())
        return data.limited(self.max_train, seed=self.split_seed).with_leak_note()

    def _builtin(self) -> object:
        """The builder of the builtin data; None for any other."""
        if self.source != "builtin":
            return None
        from train.common.builders import spelt
        from train.common.builders.spelt_corpus import LANGUAGES

        if self.languages and (unknown := set(self.languages) - set(LANGUAGES)):
            raise ValueError(
                f"the builtin data has no language {' and '.join(sorted(unknown))}, only "
                f"{', '.join(LANGUAGES)}"
            )
        return spelt.prepared(self.prepared_dir)

    def _with_columns(self) -> PairSource:
        """The features of a tfds data set that the languages name."""
        if self.languages is None:
            return self
        source, target = self.languages
        return replace(self, languages=None, source_column=(source,), target_column=(target,))

    def _with_prefixes(self) -> PairSource:
        """Both files of each split, where prefixes stand for them."""
        if self.languages is None:
            return self
        files: dict[str, Any] = {}
        for split, prefix in (
            ("source", self.source),
            ("validation", self.validation),
            ("test", self.test),
        ):
            if prefix is not None:
                target = "target" if split == "source" else f"{split}_target"
                files[split], files[target] = (
                    str(_existing(prefix, language)) for language in self.languages
                )
        return replace(self, languages=None, **files)


def _existing(prefix: str, language: str) -> Path:
    plain = Path(f"{prefix}.{language}")
    for path in (plain, Path(f"{plain}.gz")):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"--data {prefix} with --data.languages: there is neither {plain} nor {plain}.gz"
    )
