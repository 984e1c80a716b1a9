"""Dialogues that book a hotel room, and the hotels: made up, the same on every machine.

The bot asks for what it has not been told, calls the knowledge base, and offers what comes back,
the highest score first; the user takes an offer, wants another, or changes the search, after which
only the new results count. Searches are split: those of the test never occur in training. In the
split `oov` the towns, areas and hotels are other ones than in all other splits.

Dialogues are in the format of dialog-bAbI, which `train.common.dialogue.lines` describes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import product
from typing import Literal, NamedTuple

import numpy as np

Split = Literal["train", "validation", "test", "oov"]
SEEDS: dict[Split, int] = {"train": 0, "validation": 1, "test": 2, "oov": 3}
_SILENCE = "<SILENCE>"
_TOWNS = ("oslo", "porto", "vienna", "bergen", "krakow", "valencia")
_AREAS = ("harbour", "centre", "station")
_OOV_TOWNS = ("riga", "lyon", "tartu", "ghent", "bari", "split")
_OOV_AREAS = ("castle", "museum", "riverside")
_GUESTS = ("one", "two", "four")
_BUDGETS = ("modest", "grand")
_FIRST = (
    *("blue", "golden", "quiet", "old", "little", "white", "green", "silver", "merry"),
    *("royal", "red", "northern", "sunny", "grey", "hidden", "tall", "brave", "gentle"),
)
_SECOND = (
    *("heron", "lantern", "anchor", "crown", "garden", "bridge", "swan", "tower", "mill"),
    *("oak", "fox", "bell", "star", "rose", "wheel", "stag", "sail", "well"),
)
_OOV_FIRST = (
    *("amber", "bold", "crimson", "dusty", "early", "frozen", "glad", "humble", "ivory"),
    *("jolly", "keen", "lucky", "misty", "noble", "open", "proud", "rustic", "swift"),
)
_OOV_SECOND = (
    *("acorn", "badger", "candle", "dolphin", "elm", "falcon", "gate", "harp", "ivy"),
    *("juniper", "kite", "lion", "maple", "nest", "otter", "pine", "quill", "raven"),
)
_PER_SEARCH = 3
"""Hotels that fit one search."""
HELD_OUT = 6
"""Every sixth search is kept for validation and test."""

_GREETINGS = ("hello", "good day", "hi there")
_OPENINGS = ("i need a room", "please find me a hotel", "i would like to book a room")
_PHRASES = {
    "town": ("in {}", "it should be {}", "we are going to {}"),
    "area": ("near the {}", "close to the {}", "by the {}"),
    "guests": ("for {} please", "we are {}", "there will be {} of us"),
    "budget": ("something {}", "a {} place", "make it {}"),
}
_CHANGES = ("actually {}", "sorry , rather {}", "i changed my mind , {}")
_YES = ("yes please", "that sounds good", "i take it")
_NO = ("no , something else", "not that one", "what else is there")
_DONE = ("no , that is all", "nothing else")
_THANKS = ("thank you", "great , thanks")
_ASK = {
    "phone": ("what is the phone number", "can i have their number to call"),
    "address": ("where is it exactly", "what is the address"),
}
WELCOME, SEARCHING, NOTED, BOOKED, BYE, LAST = (
    "welcome , what can i book for you ?",
    "one moment , i am looking",
    "noted , anything else to change ?",
    "it is booked , can i do anything else ?",
    "enjoy your stay",
    "that was all i found , what shall i change ?",
)
QUESTIONS = {
    "town": "which town shall it be ?",
    "area": "which part of town do you like ?",
    "guests": "for how many guests ?",
    "budget": "modest or grand ?",
}


class Search(NamedTuple):
    """What a user wants."""

    town: str
    area: str
    guests: str
    budget: str


class Hotel(NamedTuple):
    """One hotel, found by one search."""

    name: str
    search: Search
    score: int

    def rows(self) -> tuple[str, ...]:
        """What the knowledge base says about it."""
        wanted = [f"{self.name} {name} {value}" for name, value in self.search._asdict().items()]
        return (
            *wanted,
            f"{self.name} score {self.score}",
            *(f"{self.name} {what} {self.name}_{what}" for what in _ASK),
        )


def _searches(towns: tuple[str, ...], areas: tuple[str, ...]) -> list[Search]:
    return [Search(*values) for values in product(towns, areas, _GUESTS, _BUDGETS)]


def _hotels(oov: bool) -> dict[Search, tuple[Hotel, ...]]:
    """The hotels of every search, their names and scores drawn once and for all."""
    searches = _searches(_OOV_TOWNS, _OOV_AREAS) if oov else _searches(_TOWNS, _AREAS)
    first, second = (_OOV_FIRST, _OOV_SECOND) if oov else (_FIRST, _SECOND)
    rng = np.random.default_rng([17, oov])
    names = [f"{a}_{b}" for a, b in product(first, second)]
    names = [names[i] for i in rng.permutation(len(names))]
    found = {}
    for place, search in enumerate(searches):
        scores = rng.permutation(np.arange(1, 10))[:_PER_SEARCH]
        some = names[place * _PER_SEARCH : (place + 1) * _PER_SEARCH]
        found[search] = tuple(Hotel(n, search, int(s)) for n, s in zip(some, scores, strict=True))
    return found


def hotels() -> Iterator[Hotel]:
    """All hotels, those of the split `oov` last."""
    for oov in (False, True):
        for some in _hotels(oov).values():
            yield from some


def knowledge() -> Iterator[str]:
    """The rows of the knowledge base, hotel by hotel."""
    for hotel in hotels():
        yield from hotel.rows()


def candidates() -> Iterator[str]:
    """Everything the bot can say about any hotel, whether a dialogue holds it or not."""
    yield from (WELCOME, SEARCHING, NOTED, BOOKED, BYE, LAST, *QUESTIONS.values())
    for towns, areas in ((_TOWNS, _AREAS), (_OOV_TOWNS, _OOV_AREAS)):
        yield from map(_call, _searches(towns, areas))
    for hotel in hotels():
        yield _offer(hotel)
        yield from (_tell(hotel, what) for what in _ASK)


def dialogues(split: Split, count: int) -> Iterator[str]:
    """Makes dialogues, each one text of numbered lines; dialogue i does not depend on `count`."""
    found = _hotels(split == "oov")
    searches = [
        search
        for place, search in enumerate(found)
        if split == "oov" or (place % HELD_OUT == 0) == (split != "train")
    ]
    for number in range(count):
        talk = _Talk(np.random.default_rng([SEEDS[split], number]), searches, found)
        yield "\n".join(f"{i} {line}" for i, line in enumerate(talk.lines(), 1))


class _Talk:
    """One dialogue in the making."""

    def __init__(
        self,
        rng: np.random.Generator,
        searches: list[Search],
        found: dict[Search, tuple[Hotel, ...]],
    ) -> None:
        self._rng, self._searches, self._found = rng, searches, found

    def lines(self) -> Iterator[str]:
        """Yields the lines without their numbers."""
        yield f"{self._one(_GREETINGS)}\t{WELCOME}"
        search = self._searches[self._rng.integers(len(self._searches))]
        yield from self._request(search)
        changes = int(self._rng.random() < 0.35)
        while True:
            yield f"{_SILENCE}\t{_call(search)}"
            offers = sorted(self._found[search], key=lambda hotel: -hotel.score)
            yield from self._results(offers)
            # All offers are refused only where a change follows, none only where none does.
            refused = changes + int(self._rng.integers(len(offers)))
            user = _SILENCE
            for offer in offers[: refused + (not changes)]:
                yield f"{user}\t{_offer(offer)}"
                user = self._one(_NO)
            if not changes:
                break
            changes -= 1
            if refused == len(offers):
                yield f"{user}\t{LAST}"
            search = yield from self._change(search)
        yield from self._booked(offers[refused])

    def _request(self, search: Search) -> Iterator[str]:
        """The user names some of what is wanted at once, the bot asks for the rest."""
        slots = list(search._asdict())
        known = [slot for slot in slots if self._rng.random() < 0.4]
        told = [self._say(slot, search) for slot in self._rng.permutation(known)]
        user = " ".join([self._one(_OPENINGS), *told])
        for slot in slots:
            if slot not in known:
                yield f"{user}\t{QUESTIONS[slot]}"
                user = self._say(slot, search)
        yield f"{user}\t{SEARCHING}"

    def _results(self, offers: list[Hotel]) -> Iterator[str]:
        for place in self._rng.permutation(len(offers)):
            yield from offers[place].rows()

    def _change(self, old: Search) -> Generator[str, None, Search]:
        """The user changes one or two things; returns the new search."""
        near = [s for s in self._searches if 1 <= _distance(s, old) <= 2]
        new = near[self._rng.integers(len(near))]
        for slot in self._rng.permutation(list(old._fields)):
            if getattr(old, slot) != getattr(new, slot):
                yield f"{self._one(_CHANGES).format(self._say(slot, new))}\t{NOTED}"
        yield f"{self._one(_DONE)}\t{SEARCHING}"
        return new

    def _booked(self, hotel: Hotel) -> Iterator[str]:
        yield f"{self._one(_YES)}\t{BOOKED}"
        for what in self._rng.permutation(list(_ASK))[: self._rng.integers(3)]:
            yield f"{self._one(_ASK[what])}\t{_tell(hotel, what)}"
        yield f"{self._one(_THANKS)}\t{BYE}"

    def _say(self, slot: str, search: Search) -> str:
        return self._one(_PHRASES[slot]).format(getattr(search, slot))

    def _one(self, options: tuple[str, ...]) -> str:
        return options[self._rng.integers(len(options))]


def _distance(a: Search, b: Search) -> int:
    return sum(x != y for x, y in zip(a, b, strict=True))


def _call(search: Search) -> str:
    return " ".join(("api_call", *search))


def _offer(hotel: Hotel) -> str:
    return f"how about {hotel.name} ?"


def _tell(hotel: Hotel, what: str) -> str:
    return f"here you are : {hotel.name}_{what}"
