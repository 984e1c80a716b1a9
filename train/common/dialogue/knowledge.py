"""`KnowledgeBase`: rows `entity attribute value`, and what a call asks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CALL = "api_call"
"""First word of an answer that asks the knowledge base; its arguments follow."""


@dataclass(frozen=True)
class KnowledgeBase:
    """What is known about entities: for each the rows about it, in their order."""

    entities: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, rows: Sequence[str]) -> KnowledgeBase:
        """Groups rows by their first word."""
        entities: dict[str, list[str]] = {}
        for row in rows:
            entities.setdefault(row.split(maxsplit=1)[0], []).append(row)
        return cls({entity: tuple(about) for entity, about in entities.items()})

    def ask(self, answer: str) -> tuple[str, ...] | None:
        """Returns the rows that a call asks for.

        Args:
            answer: what the bot says: `api_call` and values.

        Returns:
            All rows of the entities that have every one of the values, in the order of the
            knowledge base; nothing without values; None where the answer is no call.
        """
        name, *values = answer.split()
        if name != CALL:
            return None
        found: list[str] = []
        for rows in self.entities.values():
            has = {word for row in rows for word in row.split()[2:]}
            if values and has.issuperset(values):
                found += rows
        return tuple(found)


def read_knowledge(text: str, name: str) -> tuple[str, ...]:
    """Reads a knowledge base: `entity attribute value` in each line, a number before it or not.

    Args:
        text: the whole file; tabs are as good as spaces.
        name: of the file, for messages.

    Returns:
        The rows, their parts separated by one space.

    Raises:
        ValueError: a line is no row, or there are none; names the line.
    """
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if words and words[0].isdecimal():
            words = words[1:]
        if len(words) >= 3:
            rows.append(" ".join(words))
        elif line.strip():
            raise ValueError(
                f"{name}, line {number}: expected `entity attribute value`, got {line[:60]!r}"
            )
    if not rows:
        raise ValueError(f"{name}: there is no row of knowledge in it")
    return tuple(rows)
