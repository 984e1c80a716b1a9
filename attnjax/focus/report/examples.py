"""Examples with maps of where a model looks, and how true these are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Map:
    """Weights over an example's parts.

    Attributes:
        name: the method, such as "attention rollout".
        module: dotted path; None where the map belongs to no one module.
        head: its number; None where it belongs to no one head.
        weights: [T] for tokens and series, [T, S] for alignments, [h, w] for images; NaN where a
            weight was not finite.
    """

    name: str
    module: str | None
    head: int | None
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A text."""

    tokens: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Alignment:
    """A source and what was made of it."""

    source: tuple[str, ...]
    target: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Image:
    """A picture, as a data: address of PNG, JPEG, GIF or WebP."""

    address: str


@dataclasses.dataclass(frozen=True)
class Series:
    """Channels over time: `values` [channels, T], with the channels' names."""

    values: np.ndarray
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Example:
    """One example.

    Attributes:
        title: for people.
        shown: the example itself.
        maps: at least one.
        prediction: the model's answer, or None.
        label: the right answer, or None.
        curves: by method, then "deletion" or "insertion": [P, 2] of share removed (or put back)
            and score. The method "random" is what chance gives. None where nothing was measured.
    """

    title: str
    shown: Tokens | Alignment | Image | Series
    maps: tuple[Map, ...]
    prediction: str | None = None
    label: str | None = None
    curves: Mapping[str, Mapping[str, np.ndarray]] | None = None


@dataclasses.dataclass(frozen=True)
class Faithful:
    """How true one method's maps are, over a test set; None for what was not measured.

    Attributes:
        examples: over how many examples.
        deletion: mean score while what the map marks is removed, strongest first.
        deletion_random: the same, removed in random order.
        margin: by how much `deletion` lies under `deletion_random`; above 0 the map does better
            than chance.
        interval: confidence interval of the margin.
        insertion: mean score while what the map marks is put back, strongest first.
        insertion_random: the same, put back in random order.
        agreement_gradients: rank correlation with integrated gradients.
        agreement_leave_one_out: rank correlation with leaving out one part at a time.
        random_weights: rank correlation with the same map of a model with random weights.
    """

    examples: float | None = None
    deletion: float | None = None
    deletion_random: float | None = None
    margin: float | None = None
    interval: tuple[float, float] | None = None
    insertion: float | None = None
    insertion_random: float | None = None
    agreement_gradients: float | None = None
    agreement_leave_one_out: float | None = None
    random_weights: float | None = None


@dataclasses.dataclass(frozen=True)
class Examples:
    """All of a focus_examples.json that could be read.

    Attributes:
        task: for people; empty where it is not known.
        examples: those that could be read.
        faithful: by method; None where nothing was measured.
        problems: a sentence for everything that is missing or broken.
    """

    task: str
    examples: tuple[Example, ...]
    faithful: Mapping[str, Faithful] | None
    problems: tuple[str, ...]
