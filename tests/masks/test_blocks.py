"""The classification of blocks: sound for every mask, exact where it can be, and cheap."""

import time
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import attnjax
from attnjax.masks import EMPTY, FULL, PARTIAL
from tests.drawing import LEAVES, SIZES, MaskCase, Sizes, leaves, masks

BLOCKS = st.tuples(st.integers(1, 9), st.integers(1, 9))


def truth(allowed: np.ndarray, block_q: int, block_k: int) -> np.ndarray:
    """Classifies blocks by looking at every position of `[B, N, T, S]`."""
    T, S = allowed.shape[2:]
    rows = []
    for q in range(0, T, block_q):
        row = []
        for k in range(0, S, block_k):
            block = allowed[:, :, q : q + block_q, k : k + block_k]
            full, some = block.all((2, 3)), block.any((2, 3))
            row.append(np.where(full, FULL, np.where(some, PARTIAL, EMPTY)))
        rows.append(np.stack(row, -1))
    return np.stack(rows, -2)


def table(case: MaskCase, size: Sizes) -> np.ndarray:
    shape = (size.B, size.N, size.T, size.S)
    return np.array([case.allowed(*at) for at in np.ndindex(shape)], bool).reshape(shape)


def kinds(mask: attnjax.Mask, size: Sizes, blocks: tuple[int, int]) -> np.ndarray:
    found = mask.blocks(size.T, size.S, *blocks)
    assert found.dtype == np.int8
    nq, nk = -(-size.T // blocks[0]), -(-size.S // blocks[1])
    return np.broadcast_to(found, (size.B, size.N, nq, nk))


def assert_sound(found: np.ndarray, want: np.ndarray) -> None:
    assert np.isin(found, (EMPTY, PARTIAL, FULL)).all()
    wrong = (found != want) & (found != PARTIAL)
    assert not wrong.any(), f"unsound at {np.argwhere(wrong)[:5].tolist()}"


@pytest.mark.parametrize("name", sorted(LEAVES))
@given(data=st.data())
def test_a_leaf_is_sound(name: str, data: st.DataObject) -> None:
    size, blocks = data.draw(SIZES), data.draw(BLOCKS)
    case = data.draw(leaves(size, (name,)))
    assert_sound(kinds(case.mask, size, blocks), truth(table(case, size), *blocks))


@given(data=st.data())
def test_an_expression_is_sound(data: st.DataObject) -> None:
    size, blocks = data.draw(SIZES), data.draw(BLOCKS)
    case = data.draw(masks(size))
    assert_sound(kinds(case.mask, size, blocks), truth(table(case, size), *blocks))


@given(data=st.data())
def test_traced_arrays_give_the_same_kinds(data: st.DataObject) -> None:
    size, blocks = data.draw(SIZES), data.draw(BLOCKS)
    mask = data.draw(masks(size)).mask
    traced = jax.jit(lambda m: m.blocks(size.T, size.S, *blocks))(mask)
    np.testing.assert_array_equal(
        np.broadcast_to(traced, kinds(mask, size, blocks).shape), kinds(mask, size, blocks)
    )


@pytest.mark.parametrize("name", ["Full", "Causal", "Prefix", "Lengths", "Dense"])
@given(data=st.data())
def test_these_leaves_are_exact(name: str, data: st.DataObject) -> None:
    size, blocks = data.draw(SIZES), data.draw(BLOCKS)
    case = data.draw(leaves(size, (name,)))
    np.testing.assert_array_equal(kinds(case.mask, size, blocks), truth(table(case, size), *blocks))


@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 9), st.integers(1, 9))
def test_a_window_is_exact(left: int, right: int, block_q: int, block_k: int) -> None:
    mask = attnjax.Window(left, right)
    q, k = np.arange(17)[:, None], np.arange(19)[None, :]
    allowed = (q - left <= k) & (k <= q + right)
    np.testing.assert_array_equal(
        mask.blocks(17, 19, block_q, block_k), truth(allowed[None, None], block_q, block_k)
    )


@given(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9))
def test_a_stride_finds_every_empty_block(stride: int, block_q: int, block_k: int) -> None:
    q, k = np.arange(17)[:, None], np.arange(19)[None, :]
    want = truth(((q - k) % stride == 0)[None, None], block_q, block_k)
    found = attnjax.Strided(stride).blocks(17, 19, block_q, block_k)
    np.testing.assert_array_equal(found == EMPTY, want == EMPTY)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(1, 9), st.integers(1, 9))
def test_packed_documents_are_exact(lengths: list[int], block_q: int, block_k: int) -> None:
    ids = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    want = truth((ids[:, None] == ids[None, :])[None, None], block_q, block_k)
    found = attnjax.Segments(ids).blocks(len(ids), len(ids), block_q, block_k)
    np.testing.assert_array_equal(found, want)


def test_a_complement_is_exact_where_the_mask_is() -> None:
    mask = attnjax.Causal(2)
    kinds = mask.blocks(23, 29, 3, 5)
    swapped = np.array([FULL, PARTIAL, EMPTY])
    np.testing.assert_array_equal((~mask).blocks(23, 29, 3, 5), swapped[kinds])


LONG = 1 << 20


def _documents() -> attnjax.Segments:
    ends = np.sort(np.random.default_rng(0).integers(1, LONG, 999))
    return attnjax.Segments(np.searchsorted(ends, np.arange(LONG), side="right").astype(np.int32))


@pytest.mark.parametrize(
    "make",
    [
        lambda: (attnjax.Causal() & attnjax.Window(4096, 0)) | attnjax.Prefix(512),
        _documents,
        lambda: attnjax.Segments(jnp.asarray(_documents().q_ids)),
    ],
    ids=["local", "documents", "documents on the device"],
)
def test_a_million_positions_are_classified_in_little_time_and_memory(make) -> None:
    mask = make()
    start = time.process_time()
    kinds = mask.blocks(LONG, LONG, 512, 512)
    assert time.process_time() - start < 2
    assert kinds.shape == (1, 1, 2048, 2048)
    # A query block of the window meets 9 blocks; a document of 2 blocks or so meets few others.
    assert 2048 < np.count_nonzero(kinds) < 12 * 2048
    tracemalloc.start()
    try:
        mask.blocks(LONG, LONG, 512, 512)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200e6


def test_the_traced_classification_does_not_grow_with_the_length() -> None:
    def primitives(length: int) -> list[str]:
        mask = attnjax.Segments(jax.ShapeDtypeStruct((length,), jnp.int32)) & attnjax.Causal()
        traced = jax.make_jaxpr(lambda m: m.blocks(length, length, 512, 512))(mask)
        return [equation.primitive.name for equation in traced.jaxpr.eqns]

    assert len(primitives(LONG)) > 10
    assert primitives(1 << 11) == primitives(LONG)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("T", (0, 5, 2, 2)),
        ("S", (5, -1, 2, 2)),
        ("block_q", (5, 5, 2.0, 2)),
        ("block_k", (5, 5, 2, 0)),
    ],
)
def test_sizes_must_be_positive_integers(name: str, sizes: tuple) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected a positive integer, got "):
        attnjax.Causal().blocks(*sizes)
