"""Numbers, prices and dates written out in nine languages, by num2words and Babel.

What is written follows from the versions of both libraries; the data fingerprint in a run's
manifest says which it was.
"""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import Iterator
from decimal import Decimal
from functools import cache

from babel.dates import format_date
from num2words import num2words

LANGUAGES = ("en", "de", "fr", "es", "it", "nl", "pt", "fi", "ru")
SIZES = {"train": 12_000, "validation": 500, "test": 1_000}
"""Values in each split; no value is in two of them."""
LARGEST = 999_999
_FIRST_DAY, _LAST_DAY = datetime.date(1700, 1, 1), datetime.date(2199, 12, 31)
_DIGITS = re.compile(r"(\d+)(\.?)")

Value = int | tuple[int, int] | datetime.date
"""A number, an amount of euros and cents, or a date."""


def values(seed: int = 0) -> dict[str, list[Value]]:
    """Draws distinct values for each split: two numbers, two prices and a date in every five.

    Numbers are drawn by their digits, so that short ones are there, too.

    Args:
        seed: of the draws.
    """
    rng = random.Random(seed)
    seen: dict[Value, None] = {}
    while len(seen) < sum(SIZES.values()):
        seen[_draw(rng, kind=len(seen) % 5)] = None
    found = iter(seen)
    # Held-out values come last: most of the few short numbers there are stand in training.
    return {split: [next(found) for _ in range(size)] for split, size in SIZES.items()}


def spelt(value: Value, language: str) -> str:
    """Writes a value out in words.

    Args:
        value: what.
        language: one of `LANGUAGES`.
    """
    if isinstance(value, datetime.date):
        # Babel knows the order of the parts, the names of days and months and what joins them.
        written = format_date(value, format="full", locale=language)
        return _DIGITS.sub(lambda number: _in_a_date(number, language), written)
    if isinstance(value, tuple):
        amount = Decimal(100 * value[0] + value[1]) / 100
        return _clean(num2words(amount, lang=language, to="currency", currency="EUR"))
    return _cardinal(value, language)


def examples(split: str) -> Iterator[dict[str, str]]:
    """Yields every value of a split in all languages, by language."""
    for value in values()[split]:
        yield {language: spelt(value, language) for language in LANGUAGES}


def _draw(rng: random.Random, kind: int) -> Value:
    if kind < 2:
        return rng.randrange(10 ** rng.randint(2, len(str(LARGEST))))
    if kind < 4:
        return rng.randrange(10 ** rng.randint(1, 4)), rng.randrange(100)
    return _FIRST_DAY + datetime.timedelta(rng.randrange((_LAST_DAY - _FIRST_DAY).days + 1))


def _in_a_date(number: re.Match[str], language: str) -> str:
    """A day or a year; a full stop makes an ordinal of it, as in `12. März`."""
    n = int(number[1])
    if number[2] and n <= 31:
        return _ordinal(n, language)
    return (_year(n, language) if n > 31 else _cardinal(n, language)) + number[2]


@cache
def _cardinal(n: int, language: str) -> str:
    return _clean(num2words(n, lang=language))


@cache
def _ordinal(n: int, language: str) -> str:
    return _clean(num2words(n, lang=language, to="ordinal"))


@cache
def _year(n: int, language: str) -> str:
    return _clean(num2words(n, lang=language, to="year"))


def _clean(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
