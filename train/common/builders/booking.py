"""A tensorflow-datasets builder of booking dialogues: prepared offline, without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from train.common.builders.booking_world import Split, candidates, dialogues, knowledge
from train.common.builders.offline import prepared_offline

SIZES: dict[Split, int] = {"train": 1_500, "validation": 300, "test": 500, "oov": 500}
"""Dialogues in each split."""


class AttnjaxBooking(tfds.core.GeneratorBasedBuilder):
    """Dialogues that book a hotel room with the help of a knowledge base of made-up hotels."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(
                        doc="A dialogue in the format of dialog-bAbI; one answer to choose from in "
                        "the split candidates, one row of the knowledge base in knowledge."
                    )
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager
        return {
            **{s: self._generate_examples(dialogues(s, size)) for s, size in SIZES.items()},
            "candidates": self._generate_examples(candidates()),
            "knowledge": self._generate_examples(knowledge()),
        }

    def _generate_examples(self, texts: Iterator[str]) -> Iterator[tuple[int, dict[str, str]]]:
        for key, text in enumerate(texts):
            yield key, {"text": text}


def prepared(data_dir: Path) -> tfds.core.DatasetBuilder:
    """Returns the builder, its data prepared under `data_dir` (once, some seconds)."""
    return prepared_offline(AttnjaxBooking, data_dir)
