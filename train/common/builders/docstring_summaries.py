"""Texts and their summaries on every machine: docstrings without, and as, their first line."""

from __future__ import annotations

from typing import NamedTuple

from train.common.builders.docstring_corpus import (
    SIGNATURE,
    documented_objects,
    normalised,
    paragraphs,
    plain,
)

SUMMARY_WORDS = 3, 30
"""Fewest and most words of a first line that sums up."""
MIN_BODY_WORDS = 15


class Summarised(NamedTuple):
    """A docstring in two parts."""

    body: str
    """Its prose but for the first paragraph, a line per paragraph, examples left out."""
    summary: str
    """Its first paragraph."""
    owner: str
    """Dotted name of the function, class or method: splits go by this."""


def summaries() -> list[Summarised]:
    """Collects the docstrings of NumPy and SciPy that have both parts, in a fixed order.

    Docstrings of which either part is that of another one, but for case and punctuation, are left
    out, so that nothing stands in two splits.
    """
    kept: list[Summarised] = []
    seen: set[str] = set()
    for _, owner, docstring in documented_objects():
        lines = [plain(paragraph) for paragraph in paragraphs(docstring)]
        first, *rest = [line for line in lines if not SIGNATURE.fullmatch(line)] or [""]
        body = "\n".join(rest)
        fewest, most = SUMMARY_WORDS
        if not fewest <= len(first.split()) <= most or len(body.split()) < MIN_BODY_WORDS:
            continue
        keys = {f"summary {normalised(first)}", f"body {normalised(body)}"}
        if not keys & seen:
            kept.append(Summarised(body, first, owner))
        seen |= keys
    return kept
