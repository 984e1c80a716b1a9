"""Dialogues through tensorflow-datasets: our builtin bookings and the public catalogue."""

from __future__ import annotations

from typing import Any

import tensorflow_datasets as tfds

from train.common.data.catalogue import catalogue_builder, read_records
from train.common.data.held_out import SPLITS
from train.common.dialogue.dialogues import SILENCE, Dialogue, DialogueData, Turn, answers_of
from train.common.dialogue.files import filled_up
from train.common.dialogue.lines import read_dialogues
from train.common.dialogue.source import DialogueSource


def load_tfds(config: DialogueSource) -> DialogueData:
    """Reads `builtin` or `tfds:<name>`, preparing it first where that is still to do.

    Raises:
        ValueError: no such data set, or its features are no dialogues.
        ConnectionError: it has to be fetched and the network does not answer.
        MissingExtraError: preparing or reading it needs TensorFlow.
    """
    if config.source == "builtin":
        return _bookings(config)
    builder = catalogue_builder(config.source.removeprefix("tfds:"), config.prepared_dir)
    if "train" not in builder.info.splits:
        raise ValueError(f"{config.source} has no train split, only {sorted(builder.info.splits)}")
    columns = _columns(builder, config)
    notes: list[str] = []
    read = {
        split: _dialogues(builder, split, columns, config, notes)
        for split in SPLITS
        if split in builder.info.splits
    }
    given = {split: tuple(dialogues) for split, dialogues in read.items() if split != "train"}
    splits = {**filled_up(read["train"], given, config, notes), **given}
    ordered = {split: splits[split] for split in SPLITS}
    candidates = answers_of(ordered["train"])
    return DialogueData(ordered, candidates, builder.info.full_name, notes=tuple(notes))


def _bookings(config: DialogueSource) -> DialogueData:
    from train.common.builders import booking

    builder = booking.prepared(config.prepared_dir)

    def texts(split: str) -> list[str]:
        return [record["text"].decode("utf-8") for record in read_records(builder, split)]

    splits: dict[str, tuple[Dialogue, ...]] = {
        split: tuple(
            dialogue
            for text in texts(split)
            for dialogue in read_dialogues(text, split, [], format="babi")
        )
        for split in booking.SIZES
    }
    origin = builder.info.full_name
    return DialogueData(splits, tuple(texts("candidates")), origin, tuple(texts("knowledge")))


def _columns(builder: Any, config: DialogueSource) -> tuple[str, ...]:
    """The features to read: those asked for, the supervised pair, or the only one of text."""
    features = dict(builder.info.features.items())
    texts = [name for name, feature in features.items() if _is_text(feature)]
    columns = config.columns or tuple(builder.info.supervised_keys or ()) or tuple(texts)
    if not 1 <= len(columns) <= 2 or not set(columns) <= set(texts):
        listing = ", ".join(f"{n} ({type(f).__name__})" for n, f in features.items())
        raise ValueError(
            f"{builder.info.full_name}: expected one feature that holds dialogues, or a pair of "
            f"what the user says and what the bot answers, all text; got {list(columns)}, and the "
            f"features are {listing}. Give --data.columns"
        )
    return columns


def _is_text(feature: Any) -> bool:
    inner = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    return isinstance(inner, tfds.features.Text)


def _dialogues(
    builder: Any, split: str, columns: tuple[str, ...], config: DialogueSource, notes: list[str]
) -> list[Dialogue]:
    """The dialogues of a split: texts of lines, lists that alternate, or pairs of two features."""
    found: list[Dialogue] = []
    empty = 0
    dialogues: list[Dialogue]
    for number, record in enumerate(read_records(builder, split)):
        values = [record[column] for column in columns]
        if len(values) == 2:
            pair = [value.decode("utf-8").strip() for value in values]
            dialogues = [(Turn(*pair),)] if all(pair) else []
        elif isinstance(values[0], bytes):
            name, text = f"{split}, record {number}", values[0].decode("utf-8")
            dialogues = (
                read_dialogues(text, name, notes, format=config.format, bot=config.bot)
                if text.strip()
                else []
            )
        else:
            said = [value.decode("utf-8").strip() or SILENCE for value in values[0]]
            turns = tuple(Turn(*pair) for pair in zip(said[::2], said[1::2], strict=False))
            dialogues = [turns] if turns else []
        empty += not dialogues
        found += dialogues
    if empty:
        notes.append(f"{split}: skipped {empty} records without an answer")
    return found
