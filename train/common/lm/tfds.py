"""Documents through tensorflow-datasets: our builtin corpus and the public catalogue."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import tensorflow_datasets as tfds

from train.common.builders import docstrings
from train.common.data.catalogue import catalogue_builder, read_records
from train.common.lm.documents import SPLITS, Documents, hold_out
from train.common.lm.source import DocumentSource


def load_tfds(config: DocumentSource) -> Documents:
    """Reads `builtin` or `tfds:<name>`, preparing it first where that is still to do.

    Raises:
        ValueError: no such data set, or none of its features is the text.
        ConnectionError: it has to be fetched and the network does not answer.
        MissingExtraError: preparing or reading it needs TensorFlow.
    """
    source = config.source[0]
    if source == "builtin":
        return _docstrings(config)
    builder = catalogue_builder(source.removeprefix("tfds:"), config.prepared_dir)
    if "train" not in builder.info.splits:
        raise ValueError(f"{source} has no train split, only {sorted(builder.info.splits)}")
    column = _column(builder, config)
    notes: list[str] = []
    splits: dict[str, tuple[str, ...]] = {}
    for split in SPLITS:
        if split in builder.info.splits:
            texts = [record[column].decode("utf-8") for record in read_records(builder, split)]
            splits[split] = tuple(text for text in texts if text.strip())
            if len(splits[split]) < len(texts):
                empty = len(texts) - len(splits[split])
                notes.append(f"{split}: skipped {empty} empty documents")
    missing = {
        split: getattr(config, f"{split}_fraction") for split in SPLITS[1:] if split not in splits
    }
    held, note = hold_out(splits["train"], missing, how=config.hold_out, seed=config.split_seed)
    found = {**splits, **held}
    ordered = {split: found[split] for split in SPLITS if split in found}
    return Documents(ordered, builder.info.full_name, tuple(n for n in (*notes, note) if n))


def _docstrings(config: DocumentSource) -> Documents:
    """A document is what is left of one docstring, a sentence a line."""
    builder = docstrings.prepared(config.prepared_dir)
    splits = {}
    for split in SPLITS:
        records = sorted(read_records(builder, split), key=lambda record: record["place"])
        splits[split] = tuple(
            "\n".join(record["text"].decode("utf-8") for record in group)
            for _, group in groupby(records, key=lambda record: record["owner"])
        )
    return Documents(splits, builder.info.full_name)


def _column(builder: Any, config: DocumentSource) -> str:
    """The feature that holds the text: the one asked for, the input, or the only one there is."""
    features = dict(builder.info.features.items())
    texts = [n for n, f in features.items() if isinstance(f, tfds.features.Text)]
    supervised = (builder.info.supervised_keys or (None,))[0]
    asked = config.column or (supervised if supervised in texts else None)
    wanted = texts if asked is None else [asked]
    if len(wanted) != 1 or wanted[0] not in texts:
        listing = ", ".join(f"{n} ({type(f).__name__})" for n, f in features.items())
        raise ValueError(
            f"{builder.info.full_name}: expected one text feature, got {wanted}; its features are "
            f"{listing}. Give --data.column"
        )
    return wanted[0]
