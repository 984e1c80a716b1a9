"""Arrays that masks and score_mods look up by position.

An accelerator kernel cannot index an array by a computed position, so an array that varies along
batch, head, query or key is *declared*: it names its axes, and every implementation cuts the tile
it needs. An array that depends on the relative position alone is declared along `R`, so that a
tile needs a vector of it and no lookup per score.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from attnjax.typing import Index

AXES = "BNTS"


@dataclasses.dataclass(frozen=True)
class Operand:
    """An array with one axis letter for each of its dimensions.

    The letters are B, N, T and S, in that order, or B, N and R: entry `r` of R belongs to the
    relative position `k_idx - q_idx = r - (T - 1)`, so that R has `T + S - 1` entries. A dimension
    of size 1 broadcasts along its letter. Inside an implementation, K (key heads, in the place of
    N) and F (features: last, and whole in every tile) are letters too.

    Attributes:
      name: how error messages call it, for example `Segments.q_ids`.
      array: the values.
      axes: the letters, for example `"BT"` for an array `[B, T]`.
    """

    name: str
    array: Array
    axes: str

    @property
    def relative(self) -> bool:
        """Whether the array varies with the relative position."""
        return "R" in self.axes

    def size(self, letter: str) -> int:
        """Returns the size along a letter, 1 if the array does not have it."""
        return dict(zip(self.axes, self.array.shape, strict=True)).get(letter, 1)

    def check(self, sizes: dict[str, int]) -> None:
        """Checks the array against the axis sizes of a call.

        Args:
          sizes: the size of each of B, N, T and S.

        Raises:
          ValueError: if a dimension is neither 1 nor the size of its axis.
        """
        sizes = {**sizes, "R": sizes["T"] + sizes["S"] - 1}
        for letter, size in zip(self.axes, self.array.shape, strict=True):
            if size not in (1, sizes[letter]):
                want = ", ".join(f"{a}={sizes[a]}" for a in self.axes)
                raise ValueError(
                    f"{self.name}: expected shape [{want}] (or 1 along an axis), "
                    f"got {tuple(self.array.shape)}."
                )


Fetch = Callable[[Operand], Array]
"""Gives the part of an operand that belongs to the tile at hand, broadcastable against it."""


def whole(T: int, S: int) -> Fetch:
    """Returns a `Fetch` that gives everything, as `[B|1, N|1, T|1, S|1]`."""

    def fetch(operand: Operand) -> Array:
        array = jnp.asarray(operand.array)
        if not operand.relative:
            return array.reshape([operand.size(a) for a in AXES])
        rows = array.reshape(operand.size("B"), operand.size("N"), -1)
        return rows[..., jnp.arange(S) - jnp.arange(T)[:, None] + (T - 1)]

    return fetch


def gather(index: Index) -> Fetch:
    """Returns a `Fetch` that looks values up one by one, at index arrays of any shape.

    It serves operands along B, N, T and S; one along R does not know its T here.
    """
    positions = dict(zip(AXES, index, strict=True))

    def fetch(operand: Operand) -> Array:
        at = tuple(
            jnp.zeros((), jnp.int32) if size == 1 else positions[a]
            for a, size in zip(operand.axes, operand.array.shape, strict=True)
        )
        return jnp.asarray(operand.array)[at]

    return fetch


def declare(name: str, array: Array, letter: str) -> Operand:
    """Declares an array that varies along `letter`, by its rank.

    Args:
      name: for error messages.
      array: for `N`: `[N]` or `[B, N]`; for `T` or `S`: `[T]`, `[B, T]` or `[B, N, T]`.
      letter: the axis that the array must have.

    Returns:
      The operand.

    Raises:
      ValueError: if it is no array, or no reading of its rank ends in `letter`.
    """
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise ValueError(f"{name}: expected arrays, got {type(array).__name__}.")
    leading = AXES[: AXES.index(letter)].replace("T", "")
    by_rank = {1: letter, 2: "B" + letter, len(leading) + 1: leading + letter}
    if len(array.shape) not in by_rank:
        shapes = " or ".join("[" + ", ".join(axes) + "]" for axes in by_rank.values())
        raise ValueError(f"{name}: expected an array {shapes}, got shape {tuple(array.shape)}.")
    return Operand(name, array, by_rank[len(array.shape)])
