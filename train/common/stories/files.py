"""Stories in the format of the bAbI tasks: a folder of text files, or a tar archive of one.

`ID sentence` or `ID question<TAB>answer<TAB>ids of supporting sentences`; where the ID is 1 a new
story begins. Source: Weston et al., "Towards AI-Complete Question Answering" (2015).
"""

from __future__ import annotations

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from train.common.data.files import decoded
from train.common.stories.data import Story, StoryData, hold_out_groups, natural_order
from train.common.stories.source import StorySource

_NAME = re.compile(r"(?P<task>.+)_(?P<split>train|validation|valid|dev|test)\.txt(\.gz)?")
_SPLITS = {"valid": "validation", "dev": "validation"}
Files = dict[str, dict[str, tuple[str, bytes]]]
"""By task, then by split: a name for messages, and the content."""


def load_story_files(config: StorySource) -> StoryData:
    """Reads the training, test and, where there are any, validation files of every task asked for.

    Of a task without a validation file, whole training stories are held out.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the files are not what was asked for; names the file and the line.
    """
    root = Path(config.source)
    files = _chosen(_files(root, config.folder), config.tasks, root)
    splits: dict[str, list[Story]] = {"train": [], "validation": [], "test": []}
    notes: list[str] = []
    held_out = 0
    for task, by_split in files.items():
        missing = [split for split in ("train", "test") if split not in by_split]
        if missing and config.tasks:
            raise ValueError(
                f"{root}: task {task} has no {missing[0]} file, only {', '.join(sorted(by_split))}"
            )
        if missing:
            notes.append(f"left out task {task}, which has no {missing[0]} file")
            continue
        read = {
            split: read_stories(name, _lines(name, content, config.encoding), task, notes)
            for split, (name, content) in by_split.items()
        }
        train = [story for group in read["train"] for story in group]
        if "validation" in read:
            held = [story for group in read["validation"] for story in group]
        else:
            train, held = hold_out_groups(
                read["train"], config.validation_fraction, config.split_seed
            )
            held_out += len(held)
        splits["train"] += train
        splits["validation"] += held
        splits["test"] += [story for group in read["test"] for story in group]
    if held_out:
        notes.append(f"held out of the training stories at random: validation ({held_out})")
    return StoryData(
        {split: tuple(stories) for split, stories in splits.items()}, str(root), tuple(notes)
    )


def read_stories(name: str, lines: Sequence[str], task: str, notes: list[str]) -> list[list[Story]]:
    """Reads one file.

    Args:
        name: of the file, for messages.
        lines: its lines.
        task: written into each question.
        notes: gets a line when blank lines were skipped.

    Returns:
        The questions, those about one story together.

    Raises:
        ValueError: a line is not of the format.
    """
    groups: list[list[Story]] = []
    sentences: list[str] = []
    places: dict[int, int] = {}
    last, blank = 0, 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            blank += 1
            continue
        place = f"{name}, line {number}"
        identifier, text = _numbered(place, line)
        if identifier == 1:
            sentences, places = [], {}
            groups.append([])
        elif identifier != last + 1:
            raise ValueError(
                f"{place}: expected the number {last + 1}, or 1 for a new story, got {identifier}"
            )
        last = identifier
        if "\t" in text:
            groups[-1].append(_question(place, text, tuple(sentences), places, task))
        else:
            places[identifier] = len(sentences)
            sentences.append(text.strip())
    if blank:
        notes.append(f"{name}: skipped {blank} blank lines")
    if not any(groups):
        raise ValueError(f"{name}: no line holds a question (ID question<TAB>answer<TAB>IDs)")
    return [group for group in groups if group]


def _numbered(place: str, line: str) -> tuple[int, str]:
    identifier, _, text = line.strip("\r\n").partition(" ")
    if not identifier.isdecimal() or int(identifier) < 1 or not text.strip():
        raise ValueError(
            f"{place}: expected a number from 1 on, a space and a sentence, got "
            f"{line.strip()[:60]!r}"
        )
    return int(identifier), text


def _question(
    place: str, text: str, sentences: tuple[str, ...], places: dict[int, int], task: str
) -> Story:
    question, answer, *more = (part.strip() for part in text.split("\t"))
    if not question or not answer or len(more) > 1:
        raise ValueError(
            f"{place}: expected question<TAB>answer<TAB>IDs of supporting sentences, got {text!r}"
        )
    if not sentences:
        raise ValueError(f"{place}: the question {question!r} comes before any sentence")
    supporting = []
    for identifier in (more[0] if more else "").split():
        if not identifier.isdecimal() or int(identifier) not in places:
            raise ValueError(
                f"{place}: {identifier!r} is not the number of an earlier sentence of the story"
            )
        supporting.append(places[int(identifier)])
    return Story(sentences, question, answer, tuple(supporting), task)


def _files(root: Path, folder: str | None) -> Files:
    """Every file whose name says task and split; in an archive of several folders, of one."""
    found: dict[str, Files] = {}
    for path, content in _members(root):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        split = _SPLITS.get(match["split"], match["split"])
        by_split = found.setdefault(str(path.parent), {}).setdefault(match["task"], {})
        name = f"{root}: {path}"
        if split in by_split:
            raise ValueError(f"{name} and {by_split[split][0]} are both the {split} split")
        by_split[split] = (name, content)
    if not found:
        raise ValueError(
            f"{root}: expected files named TASK_train.txt and TASK_test.txt, as qa1_train.txt; "
            "found none"
        )
    if folder is None and len(found) > 1:
        raise ValueError(
            f"{root} holds stories in several folders; give --data.folder, one of "
            f"{', '.join(sorted(found))}"
        )
    chosen = next(iter(found)) if folder is None else str(PurePosixPath(folder))
    if chosen not in found:
        raise ValueError(
            f"--data.folder {folder}: {root} has no stories there, only in "
            f"{', '.join(sorted(found))}"
        )
    return found[chosen]


def _members(root: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Files below a folder or in an archive, by their path in it, in a fixed order."""
    if root.is_dir():
        for path in sorted(root.rglob("*.txt*")):
            if path.is_file():
                yield PurePosixPath(path.relative_to(root).as_posix()), path.read_bytes()
        return
    if not root.is_file():
        raise FileNotFoundError(
            f"--data {root}: no such folder or archive (besides a path, --data takes builtin)"
        )
    try:
        with tarfile.open(root) as archive:
            for member in sorted(archive.getmembers(), key=lambda member: member.name):
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield PurePosixPath(member.name), file.read()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{root}: expected a folder, or a whole .tar or .tar.gz archive: {error}"
        ) from error


def _chosen(files: Files, wanted: Sequence[str], root: Path) -> Files:
    """The tasks asked for, by name or by what is before its first underscore; all by default."""
    ordered = {task: files[task] for task in sorted(files, key=natural_order)}
    if not wanted:
        return ordered
    chosen: Files = {}
    for name in wanted:
        name = f"qa{name}" if name.isdecimal() else name
        fitting = [task for task in ordered if name in (task, task.partition("_")[0])]
        if len(fitting) != 1:
            found = "fits no task" if not fitting else f"fits {', '.join(fitting)}"
            raise ValueError(f"--data.tasks {name}: {found}; {root} has {', '.join(ordered)}")
        chosen[fitting[0]] = ordered[fitting[0]]
    return chosen


def _lines(name: str, content: bytes, encoding: str) -> list[str]:
    try:
        if name.endswith(".gz"):
            content = gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{name}: not a whole gzip file: {error}") from error
    return decoded(content, name, encoding).removesuffix("\n").split("\n")
