"""The statistics of heads, in words."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator


@dataclasses.dataclass(frozen=True)
class Statistic:
    """A statistic of a head.

    Attributes:
        name: in focus.jsonl.
        title: for people.
        unit: of its numbers; empty for a plain number.
        meaning: what low and high say.
        ends: that it has by its nature, or None.
        warnings: kinds of warnings that rest on it.
    """

    name: str
    title: str
    unit: str
    meaning: str
    ends: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()


_KNOWN = (
    Statistic(
        "entropy",
        "Entropy",
        "nats",
        "How widely a head spreads its weights. 0: all on one key.",
        warnings=("entropy_collapse", "uniform"),
    ),
    Statistic(
        "share",
        "Entropy share",
        "of maximum",
        "Entropy over the largest that the mask allows. Near 0 the head has collapsed onto single "
        "keys; at 1 it looks everywhere alike.",
        ends=(0.0, 1.0),
        warnings=("entropy_collapse", "uniform"),
    ),
    Statistic(
        "keys",
        "Effective keys",
        "keys",
        "Among how many keys the weights are spread, as the exponential of the entropy.",
    ),
    Statistic(
        "max_logit",
        "Largest logit",
        "",
        "The largest score before the softmax. Steady growth comes before divergence.",
        warnings=("logit_growth",),
    ),
    Statistic(
        "logsumexp_sq",
        "Squared logsumexp",
        "",
        "What a z-loss would keep small: the drift of all logits together.",
    ),
    Statistic(
        "sink_mass",
        "Weight on the sink",
        "share",
        "Weight on the first key. At 1 the head looks at nothing else.",
        ends=(0.0, 1.0),
        warnings=("sink",),
    ),
    Statistic(
        "distance",
        "Mean distance",
        "positions",
        "How far from its own position a head looks, under its weights.",
    ),
    Statistic(
        "output",
        "Output size",
        "RMS",
        "Root mean square of what the head adds to the residual stream. Near 0 it does nothing.",
        warnings=("dead",),
    ),
    Statistic(
        "duplicate",
        "Nearest head",
        "distance, 0 to 1",
        "How far a head's weights are from those of the head of its module that is nearest. 0: the "
        "two look alike; 1: they have nothing in common.",
        ends=(0.0, 1.0),
        warnings=("duplicate",),
    ),
)
_WARNINGS = {
    "entropy_collapse": "entropy collapse",
    "logit_growth": "logit growth",
    "sink": "all on the sink",
    "uniform": "uniform attention",
    "duplicate": "duplicate head",
    "dead": "dead head",
}


def statistics(names: Iterable[str]) -> list[Statistic]:
    """The statistics of these names: known ones in their order, then the others as they come."""
    wanted = list(names)
    known = [x for x in _KNOWN if x.name in wanted]
    others = [x for x in wanted if x not in {y.name for y in known}]
    return known + [
        Statistic(x, x.replace("_", " "), "", "A statistic of its own.") for x in others
    ]


def event_name(what: str) -> str:
    """The kind of a warning or remedy, for people."""
    return _WARNINGS.get(what, what.replace("_", " "))


def short_names(modules: Iterable[str]) -> dict[str, str]:
    """Of every module path the shortest part that no other path has: "layers.0" of a stack.

    Such a part does not begin with a number, which would say little; the last of several counts.
    """
    paths = {name: name.split(".") for name in modules}
    if len(paths) == 1:
        return {name: name for name in paths}
    owners = Counter(part for path in paths.values() for part in {*_parts(path)})
    return {
        name: next((part for part in _parts(path) if owners[part] == 1), name)
        for name, path in paths.items()
    }


def _parts(path: list[str]) -> Iterator[str]:
    """The stretches of a path that do not begin with a number: short ones first, the last first."""
    for length in range(1, len(path) + 1):
        for start in range(len(path) - length, -1, -1):
            if not path[start].isdigit():
                yield ".".join(path[start : start + length])
