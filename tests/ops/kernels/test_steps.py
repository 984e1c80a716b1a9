"""Steps visit what the mask needs, once each, and say where rows begin and end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from attnjax.masks import EMPTY, FULL, PARTIAL
from attnjax.ops.kernels.positional import split
from attnjax.ops.kernels.steps import (
    BUDGET,
    FULL_AFTER,
    POSITIONAL,
    Step,
    length,
    make_steps,
    read,
)
from attnjax.ops.schedule import tile_kinds
from attnjax.ops.tiles import Tiling

T, S = 67, 59
IDS = np.sort(np.random.default_rng(0).integers(0, 7, (3, T)), axis=1)
MASKS = {
    "full": attnjax.Full(),
    "causal": attnjax.Causal(),
    "window": attnjax.Window(9, 2),
    "nothing": ~attnjax.Full(),
    "gap": attnjax.Prefix(9) | attnjax.Window(5, 0),
    "strided": attnjax.Strided(30) & attnjax.Causal(),
    "segments": attnjax.Segments(IDS, IDS[:, :S]),
    "some rows empty": attnjax.Lengths(np.asarray([11, 40, 0]), np.asarray([3, 59, 59])),
}


def tiling(block_q: int = 5, block_k: int = 7) -> Tiling:
    return Tiling(3, T, S, 2, 2, 1, 2, block_q, block_k)


@pytest.mark.parametrize("budget", [BUDGET, 3 * 14 * 8], ids=["list", "ranges"])
@pytest.mark.parametrize("by", "TS")
@pytest.mark.parametrize(
    ("name", "traced"),
    # A mask without arrays is always made on the host.
    [(n, t) for n, m in MASKS.items() for t in (False, True) if m.leaves() or not t],
)
def test_steps_visit_what_the_mask_needs(name: str, traced: bool, by: str, budget: int) -> None:
    t = tiling()
    shapes = []

    def make(mask: attnjax.Mask) -> jax.Array:
        steps = make_steps(mask, t, by=by, budget=budget)
        shapes.append(steps.shape)
        return steps.words

    mask = MASKS[name]
    words = np.asarray(jax.jit(make)(mask) if traced else make(mask))
    (shape,) = shapes
    assert words.nbytes <= budget or budget == BUDGET
    # A kernel takes the steps before this one; those after it have nothing to compute.
    taken = int(length(shape, jnp.asarray(words)))
    assert shape.traced == (traced and not shape.width)
    kinds = np.asarray(tile_kinds(mask, t, host=True))
    kinds = kinds if by == "T" else kinds.swapaxes(1, 2)
    for b in range(words.shape[0]):
        steps = np.asarray([read(shape, words, b, s) for s in range(shape.count)])
        row, column, kind, first, last = steps.T
        assert not np.any(kind[taken:] | first[taken:] | last[taken:])
        table = kinds[b % len(kinds)]
        seen = np.full(table.shape, EMPTY)
        busy = kind != EMPTY
        pairs = list(zip(row[busy], column[busy], strict=True))
        assert len(set(pairs)) == len(pairs), "a block is visited twice"
        seen[row[busy], column[busy]] = kind[busy]
        if shape.width:
            # Between two visited blocks the mask is applied; nothing is taken for FULL.
            assert np.all(seen[table == FULL] != EMPTY)
            assert np.all(table[seen == FULL] == FULL)
            assert np.all(seen[table != EMPTY] != EMPTY)
        else:
            np.testing.assert_array_equal(seen, table)
        assert np.all(np.diff(row) >= 0)
        np.testing.assert_array_equal(np.sort(row[first == 1]), np.arange(len(table)))
        np.testing.assert_array_equal(np.sort(row[last == 1]), np.arange(len(table)))
        for r in range(len(table)):
            mine = np.flatnonzero(row == r)
            opened, closed = (np.flatnonzero((row == r) & (x == 1)) for x in (first, last))
            assert opened == mine[0]
            assert np.all(kind[closed[0] + 1 : mine[-1] + 1] == EMPTY)


SPLIT = {
    "documents": attnjax.Causal() & attnjax.Segments(IDS, IDS[:, :S]),
    "window": attnjax.Segments(IDS[:1], IDS[:1, :S]) & attnjax.Window(20, 3),
    "where": attnjax.Causal()
    & attnjax.Where(
        lambda b, h, q, k, limit: k < limit,
        per_key=np.full(S, 40),
        block_rule=lambda q_lo, q_hi, k_lo, k_hi: (k_lo < 40, k_hi < 40),
    ),
}


@pytest.mark.parametrize(("by", "apart"), [("T", False), ("T", True), ("S", False)])
@pytest.mark.parametrize("traced", [False, True], ids=["host", "traced"])
@pytest.mark.parametrize("name", SPLIT)
def test_steps_tell_where_positions_decide_alone(
    name: str, traced: bool, by: str, apart: bool
) -> None:
    mask, t = SPLIT[name], tiling()
    shapes = []

    def make(mask: attnjax.Mask) -> jax.Array:
        steps = make_steps(mask, t, by=by, apart=apart)
        shapes.append(steps.shape)
        return steps.words

    words = np.asarray(jax.jit(make)(mask) if traced else make(mask))
    (shape,) = shapes
    parts = split(mask)
    assert parts is not None
    q, k = np.arange(T)[:, None], np.arange(S)
    kinds = np.asarray(tile_kinds(mask, t, host=True, apart=apart))
    found = set()
    for b in range(words.shape[0]):
        table = kinds[b % len(kinds)]
        allowed, by_position = (np.asarray(m.at(b, 0, q, k)) for m in (mask, parts[0]))
        for s in range(shape.count):
            step = Step(*map(int, read(shape, words, b, s)))
            i, j = (step.row, step.column) if by == "T" else (step.column, step.row)
            kind = table[i, j]
            found.add(step.kind)
            if step.kind == POSITIONAL:
                assert kind == PARTIAL
                block = np.s_[i * 5 :, j * 7 :]
                want, decided = (x[block][:5, :7] for x in (allowed, by_position))
                np.testing.assert_array_equal(decided, want)
            elif step.kind == FULL_AFTER:
                assert kind == FULL
                assert j * 7 > i * 5
            else:
                assert step.kind in (kind, EMPTY)
    assert found >= {PARTIAL, POSITIONAL}
    assert found - {EMPTY} <= set(shape.kinds)
    assert traced or found - {EMPTY} == set(shape.kinds)


def test_ranges_do_not_tell_where_positions_decide_alone() -> None:
    def make(mask: attnjax.Mask) -> list[jax.Array]:
        ranges, steps = (
            make_steps(mask, tiling(), by="T", budget=budget) for budget in (3 * 14 * 8, BUDGET)
        )
        assert (bool(ranges.shape.width), ranges.shape.kinds) == (True, (PARTIAL, FULL))
        assert (bool(steps.shape.width), steps.shape.kinds) == (False, (PARTIAL, FULL, POSITIONAL))
        return [ranges.words, steps.words]

    jax.eval_shape(make, SPLIT["documents"])


def test_a_long_causal_call_needs_ranges_of_few_bytes() -> None:
    T = 2**20
    t = Tiling(1, T, T, 8, 8, 1, 8, 512, 512)
    steps = make_steps(attnjax.Causal(), t, by="T")
    assert steps.shape.width == 2048
    assert steps.words.nbytes == 2048 * 8


def test_too_many_blocks_are_refused() -> None:
    t = Tiling(1, 2**20, 2**20, 8, 8, 1, 8, 64, 64)
    with pytest.raises(NotImplementedError, match="at most 8192 along an axis"):
        make_steps(attnjax.Causal(), t, by="T")
    t = Tiling(4096, 4096, 4096, 8, 8, 1, 8, 128, 128)
    lengths = attnjax.Prefix(jnp.full(4096, 300))
    with pytest.raises(NotImplementedError, match="scalar memory"):
        make_steps(lengths, t, by="T")
