"""Dialogues from files: one for each split, candidates and a knowledge base beside them."""

from __future__ import annotations

from pathlib import Path

from train.common.data.files import read_text
from train.common.dialogue.dialogues import Dialogue, DialogueData, answers_of, hold_out_dialogues
from train.common.dialogue.knowledge import read_knowledge
from train.common.dialogue.lines import read_answers, read_dialogues
from train.common.dialogue.source import DialogueSource

_SPLITS = ("validation", "test", "oov")
_TASK = {"source": "trn", "validation": "dev", "test": "tst", "oov": "tst-OOV"}


def load_files(config: DialogueSource) -> DialogueData:
    """Reads the files of a data set; what has no file is held out of the training file.

    Raises:
        ValueError: a file can't be read as asked.
        FileNotFoundError: a path does not exist.
    """
    paths = _paths(config)
    notes: list[str] = []

    def dialogues(path: Path) -> list[Dialogue]:
        text = read_text(path, config.encoding)
        return read_dialogues(text, str(path), notes, format=config.format, bot=config.bot)

    train = dialogues(paths["source"])
    given = {split: tuple(dialogues(paths[split])) for split in _SPLITS if split in paths}
    splits = {**filled_up(train, given, config, notes), **given}
    ordered = {split: splits[split] for split in ("train", *_SPLITS) if split in splits}
    if "candidates" in paths:
        text = read_text(paths["candidates"], config.encoding)
        candidates = read_answers(text, str(paths["candidates"]))
    else:
        candidates = answers_of(ordered["train"])
    knowledge: tuple[str, ...] = ()
    if "knowledge" in paths:
        text = read_text(paths["knowledge"], config.encoding)
        knowledge = read_knowledge(text, str(paths["knowledge"]))
    return DialogueData(ordered, candidates, str(paths["source"]), knowledge, tuple(notes))


def filled_up(
    train: list[Dialogue],
    given: dict[str, tuple[Dialogue, ...]],
    config: DialogueSource,
    notes: list[str],
) -> dict[str, tuple[Dialogue, ...]]:
    """Returns `train` and those of validation and test that are not given, held out of it."""
    missing = {
        split: getattr(config, f"{split}_fraction")
        for split in ("validation", "test")
        if split not in given
    }
    splits = hold_out_dialogues(train, missing, seed=config.split_seed)
    if missing:
        held = " and ".join(f"{split} ({len(splits[split])})" for split in missing)
        notes.append(f"held out of the training dialogues at random: {held}")
    return splits


def _paths(config: DialogueSource) -> dict[str, Path]:
    """The files of a data set by what they hold; `source` is the training file."""
    if config.task is None:
        names = ("source", *_SPLITS, "candidates", "knowledge")
        return {name: Path(getattr(config, name)) for name in names if getattr(config, name)}
    folder = Path(config.source)
    if not folder.is_dir():
        raise FileNotFoundError(f"--data {folder}: with --data.task expected a folder")
    files = {what: f"task{config.task}{part}" for what, part in _TASK.items()}
    files |= {"candidates": "candidates", "knowledge": "kb-all"}
    return {what: _either(folder / f"dialog-babi-{name}.txt") for what, name in files.items()}


def _either(path: Path) -> Path:
    """The file, or if it is only there packed, that one."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path
