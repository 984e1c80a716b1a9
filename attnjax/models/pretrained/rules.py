"""Which tensor of theirs is which array of ours, and how one becomes the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

Arrays = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One tensor of theirs, and the arrays of ours that hold the same numbers.

    Attributes:
      theirs: its name.
      ours: paths of parameters, `*` standing for the layer.
      layer: the layer, if the paths have a `*`.
      read: makes ours of theirs.
      write: makes theirs of ours.
    """

    theirs: str
    ours: tuple[str, ...]
    layer: int | None
    read: Callable[[np.ndarray], Arrays]
    write: Callable[[Arrays], np.ndarray]


def same(theirs: str, ours: str, layer: int | None = None) -> Rule:
    """The same array in both."""
    return Rule(theirs, (ours,), layer, lambda x: (x,), lambda xs: xs[0])


def transposed(theirs: str, ours: str, layer: int | None = None) -> Rule:
    """A matrix `[outputs, inputs]` of theirs, `[inputs, outputs]` of ours."""
    return Rule(theirs, (ours,), layer, lambda x: (x.T,), lambda xs: xs[0].T)


def heads(theirs: str, ours: str, layer: int, count: int) -> Rule:
    """A matrix `[N * H, F]` of theirs, `[F, N, H]` of ours."""

    def read(x: np.ndarray) -> Arrays:
        return (x.T.reshape(x.shape[1], count, -1),)

    return Rule(theirs, (ours,), layer, read, lambda xs: xs[0].reshape(xs[0].shape[0], -1).T)


def head_bias(theirs: str, ours: str, layer: int, count: int) -> Rule:
    """A vector `[N * H]` of theirs, `[N, H]` of ours."""
    return Rule(
        theirs, (ours,), layer, lambda x: (x.reshape(count, -1),), lambda xs: xs[0].reshape(-1)
    )


def merged_heads(theirs: str, ours: str, layer: int, count: int) -> Rule:
    """A matrix `[F, N * H]` of theirs, `[N, H, F]` of ours."""

    def read(x: np.ndarray) -> Arrays:
        return (x.T.reshape(count, -1, x.shape[0]),)

    return Rule(theirs, (ours,), layer, read, lambda xs: xs[0].reshape(-1, xs[0].shape[-1]).T)


def interleaved(theirs: str, first: str, second: str, layer: int) -> Rule:
    """An array of theirs whose last axis holds two of ours by turns."""

    def write(xs: Arrays) -> np.ndarray:
        return np.stack(xs, axis=-1).reshape(*xs[0].shape[:-1], -1)

    return Rule(theirs, (first, second), layer, lambda x: (x[..., ::2], x[..., 1::2]), write)
