"""Dialogues from the lines of a text: the format of dialog-bAbI, and plain transcripts.

dialog-bAbI (Bordes et al., "Learning End-to-End Goal-Oriented Dialog", 2017): `ID user<TAB>bot`;
where the ID is 1 a new dialogue begins; a line without a tab is a row of the knowledge base, which
the bot may use from the next turn on; `<SILENCE>` stands for a user who says nothing.

Transcripts: `NAME: text`, one utterance a line; a blank line ends a conversation. Lines of one
speaker that follow each other are one utterance.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from train.common.dialogue.dialogues import SILENCE, Dialogue, Turn
from train.common.dialogue.source import DialogueFormat

_NUMBERED = re.compile(r"(\d{1,9}) (.*)")
_SPOKEN = re.compile(r"([^\s:][^:]{0,39}?)\s*:(?:\s+(.*))?")
Line = tuple[str, str]
"""A place for messages, and the line there."""


def read_dialogues(
    text: str, name: str, notes: list[str], *, format: DialogueFormat, bot: str | None = None
) -> list[Dialogue]:
    """Reads all dialogues of a text.

    Args:
        text: the whole file.
        name: of the file, for messages.
        notes: gets a line for each kind of thing that was skipped, counted.
        format: how the lines are laid out; auto goes by the first one.
        bot: in transcripts: whose lines are the answers; None: of all but who begins.

    Returns:
        The dialogues, in their order.

    Raises:
        ValueError: a line is not of the format, or there is no dialogue; names file and line.
    """
    lines = [
        (f"{name}, line {number}", line.removesuffix("\r"))
        for number, line in enumerate(text.split("\n"), 1)
    ]
    first = next((line for _, line in lines if line.strip()), "")
    if format == "auto":
        format = "babi" if _NUMBERED.fullmatch(first) else "transcript"
    if format == "babi" and bot is not None:
        raise ValueError(f"{name}: --data.bot goes with transcripts only, and this is dialog-bAbI")
    dialogues = _babi(lines, name, notes) if format == "babi" else _spoken(lines, name, notes, bot)
    if not dialogues:
        raise ValueError(f"{name}: there is no dialogue in it")
    return dialogues


def read_answers(text: str, name: str) -> tuple[str, ...]:
    """Reads a file of candidates: one answer a line, behind a number in the format of dialog-bAbI.

    Raises:
        ValueError: there are none, or one stands twice; names the line.
    """
    found: dict[str, int] = {}
    rows = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    rows = [(number, line) for number, line in rows if line]
    # Numbers in front of every line are the format's, those of some lines their text.
    numbered = all(_NUMBERED.fullmatch(line) for _, line in rows)
    for number, line in rows:
        answer = line.split(" ", 1)[1] if numbered else line
        if answer in found:
            raise ValueError(
                f"{name}, line {number}: the candidate {answer!r} stands in line {found[answer]}, "
                "too"
            )
        found[answer] = number
    if not found:
        raise ValueError(f"{name}: there is no candidate in it")
    return tuple(found)


def _babi(lines: Sequence[Line], name: str, notes: list[str]) -> list[Dialogue]:
    dialogues: list[Dialogue] = []
    turns: list[Turn] = []
    rows: list[str] = []
    last = unused = 0

    def close() -> None:
        nonlocal unused
        unused += len(rows)
        rows.clear()
        if turns:
            dialogues.append(tuple(turns))
            turns.clear()

    for place, line in lines:
        if not line.strip():
            continue
        numbered = _NUMBERED.fullmatch(line)
        if numbered is None:
            raise ValueError(f"{place}: expected `ID user<TAB>bot` or `ID row`, got {line[:60]!r}")
        number, rest = int(numbered[1]), numbered[2]
        if number not in (1, last + 1):
            raise ValueError(
                f"{place}: expected the number {last + 1}, or 1 for a new dialogue, got {number}"
            )
        if number == 1:
            close()
        last = number
        user, *bots = (part.strip() for part in rest.split("\t"))
        if len(bots) > 1 or not user or not all(bots):
            raise ValueError(
                f"{place}: expected what the user says, one tab and what the bot answers (or a row "
                f"of the knowledge base), got {rest[:60]!r}"
            )
        if bots:
            turns.append(Turn(user, bots[0], tuple(rows)))
            rows.clear()
        else:
            rows.append(user)
    close()
    if unused:
        notes.append(f"{name}: skipped {unused} rows of knowledge that no answer follows")
    return dialogues


def _spoken(lines: Sequence[Line], name: str, notes: list[str], bot: str | None) -> list[Dialogue]:
    dialogues = []
    unanswered = silent = 0
    speakers = set()
    for blank, group in groupby(lines, key=lambda line: not line[1].strip()):
        if blank:
            continue
        spoken = _joined(group)
        speakers |= {speaker for speaker, _ in spoken}
        turns, left_over = _turns(spoken, bot)
        if turns:
            dialogues.append(turns)
            unanswered += left_over
        else:
            silent += 1
    if bot is not None and bot not in speakers and speakers:
        some = ", ".join(sorted(speakers)[:10])
        raise ValueError(f"{name}: --data.bot {bot} says nothing; the speakers are {some}")
    if unanswered:
        notes.append(f"{name}: skipped the last words of {unanswered} conversations: no answer")
    if silent:
        notes.append(f"{name}: skipped {silent} conversations without an answer")
    return dialogues


def _joined(lines: Iterable[Line]) -> list[tuple[str, str]]:
    """Speaker and words, lines of one speaker that follow each other put together."""
    spoken: list[tuple[str, str]] = []
    for place, line in lines:
        found = _SPOKEN.fullmatch(line.strip())
        if found is None or not found[2]:
            raise ValueError(f"{place}: expected `NAME: text`, got {line[:60]!r}")
        speaker, words = found[1], found[2]
        if spoken and spoken[-1][0] == speaker:
            spoken[-1] = speaker, f"{spoken[-1][1]} {words}"
        else:
            spoken.append((speaker, words))
    return spoken


def _turns(spoken: Sequence[tuple[str, str]], bot: str | None) -> tuple[Dialogue, bool]:
    """The turns, and whether words without an answer are left; who is not the bot is the user."""
    first = spoken[0][0]

    def answers(speaker: str) -> bool:
        return speaker != first if bot is None else speaker == bot

    turns: list[Turn] = []
    said: list[str] = []
    for answering, group in groupby(spoken, key=lambda pair: answers(pair[0])):
        words = " ".join(text for _, text in group)
        if answering:
            turns.append(Turn(" ".join(said) or SILENCE, words))
            said = []
        else:
            said = [words]
    return tuple(turns), bool(said)
