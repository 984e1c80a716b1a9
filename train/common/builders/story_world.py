"""A small world of people, places and things, and questions that take one to three facts.

The generator keeps, for everything it tells about, the sentences that its whereabouts follow from.
A person's follow from one sentence, a held or dropped thing's from two, those of a thing inside a
container from three. Which person goes to which place is split: a place that answers a held-out
question is one that its person never visits in the training stories.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

import numpy as np

Option = TypeVar("Option")
Split = Literal["train", "validation", "test"]
PEOPLE = ("Ada", "Boris", "Chen", "Dina", "Emil", "Farah", "Goran", "Hana", "Ivo", "Jana")
PLACES = (
    *("library", "harbour", "bakery", "station", "museum"),
    *("garage", "meadow", "theatre", "cellar", "attic"),
)
THINGS = ("key", "coin", "map", "ring", "letter", "pencil")
CONTAINERS = ("box", "basket", "bag")
KINDS = ("one_fact", "two_facts", "three_facts", "unanswerable")
_GO = ("went to", "walked to", "hurried to", "moved to")
_TAKE = ("took", "picked up", "grabbed")
_DROP = ("put down", "left", "dropped")
_SPLITS: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}
_EVENTS = (4, 16)
"""Fewest and most sentences of a story."""


class Told(NamedTuple):
    """One story with one question."""

    sentences: tuple[str, ...]
    question: str
    answer: str
    """A place; empty where the story does not tell."""
    supporting: tuple[int, ...]
    """Places in `sentences` that the answer follows from, the latest link of the chain last."""
    kind: str


@dataclass
class _World:
    """What has happened so far, and which sentences told it."""

    at: dict[str, str] = field(default_factory=dict)
    """Where each person who was told about is, and each thing that lies somewhere."""
    holder: dict[str, str] = field(default_factory=dict)
    """The person that holds a thing, or the container that it is in."""
    told: dict[str, int] = field(default_factory=dict)
    """The sentence of the last change of each person or thing."""
    visit: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Of a thing that lies somewhere: who left it there, and the sentence of their coming."""
    sentences: list[str] = field(default_factory=list)

    def tell(self, subject: str, sentence: str) -> None:
        self.told[subject] = len(self.sentences)
        self.sentences.append(sentence)

    def place(self, thing: str) -> str | None:
        """Where something is, as far as told."""
        while thing in self.holder:
            thing = self.holder[thing]
        return self.at.get(thing)

    def chain(self, thing: str) -> tuple[str, tuple[int, ...]] | None:
        """The person whose coming settles where something is, and the sentences that tell."""
        links = []
        while thing in self.holder:
            links.append(self.told[thing])
            thing = self.holder[thing]
        if thing in PEOPLE:
            return (thing, (*links, self.told[thing])) if thing in self.at else None
        if thing not in self.visit:
            return None
        person, came = self.visit[thing]
        return person, (*links, self.told[thing], came)


def split_of(person: str, place: str) -> Split:
    """Names the first split whose stories may send a person to a place: 60%, 20%, 20% of pairs."""
    number = (PEOPLE.index(person) + PLACES.index(place)) % 5
    return "train" if number < 3 else "validation" if number == 3 else "test"


def stories(split: Split, count: int) -> Iterator[Told]:
    """Yields stories, the same ones every time, kinds in turn.

    Args:
        split: held-out ones ask for a person at a place that earlier splits never show.
        count: how many.
    """
    rng = np.random.default_rng([2026, _SPLITS[split]])
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        told = None
        while told is None:
            told = _attempt(split, kind, rng)
        yield told


def _attempt(split: Split, kind: str, rng: np.random.Generator) -> Told | None:
    """A story of random events; None if it leaves no question of this kind to ask."""
    world = _World()
    people = [PEOPLE[i] for i in rng.permutation(len(PEOPLE))[: rng.integers(3, 6)]]
    events = rng.integers(_EVENTS[0], _EVENTS[1] + 1)
    while len(world.sentences) < events:
        _event(world, _pick(people, rng), split, rng)
    if kind == "unanswerable":
        unseen = [x for x in (*PEOPLE, *THINGS) if x not in world.told]
        return Told(tuple(world.sentences), _question(_pick(unseen, rng)), "", (), kind)
    links = 1 + KINDS.index(kind)
    found = []
    for subject in world.told:
        chain = world.chain(subject)
        if chain is None or len(chain[1]) != links:
            continue
        place = world.place(subject)
        assert place is not None  # every chain ends with somebody's coming to a place
        if split_of(chain[0], place) == split:
            found.append((subject, place, chain[1]))
    if not found:
        return None
    subject, place, supporting = _pick(found, rng)
    return Told(tuple(world.sentences), _question(subject), place, supporting, kind)


def _question(subject: str) -> str:
    return f"Where is {subject}?" if subject in PEOPLE else f"Where is the {subject}?"


def _event(world: _World, person: str, split: Split, rng: np.random.Generator) -> None:
    """Lets a person do something; tells nothing if what was drawn can't be done."""
    here = world.at.get(person)
    if here is None or rng.random() < 0.4:
        _go(world, person, split, rng)
        return
    held = [x for x, holder in world.holder.items() if holder == person]
    chance = rng.random()
    if chance < 0.5:
        things = [x for x in (*THINGS, *CONTAINERS) if _free(world, x, here)]
        if things and len(held) < 3:
            thing = _pick(things, rng)
            for known in (world.at, world.visit):
                known.pop(thing, None)
            world.holder[thing] = person
            world.tell(thing, f"{person} {_pick(_TAKE, rng)} the {thing}.")
    elif chance < 0.85:
        inside = [x for x in held if x in THINGS]
        around = [x for x in CONTAINERS if x in held or world.at.get(x) == here]
        if inside and around:
            thing, container = _pick(inside, rng), _pick(around, rng)
            world.holder[thing] = container
            world.tell(thing, f"{person} put the {thing} into the {container}.")
    elif held:
        thing = _pick(held, rng)
        del world.holder[thing]
        world.at[thing], world.visit[thing] = here, (person, world.told[person])
        world.tell(thing, f"{person} {_pick(_DROP, rng)} the {thing}.")


def _free(world: _World, thing: str, here: str) -> bool:
    """Whether somebody here can take a thing: it lies here, or nothing was told of it yet."""
    return world.at.get(thing) == here or thing not in world.told


def _go(world: _World, person: str, split: Split, rng: np.random.Generator) -> None:
    places = [
        place
        for place in PLACES
        if _SPLITS[split_of(person, place)] <= _SPLITS[split] and place != world.at.get(person)
    ]
    place = _pick(places, rng)
    world.at[person] = place
    world.tell(person, f"{person} {_pick(_GO, rng)} the {place}.")


def _pick(options: Sequence[Option], rng: np.random.Generator) -> Option:
    """One of the options at random; several times faster than `rng.choice`."""
    return options[int(rng.integers(len(options)))]
