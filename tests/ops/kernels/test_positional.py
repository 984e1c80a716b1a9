"""What follows from positions is told from what reads arrays, and both together are the mask."""

import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from attnjax.masks import Mask
from attnjax.ops.kernels.positional import reordered, split

T, S = 9, 11
IDS = np.sort(np.random.default_rng(0).integers(0, 3, (2, max(T, S))), axis=1)
SEGMENTS = attnjax.Segments(IDS[:, :T], IDS[:, :S])
DENSE = attnjax.Dense(jnp.asarray(np.random.default_rng(1).random((T, S)) < 0.5))
WHERE = attnjax.Where(lambda b, h, q, k: (q + k) % 3 == 0)
SPLIT = {
    "causal & segments": (attnjax.Causal() & SEGMENTS, "Causal"),
    "segments & causal": (SEGMENTS & attnjax.Causal(1), "Causal"),
    "offsets of their own": (SEGMENTS & attnjax.Causal(jnp.asarray([1, 3])), "Causal"),
    "many": (
        (SEGMENTS & attnjax.Window(4, 2)) & (attnjax.Strided(2) & WHERE) & DENSE,
        "Window Strided",
    ),
    "lengths": (attnjax.Lengths(None, np.asarray([2, 7])) & DENSE, "Lengths"),
    "expressions": (
        (attnjax.Causal() | attnjax.Prefix(3)) & ~SEGMENTS & ~attnjax.Window(1, 0),
        "Causal Prefix Window",
    ),
}
WHOLE = {
    "causal": attnjax.Causal() & attnjax.Window(3, 0),
    "segments": SEGMENTS & DENSE,
    "or": attnjax.Causal() | SEGMENTS,
    "not": ~(attnjax.Causal() & SEGMENTS),
    "where": WHERE,
}


def evaluated(mask: Mask) -> np.ndarray:
    index = np.meshgrid(np.arange(2), 0, np.arange(T), np.arange(S), indexing="ij")
    return np.asarray(mask.at(*map(jnp.asarray, index)))


@pytest.mark.parametrize("name", SPLIT)
def test_both_parts_together_are_the_mask(name: str) -> None:
    mask, names = SPLIT[name]
    parts = split(mask)
    assert parts is not None
    positional, rest = parts
    for word in ("Causal", "Window", "Strided", "Prefix", "Lengths"):
        assert (word in repr(positional)) == (word in names)
        assert word not in repr(rest)
    np.testing.assert_array_equal(evaluated(positional) & evaluated(rest), evaluated(mask))
    np.testing.assert_array_equal(evaluated(reordered(mask)), evaluated(mask))
    # Kernels take the operands of the first part for the first of the whole.
    count = len(positional.operands())
    for own, first in zip(positional.operands(), reordered(mask).operands()[:count], strict=True):
        np.testing.assert_array_equal(own.array, first.array)


@pytest.mark.parametrize("name", WHOLE)
def test_a_mask_of_one_sort_is_not_split(name: str) -> None:
    assert split(WHOLE[name]) is None
    assert reordered(WHOLE[name]) is WHOLE[name]
