"""A tensorflow-datasets builder of docstrings and their first lines, prepared offline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy
import tensorflow_datasets as tfds

from train.common.builders.docstring_corpus import split_of
from train.common.builders.docstring_summaries import summaries
from train.common.builders.offline import prepared_offline

SPLITS = ("train", "validation", "test")


def _config() -> tfds.core.BuilderConfig:
    """The docstrings of the installed libraries; other versions have others."""
    return tfds.core.BuilderConfig(
        name=f"numpy_{np.__version__}_scipy_{scipy.__version__}",
        description="Docstrings of these two releases.",
    )


class AttnjaxDocstringSummaries(tfds.core.GeneratorBasedBuilder):
    """Docstrings of NumPy and SciPy without their first line, and that line, split by function."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}
    BUILDER_CONFIGS: ClassVar = [_config()]

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict({"body": text, "summary": text, "owner": text}),
            supervised_keys=("body", "summary"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        for key, one in enumerate(summaries()):
            if split_of(one.owner) == split:
                yield key, one._asdict()


def prepared(data_dir: Path) -> tfds.core.DatasetBuilder:
    """Returns the builder, its data prepared under `data_dir` (once, about 10 s)."""
    return prepared_offline(AttnjaxDocstringSummaries, data_dir)
