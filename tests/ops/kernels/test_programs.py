"""Masks and score_mods as programs on tiles give what the functions give on all positions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from attnjax.masks import evaluate
from attnjax.operands import whole
from attnjax.ops.kernels.programs import (
    Tile,
    TileProgram,
    lower_mask,
    lower_scores,
    part_shape,
)
from attnjax.typing import Index

B, N, T, S = 2, 3, 7, 11
RNG = np.random.default_rng(0)
BY_HEAD = jnp.asarray(RNG.normal(size=N), jnp.float32)
BY_QUERY = jnp.asarray(RNG.normal(size=(N, T)), jnp.float32)
BY_KEY = jnp.asarray(RNG.normal(size=(B, S)), jnp.float32)
IDS = jnp.asarray(RNG.integers(0, 3, (B, S)), jnp.int32)
SCORE_MODS: dict[str, Any] = {
    "by head": lambda s, b, h, q, k: s * BY_HEAD[h],
    "by head, computed with": lambda s, b, h, q, k: s + jnp.exp(BY_QUERY[h, 0]) * (q - k),
    "by query and head": lambda s, b, h, q, k: jnp.tanh(s) + BY_QUERY[h, q] * k,
    "by key and batch element": lambda s, b, h, q, k: s - BY_KEY[b, k] ** 2,
    "by query and by key": lambda s, b, h, q, k: s + BY_QUERY[0, q] * BY_KEY[b, k],
    "a captured number": lambda s, b, h, q, k: s * BY_HEAD[1],
    "computed before it is indexed": lambda s, b, h, q, k: s + jnp.exp(BY_QUERY)[h, q],
    "a row looked up whole": lambda s, b, h, q, k: s + jnp.sum(BY_QUERY[h], axis=-1),
    "declared": attnjax.score_mod(
        lambda s, b, h, q, k, x, y: s * x + y, per_head=BY_HEAD, per_query=BY_QUERY[0]
    ),
    "alibi": attnjax.alibi(N),
    "relative bias": attnjax.relative_bias(jnp.asarray(RNG.normal(size=(N, 9)), jnp.float32)),
    "bias": attnjax.bias(jnp.asarray(RNG.normal(size=(N, T, S)), jnp.float32)),
}
MASKS: dict[str, attnjax.Mask] = {
    "causal and strided": attnjax.Causal() & ~attnjax.Strided(3),
    "documents by indexing": attnjax.Where(lambda b, h, q, k: IDS[b, q] == IDS[b, k]),
    "declared keys": attnjax.Where(lambda b, h, q, k, x: q + h >= x, per_key=IDS),
    "segments": attnjax.Segments(IDS[:, :T], IDS),
    "dense": attnjax.Dense(jnp.asarray(RNG.random((B, 1, T, S)) < 0.5)),
    "lengths": attnjax.Lengths(np.array([3, 7]), np.array([11, 0])),
    "bools": attnjax.Where(lambda b, h, q, k: (IDS > 0)[b, k] & (q < 5)),
}
TILES = [Tile(B, N, T, S, 4, 5), Tile(B, N, T, S, 8, 6, rows="S")]


def positions() -> Index:
    return Index(*np.meshgrid(*map(np.arange, (B, N, T, S)), indexing="ij", sparse=True))


def assemble(program: TileProgram, tile: Tile, *full: jax.Array) -> jax.Array:
    """Runs a program tile by tile over all positions, and gives it what a kernel would."""
    rows, columns = -(-T // tile.block_q) * tile.block_q, -(-S // tile.block_k) * tile.block_k
    pad = ((0, 0), (0, 0), (0, rows - T), (0, columns - S))
    fetch = whole(T, S)
    operands = [jnp.broadcast_to(fetch(o), (B, N, T, S)) for o in program.operands]
    out = np.empty((B, N, rows, columns), object)
    for b, h, q, k in np.ndindex(B, N, rows // tile.block_q, columns // tile.block_k):
        q, k = q * tile.block_q, k * tile.block_k

        def cut(x: jax.Array, at: tuple[int, ...] = (b, h, q, k)) -> jax.Array:
            b, h, q, k = at
            part = jnp.pad(x, pad)[b, h, q : q + tile.block_q, k : k + tile.block_k]
            return part if tile.rows == "T" else part.T

        index = tile.index(*(jnp.int32(n) for n in (b, h, q, k)))
        parts = []
        for operand, x in zip(program.operands, operands, strict=True):
            shape = part_shape(operand, tile)
            parts.append(cut(x)[tuple(slice(n) for n in shape or (1, 1))].reshape(shape))
        result = program(*map(cut, full), index=index, parts=parts)
        result = np.broadcast_to(result, tile.shape)
        block = result if tile.rows == "T" else result.T
        out[b, h, q : q + tile.block_q, k : k + tile.block_k] = block
    return jnp.asarray(out[:, :, :T, :S].tolist())


@pytest.mark.first(3)
@pytest.mark.parametrize("tile", TILES, ids=["rows", "columns"])
@pytest.mark.parametrize("name", SCORE_MODS)
def test_scores(name: str, tile: Tile) -> None:
    mod = SCORE_MODS[name]
    dots = jnp.asarray(np.random.default_rng(1).normal(size=(B, N, T, S)), jnp.float32)
    found = assemble(lower_scores((mod,), jnp.float32(0.5), tile), tile, dots)
    if isinstance(mod, attnjax.ScoreMod):
        tiles = map(whole(T, S), mod.operands(tile.sizes))
        want = mod.apply(dots * 0.5, positions(), *tiles)
    else:
        want = mod(dots * 0.5, *positions())
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tile", TILES, ids=["rows", "columns"])
@pytest.mark.parametrize("name", MASKS)
def test_masks(name: str, tile: Tile) -> None:
    found = assemble(lower_mask(MASKS[name], tile), tile)
    want = evaluate(MASKS[name], positions(), whole(T, S))
    np.testing.assert_array_equal(found, np.broadcast_to(want, found.shape))
    assert 0 < found.sum() < found.size


def test_one_query_looks_up_one_number() -> None:
    """A number per query is a number where there is one query, and is spread over the tile."""
    tile = Tile(B, N, 1, S, 4, 5)
    program = lower_scores((lambda s, b, h, q, k: s + BY_QUERY[h, q],), jnp.float32(1), tile)
    dots = jnp.ones(tile.shape)
    parts = [jnp.float32(1), jnp.float32(3)]
    found = program(dots, index=tile.index(*map(jnp.int32, (0, 0, 0, 0))), parts=parts)
    np.testing.assert_array_equal(found, 4 * dots)


def test_what_is_looked_up_is_as_small_as_it_can_be() -> None:
    tile = TILES[0]

    def lookups(mod: Any) -> list[tuple[str, tuple[int, ...]]]:
        program = lower_scores((mod,), jnp.float32(1), tile)
        assert program.operands[0].name == "scale"
        return [(o.axes, o.array.shape) for o in program.operands[1:]]

    assert lookups(SCORE_MODS["by head"]) == [("N", (N,))]
    assert lookups(SCORE_MODS["by query and head"]) == [("NT", (N, T))]
    assert lookups(SCORE_MODS["by key and batch element"]) == [("BS", (B, S))]
    assert lookups(SCORE_MODS["a row looked up whole"]) == [("N", (N,))]
    assert lookups(lambda s, b, h, q, k: jnp.tanh(s) * (q - k)) == []


def test_a_program_lets_go_of_its_arrays() -> None:
    program = lower_scores((SCORE_MODS["by head"],), jnp.float32(1), TILES[0])
    bare = program.bare()
    assert all(isinstance(o.array, jax.ShapeDtypeStruct) for o in bare.operands)
    assert not bare.closed.consts
    again = bare.with_arrays(program.arrays)
    np.testing.assert_array_equal(again.arrays[1], BY_HEAD)


@pytest.mark.parametrize(
    ("change", "linear"),
    [
        (lambda s, b, h, q, k, x: s + x[h], True),
        (lambda s, b, h, q, k, x: s + jnp.exp(x[h]), True),
        (lambda s, b, h, q, k, x: s + (3 * x - x[::-1])[h], True),
        (lambda s, b, h, q, k, x: s + jnp.exp(x)[h], False),
        (lambda s, b, h, q, k, x: s + (x * x)[h], False),
        (lambda s, b, h, q, k, x: s + jnp.maximum(x, 0)[h], False),
        (lambda s, b, h, q, k, x: s + jnp.where(jnp.arange(3) > 1, x, 0)[h], True),
    ],
)
def test_it_is_known_which_lookups_are_linear(
    change: Callable[..., jax.Array], linear: bool
) -> None:
    def mod(s: Any, b: Any, h: Any, q: Any, k: Any) -> jax.Array:
        return change(s, b, h, q, k, BY_HEAD)

    assert lower_scores((mod,), jnp.float32(1), TILES[0]).linear is linear


REFUSED: dict[str, tuple[Any, str]] = {
    "query and key": (lambda s, b, h, q, k: s + BY_QUERY[0, jnp.abs(q - k)], "relative_bias"),
    "the score": (
        lambda s, b, h, q, k: s + BY_HEAD[jnp.clip(s.astype(int), 0, 2)],
        "by the score",
    ),
    "a sort": (lambda s, b, h, q, k: jnp.sort(s, axis=-1), r"cannot do on a tile \(sort\)"),
    "a sum over keys": (
        lambda s, b, h, q, k: s - jnp.sum(s, axis=-1, keepdims=True),
        r"cannot do on a tile \(reduce_sum\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_kernel_cannot_do_is_refused_with_a_remedy(name: str) -> None:
    mod, reason = REFUSED[name]
    with pytest.raises(NotImplementedError, match=f"(?s){reason}.*implementation='blockwise'"):
        lower_scores((mod,), jnp.float32(1), TILES[0])


def test_a_mask_that_indexes_by_both_positions_is_refused() -> None:
    mask = attnjax.Where(lambda b, h, q, k: IDS[0, jnp.abs(q - k)] > 0)
    with pytest.raises(NotImplementedError, match=r"attnjax\.Dense.*implementation='blockwise'"):
        lower_mask(mask, TILES[0])


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int16])
def test_narrow_integers_of_a_callers_function_are_refused(dtype: Any) -> None:
    """A kernel would compute with 32 bits, and the function might count on wrapping."""
    ids = IDS.astype(dtype)
    message = rf"of dtype {jnp.dtype(dtype)}.*astype\('int32'\)"
    with pytest.raises(NotImplementedError, match=message):
        lower_mask(attnjax.Where(lambda b, h, q, k, x: x > q, per_key=ids), TILES[0])
    mod = attnjax.score_mod(lambda s, b, h, q, k, x: s + x, per_key=ids)
    with pytest.raises(NotImplementedError, match=message):
        lower_scores((mod,), jnp.float32(1), TILES[0])


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint32, jnp.bool_])
def test_wide_integers_and_bools_stay_what_they_are(dtype: Any) -> None:
    mask = attnjax.Where(lambda b, h, q, k, x: x.astype(bool), per_key=IDS.astype(dtype))
    program = lower_mask(mask, TILES[0])
    assert program.operands[0].array.dtype == dtype


def test_gradients_reach_captured_arrays() -> None:
    tile = Tile(B, N, T, S, 8, 16)
    dots = jnp.asarray(np.random.default_rng(2).normal(size=(B, N, T, S)), jnp.float32)

    def total(x: jax.Array, y: jax.Array) -> Callable[..., jax.Array]:
        return lambda s, b, h, q, k: jnp.sin(s) * jnp.exp(x)[h] + y[b, k] * x[0]

    def lowered(x: jax.Array, y: jax.Array) -> jax.Array:
        program = lower_scores((total(x, y),), jnp.float32(1), tile)
        fetch, sums = whole(T, S), jnp.float32(0)
        for b, h in np.ndindex(B, N):
            index = tile.index(*map(jnp.int32, (b, h, 0, 0)))
            parts = []
            for operand in program.operands:
                full = jnp.broadcast_to(fetch(operand), (B, N, T, S))[b, h]
                full = jnp.pad(full, ((0, 8 - T), (0, 16 - S)))
                shape = part_shape(operand, tile)
                parts.append(full[tuple(slice(n) for n in shape or (1, 1))].reshape(shape))
            block = jnp.pad(dots[b, h], ((0, 8 - T), (0, 16 - S)))
            sums += jnp.sum(program(block, index=index, parts=parts)[:T, :S] ** 2)
        return sums

    def direct(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum(total(x, y)(dots, *positions()) ** 2)

    found = jax.grad(lowered, (0, 1))(BY_HEAD, BY_KEY)
    want = jax.grad(direct, (0, 1))(BY_HEAD, BY_KEY)
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
