"""Pairs of texts through tensorflow-datasets."""

from __future__ import annotations

from typing import Any

import tensorflow_datasets as tfds

from train.common.data.catalogue import catalogue_builder, read_records
from train.common.data.held_out import SPLITS
from train.common.pairs.source import PairSource
from train.common.pairs.text_pairs import Pair, TextPairs, hold_out_pairs


def load_pair_tfds(config: PairSource, builder: Any = None) -> TextPairs:
    """Reads a data set of two texts, such as translations, preparing it first if need be.

    Args:
        config: the options; `tfds:NAME` as its source where there is no builder.
        builder: one whose data is prepared.

    Raises:
        ValueError: no such data set, or it does not hold these texts.
        ConnectionError: it has to be fetched and the network does not answer.
        MissingExtraError: preparing or reading it needs TensorFlow.
    """
    if builder is None:
        builder = catalogue_builder(config.source.removeprefix("tfds:"), config.prepared_dir)
    sources, targets = _columns(builder, config)
    if "train" not in builder.info.splits:
        raise ValueError(f"{config.source} has no train split, only {sorted(builder.info.splits)}")
    splits = {
        split: tuple(
            Pair(_text(record, sources), _text(record, targets))
            for record in read_records(builder, split)
        )
        for split in SPLITS
        if split in builder.info.splits
    }
    notes: list[str] = []
    missing = {
        split: getattr(config, f"{split}_fraction") for split in SPLITS[1:] if split not in splits
    }
    if missing:
        splits |= hold_out_pairs(splits["train"], missing, seed=config.split_seed)
        held = " and ".join(f"{split} ({len(splits[split])})" for split in missing)
        notes.append(f"held out of the training split at random: {held}")
    return TextPairs(splits, origin=builder.info.full_name, notes=tuple(notes)).without_empty()


def _text(record: dict[str, Any], columns: list[str]) -> str:
    return " ".join(record[name].decode("utf-8").strip() for name in columns)


def _columns(builder: Any, config: PairSource) -> tuple[list[str], list[str]]:
    """The features of both sides: as configured, else as the data set's supervised keys say."""
    features = dict(builder.info.features.items())
    keys = builder.info.supervised_keys or ()
    keys = keys if len(keys) == 2 else (None, None)
    sources = list(config.source_column) or [name for name in keys[:1] if name]
    targets = list(config.target_column) or [name for name in keys[1:] if name]
    wanted = [*sources, *targets]
    if not (
        sources
        and targets
        and all(isinstance(features.get(name), tfds.features.Text) for name in wanted)
    ):
        listing = ", ".join(f"{n} ({type(f).__name__})" for n, f in features.items())
        raise ValueError(
            f"{builder.info.full_name}: expected text features as source {sources} and target "
            f"{targets}; its features are {listing}. Choose two of them"
        )
    return sources, targets
