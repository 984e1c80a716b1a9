"""A tensorflow-datasets builder of the docstring corpus: prepared offline, without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy
import tensorflow_datasets as tfds

from train.common.builders.docstring_corpus import SUBPACKAGES, corpus, split_of
from train.common.builders.offline import prepared_offline

SPLITS = ("train", "validation", "test")


def _config() -> tfds.core.BuilderConfig:
    """The corpus of the installed libraries; other versions have other sentences."""
    return tfds.core.BuilderConfig(
        name=f"numpy_{np.__version__}_scipy_{scipy.__version__}",
        description="Docstrings of these two releases.",
    )


class AttnjaxDocstrings(tfds.core.GeneratorBasedBuilder):
    """Sentences of NumPy's and SciPy's docstrings, labelled by sub-package, split by function."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release.", "1.1.0": "Places in the corpus."}
    BUILDER_CONFIGS: ClassVar = [_config()]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=list(SUBPACKAGES)),
                    "owner": tfds.features.Text(),
                    "place": tfds.features.Scalar(np.int32),
                }
            ),
            supervised_keys=("text", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str | int]]]:
        for key, sentence in enumerate(corpus()):
            if split_of(sentence.owner) == split:
                # Stored records come in another order.
                yield key, {**sentence._asdict(), "place": key}


def prepared(data_dir: Path) -> tfds.core.DatasetBuilder:
    """Returns the builder, its data prepared under `data_dir` (once, about 5 s)."""
    return prepared_offline(AttnjaxDocstrings, data_dir)
