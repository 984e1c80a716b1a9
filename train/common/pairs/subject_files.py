"""E-mails and their subject lines, as AESLC publishes them: a file each, in a folder or .tar.gz."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from train.common.data.files import check_file, decoded
from train.common.pairs.text_pairs import Pair, TextPairs

SUFFIX, MARK = ".subject", "@subject"
ARCHIVES = (".tar.gz", ".tgz", ".tar")
SPLITS = {"train": "train", "validation": "dev", "test": "test"}
"""Which part of the published data is which split."""


def is_subjects(path: Path) -> bool:
    """Whether a path can hold files of this format: an archive or a folder."""
    return path.is_dir() or path.name.endswith(ARCHIVES)


def split_paths(folder: Path) -> dict[str, Path] | None:
    """The parts of a folder that holds `train`, `dev` and `test`; None if it is no such folder.

    Raises:
        FileNotFoundError: only some of them are there.
    """
    found = {}
    for split, name in SPLITS.items():
        ways = [folder / name, *(folder / f"{name}{suffix}" for suffix in ARCHIVES)]
        if there := [path for path in ways if path.exists()]:
            found[split] = there[0]
    if not found:
        return None
    if missing := [SPLITS[split] for split in SPLITS if split not in found]:
        raise FileNotFoundError(
            f"--data {folder}: it holds {', '.join(SPLITS[split] for split in found)}, but no "
            f"{missing[0]}, neither as a folder nor as {missing[0]}.tar.gz"
        )
    return found


def load_subjects(paths: dict[str, Path], encoding: str = "utf-8") -> TextPairs:
    """Reads the splits; the body is the source, the subject line the target.

    Files without a body or a subject are left out and counted; other subject lines that annotators
    wrote (`@ann0` and so on) are not read.

    Args:
        paths: split name to its archive or folder; all three splits.
        encoding: of the files.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: an archive can't be read, or a file has no subject line.
    """
    splits, notes = {}, []
    for split, path in paths.items():
        pairs = [_pair(name, decoded(content, name, encoding)) for name, content in _contents(path)]
        splits[split] = tuple(pair for pair in pairs if pair.source and pair.target)
        if left_out := len(pairs) - len(splits[split]):
            notes.append(f"{path}: left out {left_out} files without a body or a subject")
        if not splits[split]:
            raise ValueError(f"{path}: it holds no file named *{SUFFIX} with a body and a subject")
    origin = ", ".join(str(path) for path in paths.values())
    return TextPairs(splits, origin, tuple(notes))


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file of this format, in the order of their names."""
    if path.is_dir():
        for file in sorted(path.glob(f"*{SUFFIX}")):
            yield str(file), file.read_bytes()
        return
    check_file(path)
    try:
        with tarfile.open(path) as archive:
            members = [m for m in archive if m.isfile() and m.name.endswith(SUFFIX)]
            for member in sorted(members, key=lambda m: m.name):
                content = archive.extractfile(member)
                assert content is not None  # only of what is no regular file
                yield f"{path}, {member.name}", content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole tar archive: {error}") from error


def _pair(place: str, text: str) -> Pair:
    """The body, and the line after the mark that stands alone on its line."""
    body, mark, rest = f"\n{text}".replace("\r\n", "\n").partition(f"\n{MARK}\n")
    if not mark:
        raise ValueError(f"{place}: expected a line {MARK} and the subject after it, got none")
    subject = rest.lstrip("\n").partition("\n")[0]
    return Pair(body.strip(), " ".join(subject.split()))
