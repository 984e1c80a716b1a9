"""Masks as values: what they allow, how they combine, and that they are pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import attnjax
from tests.drawing import LEAVES, SIZES, MaskCase, Sizes, leaves, masks

SIZE = Sizes(B=2, T=7, S=5, N=3, K=3, H=1, D=1)


def positions(size: Sizes) -> list[np.ndarray]:
    shape = (size.B, size.N, size.T, size.S)
    return np.meshgrid(*(np.arange(n, dtype=np.int32) for n in shape), indexing="ij", sparse=True)


def table(mask: attnjax.Mask, size: Sizes) -> np.ndarray:
    return np.asarray(mask.at(*positions(size)))


def predicate(case: MaskCase, size: Sizes) -> np.ndarray:
    shape = (size.B, size.N, size.T, size.S)
    return np.array([case.allowed(*at) for at in np.ndindex(shape)], bool).reshape(shape)


@pytest.mark.parametrize("name", sorted(LEAVES))
@given(data=st.data())
def test_a_leaf_allows_what_its_definition_says(name: str, data: st.DataObject) -> None:
    size = data.draw(SIZES)
    case = data.draw(leaves(size, (name,)))
    np.testing.assert_array_equal(table(case.mask, size), predicate(case, size))


@given(data=st.data())
def test_an_expression_allows_what_python_says(data: st.DataObject) -> None:
    size = data.draw(SIZES)
    case = data.draw(masks(size))
    np.testing.assert_array_equal(table(case.mask, size), predicate(case, size))


@given(data=st.data())
def test_offsets_bound_what_an_expression_allows(data: st.DataObject) -> None:
    size = data.draw(SIZES)
    case = data.draw(masks(size))
    lowest, highest = case.mask.offsets()
    _, _, q_idx, k_idx = np.nonzero(predicate(case, size))
    assert (k_idx - q_idx >= lowest).all()
    assert (k_idx - q_idx <= highest).all()


def test_offsets_of_windows() -> None:
    causal, inf = attnjax.Causal(), np.inf
    for mask, want in (
        (causal & attnjax.Window(4, 2), (-4, 0)),
        (attnjax.Causal(offset=3), (-inf, 3)),
        (attnjax.Window(None, 2) | attnjax.Window(5, -1), (-inf, 2)),
        (attnjax.Window(4, 2) | attnjax.Prefix(1), (-inf, inf)),
        (~attnjax.Window(4, 2), (-inf, inf)),
        (attnjax.Window(jnp.int32(4), 2), (-inf, 2)),
    ):
        assert mask.offsets() == want


@given(data=st.data())
def test_a_mask_survives_tree_map_jit_and_flattening(data: st.DataObject) -> None:
    case = data.draw(masks(SIZE))
    want = table(case.mask, SIZE)
    copied = jax.tree.map(lambda x: x, case.mask)
    assert repr(copied) == repr(case.mask)
    np.testing.assert_array_equal(table(copied, SIZE), want)
    arrays, structure = jax.tree.flatten(case.mask)
    np.testing.assert_array_equal(table(jax.tree.unflatten(structure, arrays), SIZE), want)
    traced = jax.jit(lambda mask: mask.at(*positions(SIZE)))(case.mask)
    np.testing.assert_array_equal(traced, want)


def packed(ends: tuple[int, ...], length: int = 9) -> jax.Array:
    """Returns the ids of documents that end at these positions."""
    return jnp.searchsorted(jnp.array(ends), jnp.arange(length), side="right")


def family(n: int) -> attnjax.Mask:
    """Makes masks of one structure with different arrays."""
    return (attnjax.Causal(jnp.int32(n)) & ~attnjax.Segments(packed((2 + n, 5)))) | attnjax.Where(
        lambda_of_family, per_query=jnp.arange(9) * n, per_key={"x": jnp.arange(9)}
    )


def lambda_of_family(b: jax.Array, h: jax.Array, q: jax.Array, k: jax.Array, x, y) -> jax.Array:
    return (x + y["x"]) % 4 == 0


def test_masks_stack_for_vmap_and_scan() -> None:
    members = [family(n) for n in range(3)]
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *members)
    q, k = jnp.arange(9)[:, None], jnp.arange(9)[None, :]
    want = np.stack([m.at(0, 0, q, k) for m in members])
    assert 0.1 < want.mean() < 0.9
    np.testing.assert_array_equal(jax.vmap(lambda m: m.at(0, 0, q, k))(stacked), want)
    _, scanned = jax.lax.scan(lambda carry, m: (carry, m.at(0, 0, q, k)), 0, stacked)
    np.testing.assert_array_equal(scanned, want)


def test_numbers_are_static_and_arrays_are_leaves() -> None:
    assert jax.tree.leaves(attnjax.Causal(3) & attnjax.Window(1, None) | attnjax.Strided(2)) == []
    lengths = np.array([1, 2])
    mask = attnjax.Prefix(lengths) & attnjax.Causal()
    assert [x is lengths for x in jax.tree.leaves(mask)] == [True]
    [(path, _)] = jax.tree_util.tree_leaves_with_path(mask)
    assert jax.tree_util.keystr(path) == ".left.length"


def test_equal_structures_share_one_compilation() -> None:
    traces = []

    @jax.jit
    def run(mask: attnjax.Mask) -> jax.Array:
        traces.append(1)
        return mask.at(0, 0, 3, 2)

    for length in (1, 5):
        run(attnjax.Prefix(jnp.int32(length)) & attnjax.Causal(1))
    run(attnjax.Prefix(jnp.int32(1)) & attnjax.Causal(2))
    assert len(traces) == 2


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
def test_arrays_combine_from_either_side(make) -> None:
    array = make(np.arange(35).reshape(7, 5) % 3 == 0)
    causal = attnjax.Causal()
    lower = np.tri(7, 5, dtype=bool)
    for mask, want in (
        (causal & array, lower & np.asarray(array)),
        (array & causal, lower & np.asarray(array)),
        (causal | array, lower | np.asarray(array)),
        (array | causal, lower | np.asarray(array)),
    ):
        assert isinstance(mask, attnjax.Mask)
        np.testing.assert_array_equal(table(mask, SIZE)[1, 2], want)


def test_repr_reads_like_the_expression() -> None:
    mask = (attnjax.Causal() & attnjax.Window(4096, 0)) | ~attnjax.Segments(np.zeros(7, np.int32))
    assert repr(mask) == (
        "((Causal(offset=0) & Window(left=4096, right=0)) | ~Segments(q_ids=int32[7], kv_ids=None))"
    )
    assert repr(attnjax.Where(lambda_of_family, jnp.arange(3), jnp.arange(2.0))) == (
        "Where(fn=lambda_of_family, per_query=int32[3], per_key=float32[2], block_rule=None)"
    )


def test_a_mask_has_no_truth() -> None:
    with pytest.raises(ValueError, match=r"(?s)Causal\(offset=0\).*not defined.*&, \| and ~"):
        bool(attnjax.Causal())
    with pytest.raises(ValueError, match="not defined"):
        _ = attnjax.Causal() and attnjax.Full()


def test_a_mask_does_not_change() -> None:
    mask = attnjax.Causal(1)
    with pytest.raises(AttributeError, match="immutable"):
        mask.offset = 2


def test_at_takes_single_positions() -> None:
    assert bool(attnjax.Causal().at(0, 0, 3, 3))
    assert not bool(attnjax.Causal().at(0, 0, 3, 4))
    assert attnjax.Full().at(0, jnp.arange(3), 1, jnp.arange(4)[:, None]).shape == (4, 3)
