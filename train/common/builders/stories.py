"""A tensorflow-datasets builder of made-up stories: prepared offline, without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from train.common.builders.offline import prepared_offline
from train.common.builders.story_world import KINDS, Split, stories

SIZES: dict[Split, int] = {"train": 8_000, "validation": 800, "test": 2_000}
"""Stories in each split, as many of each kind."""


class AttnjaxStories(tfds.core.GeneratorBasedBuilder):
    """Stories of people, places and things; one question each that takes one to three facts."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "story": tfds.features.Text(doc="One sentence a line."),
                    "question": tfds.features.Text(),
                    "answer": tfds.features.Text(doc="Empty where the story does not tell."),
                    "supporting": tfds.features.Text(doc="Numbers of sentences, counted from 0."),
                    "kind": tfds.features.ClassLabel(names=list(KINDS)),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict[str, str]]]:
        for key, told in enumerate(stories(split, SIZES[split])):
            yield (
                key,
                {
                    "story": "\n".join(told.sentences),
                    "question": told.question,
                    "answer": told.answer,
                    "supporting": " ".join(map(str, told.supporting)),
                    "kind": told.kind,
                },
            )


def prepared(data_dir: Path) -> tfds.core.DatasetBuilder:
    """Returns the builder, its data prepared under `data_dir` (once, some seconds)."""
    return prepared_offline(AttnjaxStories, data_dir)
