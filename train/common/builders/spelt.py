"""A tensorflow-datasets builder of values written out in words, one text per language."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from train.common.builders.offline import prepared_offline
from train.common.builders.spelt_corpus import LANGUAGES, SIZES, examples


def _config() -> tfds.core.BuilderConfig:
    """What the installed libraries write; other versions write other words."""
    return tfds.core.BuilderConfig(
        name=f"babel_{version('babel')}_num2words_{version('num2words')}",
        description="As these two releases write.",
    )


class AttnjaxSpelt(tfds.core.GeneratorBasedBuilder):
    """Numbers, prices and dates in words, in nine languages, the values of each split its own."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}
    BUILDER_CONFIGS: ClassVar = [_config()]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.Translation(languages=LANGUAGES),
            supervised_keys=("en", "de"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        yield from enumerate(examples(split))


def prepared(data_dir: Path) -> tfds.core.DatasetBuilder:
    """Returns the builder, its data prepared under `data_dir` (once, about half a minute)."""
    return prepared_offline(AttnjaxSpelt, data_dir)
