"""Text and labels through tensorflow-datasets: our builtin corpus and the public catalogue."""

from __future__ import annotations

from typing import Any

import tensorflow_datasets as tfds

from train.common.builders import docstrings
from train.common.data.catalogue import catalogue_builder, read_records
from train.common.data.held_out import SPLITS
from train.common.text.labelled_text import Example, LabelledText, hold_out
from train.common.text.source import TextSource


def load_tfds(config: TextSource) -> LabelledText:
    """Reads `builtin` or `tfds:<name>`, preparing it first where that is still to do.

    Raises:
        ValueError: no such data set, or it is not text with a class label.
        ConnectionError: it has to be fetched and the network does not answer.
        MissingExtraError: preparing or reading it needs TensorFlow.
    """
    if config.source == "builtin":
        builder = docstrings.prepared(config.prepared_dir)
    else:
        builder = catalogue_builder(config.source.removeprefix("tfds:"), config.prepared_dir)
    texts, label = _columns(builder, config)
    if "train" not in builder.info.splits:
        raise ValueError(f"{config.source} has no train split, only {sorted(builder.info.splits)}")
    found = [split for split in SPLITS if split in builder.info.splits]
    splits = {split: _examples(builder, split, texts, label) for split in found}
    notes = []
    unlabelled = sum(builder.info.splits[s].num_examples - len(splits[s]) for s in found)
    if unlabelled:
        notes.append(f"skipped {unlabelled} records without a label")
    missing = {
        split: getattr(config, f"{split}_fraction")
        for split in ("validation", "test")
        if split not in splits
    }
    if missing:
        splits |= hold_out(splits["train"], missing, config.split_seed)
        held = " and ".join(f"{split} ({len(splits[split])})" for split in missing)
        notes.append(f"held out of the training split at random: {held}")
    names = tuple(builder.info.features[label].names)
    return LabelledText(splits, names, origin=builder.info.full_name, notes=tuple(notes))


def _columns(builder: Any, config: TextSource) -> tuple[list[str], str]:
    """The text and label features: as configured, else as the data set's supervised keys say."""
    features = dict(builder.info.features.items())
    keys = builder.info.supervised_keys or (None, None)
    texts = list(config.text_column) or [name for name in keys[:1] if name]
    label = config.label_column or keys[-1]
    is_text = [isinstance(features.get(name), tfds.features.Text) for name in texts]
    is_label = isinstance(features.get(label), tfds.features.ClassLabel)
    if label is None or not (is_text and all(is_text) and is_label):
        listing = ", ".join(f"{n} ({type(f).__name__})" for n, f in features.items())
        raise ValueError(
            f"{builder.info.full_name}: expected text features and one ClassLabel, got text "
            f"{texts} and label {label!r}; its features are {listing}. Give --data.text-column "
            "and --data.label-column"
        )
    return texts, label


def _examples(builder: Any, split: str, texts: list[str], label: str) -> tuple[Example, ...]:
    return tuple(
        Example(" ".join(record[name].decode("utf-8") for name in texts), int(record[label]))
        for record in read_records(builder, split)
        if record[label] >= 0
    )
