"""Hypothesis strategies for sizes and masks, each mask with its meaning in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import attnjax
from tests.oracle import Allowed

Draw = Callable[[st.SearchStrategy], Any]


class Sizes(NamedTuple):
    """Axis sizes of a call; pairwise different where they can be, so that no swap goes unseen."""

    B: int
    T: int
    S: int
    N: int
    K: int
    H: int
    D: int


class MaskCase(NamedTuple):
    """A mask, and what it says of one position."""

    mask: attnjax.Mask
    allowed: Allowed


SIZES = st.sampled_from(
    [
        Sizes(B=2, T=11, S=13, N=6, K=3, H=5, D=7),
        Sizes(B=2, T=17, S=7, N=3, K=3, H=4, D=5),
        Sizes(B=1, T=19, S=19, N=4, K=1, H=3, D=2),
        Sizes(B=3, T=1, S=13, N=4, K=2, H=2, D=3),
        Sizes(B=2, T=5, S=1, N=2, K=2, H=3, D=4),
    ]
)


def generator(draw: Draw) -> np.random.Generator:
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1)))


def _either(draw: Draw, array: np.ndarray) -> Any:
    return jnp.asarray(array) if draw(st.booleans()) else array


def _number(draw: Draw, size: Sizes, low: int, high: int) -> tuple[Any, Callable[[int], int]]:
    """Draws an integer, or an integer array `[]` or `[B]`, and its value for a batch element."""
    shape = draw(st.sampled_from([None, (), (size.B,)]))
    if shape is None:
        number = draw(st.integers(low, high))
        return number, lambda b: number
    array = generator(draw).integers(low, high + 1, shape).astype(np.int32)
    return _either(draw, array), lambda b: int(np.broadcast_to(array, (size.B,))[b])


def along(draw: Draw, size: Sizes, letter: str, values: Callable[[tuple], np.ndarray]) -> Any:
    """Draws an array `[X]`, `[B, X]` or `[B, N, X]`, and its value at (b, h, x)."""
    length = getattr(size, letter)
    lead = draw(st.sampled_from([(), (size.B,), (size.B, size.N)]))
    array = values((*lead, length))
    full = np.broadcast_to(
        array.reshape(*lead, *(1,) * (2 - len(lead)), length), (size.B, size.N, length)
    )
    return array, lambda b, h, x: full[b, h, x]


def _full(draw: Draw, size: Sizes) -> MaskCase:
    return MaskCase(attnjax.Full(), lambda b, h, i, j: True)


def _causal(draw: Draw, size: Sizes) -> MaskCase:
    offset, of = _number(draw, size, -size.T, size.S)
    return MaskCase(attnjax.Causal(offset), lambda b, h, i, j: i + of(b) >= j)


def _window(draw: Draw, size: Sizes) -> MaskCase:
    left, left_of = _number(draw, size, -2, size.T)
    right, right_of = _number(draw, size, -2, size.S)
    open_left, open_right = draw(st.booleans()), draw(st.booleans())
    return MaskCase(
        attnjax.Window(None if open_left else left, None if open_right else right),
        lambda b, h, i, j: (
            (open_left or i - left_of(b) <= j) and (open_right or j <= i + right_of(b))
        ),
    )


def _prefix(draw: Draw, size: Sizes) -> MaskCase:
    length, of = _number(draw, size, 0, size.S + 1)
    return MaskCase(attnjax.Prefix(length), lambda b, h, i, j: j < of(b))


def _lengths(draw: Draw, size: Sizes) -> MaskCase:
    q, q_of = _number(draw, size, 0, size.T + 1)
    kv, kv_of = _number(draw, size, 0, size.S + 1)
    return MaskCase(attnjax.Lengths(q, kv), lambda b, h, i, j: i < q_of(b) and j < kv_of(b))


def _segments(draw: Draw, size: Sizes) -> MaskCase:
    rng = generator(draw)
    in_order = draw(st.booleans())

    def ids(length: int) -> np.ndarray:
        shape = (length,) if draw(st.booleans()) else (size.B, length)
        drawn = rng.integers(-1, 3, shape).astype(np.int32)
        return np.sort(drawn, axis=-1) if in_order else drawn

    q_ids = ids(size.T)
    kv_ids = None if size.T == size.S and draw(st.booleans()) else ids(size.S)
    q_full = np.broadcast_to(q_ids, (size.B, size.T))
    kv_full = q_full if kv_ids is None else np.broadcast_to(kv_ids, (size.B, size.S))
    mask = attnjax.Segments(_either(draw, q_ids), None if kv_ids is None else _either(draw, kv_ids))
    return MaskCase(mask, lambda b, h, i, j: bool(q_full[b, i] == kv_full[b, j]))


def _strided(draw: Draw, size: Sizes) -> MaskCase:
    stride = draw(st.integers(1, 6))
    return MaskCase(attnjax.Strided(stride), lambda b, h, i, j: (i - j) % stride == 0)


def _where(draw: Draw, size: Sizes) -> MaskCase:
    kind = draw(st.sampled_from(["plain", "declared", "ruled", "closure"]))
    if kind == "plain":
        return MaskCase(
            attnjax.Where(lambda b, h, q, k: (3 * q + 5 * k + b + h) % 4 != 0),
            lambda b, h, i, j: (3 * i + 5 * j + b + h) % 4 != 0,
        )
    if kind == "ruled":
        gap = draw(st.integers(-3, 5))
        return MaskCase(
            attnjax.Where(
                lambda b, h, q, k: q - k >= gap,
                block_rule=lambda q_lo, q_hi, k_lo, k_hi: (q_hi - k_lo >= gap, q_lo - k_hi >= gap),
            ),
            lambda b, h, i, j: i - j >= gap,
        )
    rng = generator(draw)
    if kind == "closure":
        table = jnp.asarray(rng.random((size.N, size.T, size.S)) < 0.6)
        known = np.asarray(table)
        return MaskCase(
            attnjax.Where(lambda b, h, q, k: table[h, q, k]),
            lambda b, h, i, j: bool(known[h, i, j]),
        )

    def values(shape: tuple) -> np.ndarray:
        return rng.integers(0, 5, shape).astype(np.int32)

    rows, row_of = along(draw, size, "T", values)
    keys, key_of = along(draw, size, "S", values)
    return MaskCase(
        attnjax.Where(
            lambda b, h, q, k, row, key: (row + key["part"] + h) % 3 != 0,
            per_query=_either(draw, rows),
            per_key={"part": _either(draw, keys)},
        ),
        lambda b, h, i, j: int(row_of(b, h, i) + key_of(b, h, j) + h) % 3 != 0,
    )


def _dense(draw: Draw, size: Sizes) -> MaskCase:
    full = (size.B, size.N, size.T, size.S)
    rank = draw(st.integers(0, 4))
    shape = tuple(n if draw(st.booleans()) else 1 for n in full[4 - rank :])
    array = np.asarray(generator(draw).random(shape) < 0.6)
    known = np.broadcast_to(array, full)
    return MaskCase(attnjax.Dense(_either(draw, array)), lambda b, h, i, j: bool(known[b, h, i, j]))


LEAVES: dict[str, Callable[[Draw, Sizes], MaskCase]] = {
    "Full": _full,
    "Causal": _causal,
    "Window": _window,
    "Prefix": _prefix,
    "Lengths": _lengths,
    "Segments": _segments,
    "Strided": _strided,
    "Where": _where,
    "Dense": _dense,
}


@st.composite
def leaves(draw: Draw, size: Sizes, names: tuple[str, ...] = tuple(LEAVES)) -> MaskCase:
    """Draws one leaf."""
    return LEAVES[draw(st.sampled_from(names))](draw, size)


@st.composite
def masks(draw: Draw, size: Sizes, depth: int = 3) -> MaskCase:
    """Draws an expression of the given depth over all leaves."""
    if depth == 0:
        return draw(leaves(size))
    combine = draw(st.sampled_from("&|~"))
    left = draw(masks(size, depth - 1))
    if combine == "~":
        return MaskCase(~left.mask, lambda b, h, i, j: not left.allowed(b, h, i, j))
    right = draw(masks(size, draw(st.integers(0, depth - 1))))
    if combine == "&":
        return MaskCase(
            left.mask & right.mask,
            lambda b, h, i, j: left.allowed(b, h, i, j) and right.allowed(b, h, i, j),
        )
    return MaskCase(
        left.mask | right.mask,
        lambda b, h, i, j: left.allowed(b, h, i, j) or right.allowed(b, h, i, j),
    )
