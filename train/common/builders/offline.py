"""Data sets of our own builders, prepared once without a network."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import tensorflow_datasets as tfds

from train.common.builders.quiet import quiet


def prepared_offline(
    builder_class: type[tfds.core.GeneratorBasedBuilder], data_dir: Path
) -> tfds.core.DatasetBuilder:
    """Returns a builder, its data prepared under `data_dir`.

    The data set is made in a folder of its own and moved into place whole, so that processes that
    start together neither wait for each other nor read half a data set.
    """
    with quiet():
        builder = builder_class(data_dir=str(data_dir), file_format="array_record")
        if builder.is_prepared():
            return builder
        _prepare(builder_class, data_dir, Path(builder.data_dir))
        return builder_class(data_dir=str(data_dir), file_format="array_record")


def _prepare(
    builder_class: type[tfds.core.GeneratorBasedBuilder], data_dir: Path, target: Path
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=".preparing-") as scratch:
        fresh = builder_class(data_dir=scratch, file_format="array_record")
        fresh.download_and_prepare()
        try:
            os.rename(fresh.data_dir, target)
        except OSError:
            # Another process was faster; its data set is the same.
            if not target.is_dir():
                raise
