"""A chat in the terminal: lines in, answers out, the dialogue so far in mind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from train.common.dialogue.dialogues import SILENCE, Turn
from train.common.dialogue.knowledge import KnowledgeBase

HELP = "/reset begins anew, /quit ends; an empty line says nothing"
_CALLS = 3
"""Calls in a row that are answered before the user speaks again."""


class Answerer(Protocol):
    """What can answer in a dialogue."""

    def stream(self, turns: Sequence[Turn], user: str, rows: Sequence[str]) -> Iterator[str]:
        """Yields the pieces of the answer to `user` as they come, after `turns`."""
        ...


class Talk:
    """A dialogue under way.

    Args:
        answerer: gives the answers.
        knowledge: what calls ask; None answers none.
    """

    def __init__(self, answerer: Answerer, knowledge: KnowledgeBase | None = None):
        self._answerer, self._knowledge = answerer, knowledge
        self.turns: list[Turn] = []

    def hear(self, user: str) -> Iterator[str]:
        """Yields the answer to what the user says, piece by piece, a line feed after each answer.

        An answer that calls the knowledge base gets its rows at once, and the bot goes on.
        """
        rows: tuple[str, ...] = ()
        for _ in range(_CALLS):
            pieces = []
            for piece in self._answerer.stream(self.turns, user, rows):
                pieces.append(piece)
                yield piece
            yield "\n"
            answer = "".join(pieces)
            self.turns.append(Turn(user, answer, rows))
            found = self._knowledge.ask(answer) if self._knowledge else None
            if found is None:
                return
            yield f"[{len(found)} rows of the knowledge base fit]\n"
            if not found:
                return
            user, rows = SILENCE, found


def converse(
    answerer: Answerer,
    lines: Iterable[str],
    write: Callable[[str], object],
    *,
    knowledge: KnowledgeBase | None = None,
) -> None:
    """Holds a dialogue until the lines end or one of them is /quit.

    Args:
        answerer: gives the answers.
        lines: what the user types.
        write: gets every piece of text as soon as it is there.
        knowledge: what calls ask; None answers none.
    """
    talk = Talk(answerer, knowledge)
    for line in lines:
        said = line.strip()
        if said == "/quit":
            return
        if said == "/reset":
            talk = Talk(answerer, knowledge)
            write("[a new dialogue]\n")
        elif said.startswith("/"):
            write(f"[{said.split()[0]} is no command: {HELP}]\n")
        else:
            for piece in talk.hear(said or SILENCE):
                write(piece)
