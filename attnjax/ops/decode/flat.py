"""All heads of a decoding call as one matrix of scores: rows are queries, columns cached keys.

The row of query `t` of query head `n` has number `n * T + t`. A cache `[B, S, K, H]` is read in one
of two forms, whichever it lies in memory in:

* as `[B, S * K, H]`, if heads are a multiple of 128 wide: a column for each key head of each slot,
  of which a row sees those of its own key head;
* turned, as `[B, K * H, S]`, which is how XLA lays out narrower heads on a TPU: a column for each
  slot, where each query stands among zeros for the other key heads.

In both, one product of all rows and columns costs a matrix unit no more than one for each head, for
the keys are loaded into it once; masks and score_mods run on tiles of the matrix.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.masks import Mask, Where, evaluate, walk
from attnjax.numerics import widen
from attnjax.operands import Operand
from attnjax.ops.decode.layout import Paged
from attnjax.ops.decode.lowering import places, tile
from attnjax.ops.decode.problem import DecodeProblem
from attnjax.scores import Declared, ScoreFn, ScoreMod, check_scores
from attnjax.typing import Index

# Most sums of values, of which a turned row has one for each key head.
_MOST_SUMS = 512 * 1024


@dataclasses.dataclass(frozen=True)
class Flat:
    """How rows and columns are numbered.

    Attributes:
      T, N, K: number of queries, query heads and key heads.
      capacity: slots of the cache.
      endless: whether the cache is a ring.
      turned: whether a column is a slot, and not a key head of one.
    """

    T: int
    N: int
    K: int
    capacity: int
    endless: bool
    turned: bool

    @property
    def columns(self) -> int:
        """Columns of a slot."""
        return 1 if self.turned else self.K

    @property
    def rows(self) -> int:
        """Rows of a key head."""
        return self.T * (self.N // self.K)

    def index(self, b: Array, row: Array, column: Array, length: Array) -> Index:
        """Returns the positions of rows and columns; the key position is -1 in an empty slot."""
        head, t = divide(row, self.T)
        slot, _ = divide(column, self.columns)
        last = length - 1
        if self.endless:
            # No negative numbers are divided: a slot is below twice the capacity.
            _, back = divide(last - slot + 2 * self.capacity, self.capacity)
            k = jnp.maximum(last - back, -1)
        else:
            k = jnp.where(slot < length, slot, -1)
        # Rows beyond N * T only fill the tile.
        return Index(b, jnp.minimum(head, self.N - 1), length - self.T + t, k)

    def over(self, index: Index, length: Array) -> Index:
        """Returns the positions of a tile's rows and columns, for lengths `[1]` or `[B]`."""
        # Not `length[b]`: who reads why a kernel can't would take it for a lookup of the caller's.
        mine = jnp.arange(length.shape[0]) == index.b
        own = jnp.sum(jnp.where(mine, length, 0)) if length.shape[0] > 1 else length.reshape(())
        return self.index(index.b, index.q, index.k, own)

    def meets(self, row: Array, column: Array) -> Array:
        """Returns which columns belong to the key head of a row, and to a slot of the cache."""
        slot, head = divide(column, self.columns)
        inside = slot < self.capacity
        return inside if self.turned else (divide(row, self.rows)[0] == head) & inside


def divide(x: Array, n: int) -> tuple[Array, Array]:
    """Returns quotient and remainder of numbers that are not negative."""
    if n == 1:
        return x, jnp.zeros_like(x)
    if n & (n - 1) == 0:  # the vector unit has no division
        return x >> (n.bit_length() - 1), x & (n - 1)
    quotient = jax.lax.div(x, jnp.full_like(x, n))
    return quotient, x - quotient * n


def flat_of(problem: DecodeProblem, turned: bool | None = None) -> Flat:
    """Returns how a call's rows and columns are numbered; None turns it as the cache lies."""
    _, T, N, H = problem.q.shape
    (K, D), capacity = problem.v.shape[2:], problem.layout.capacity(problem.k)
    if turned is None:
        narrow = H % 128 != 0 and D % 128 != 0
        turned = narrow and not isinstance(problem.layout, Paged) and N * T * K * D <= _MOST_SUMS
    return Flat(T, N, K, capacity, problem.layout.endless, turned)


def flat_scores(problem: DecodeProblem, flat: Flat) -> ScoreMod:
    """Returns the score_mods of a call, after the factors of its keys, over rows and columns."""
    sizes = problem.sizes
    mods = problem.score_mods
    declared = [
        dataclasses.replace(o, array=widen(jnp.asarray(o.array), jnp.float32))
        for m in mods
        if isinstance(m, ScoreMod)
        for o in m.operands(sizes)
    ]
    operands = [_spread(problem, flat, o) for o in declared]
    scaled = problem.k_scale is not None
    if problem.k_scale is not None:
        factors = column_factors(problem, flat, problem.k_scale)
        operands.insert(0, Operand("k_scale", factors, "BTS"))
    return _FlatScores(flat, problem.length, mods, sizes, scaled, tuple(operands))


def flat_mask(problem: DecodeProblem, flat: Flat) -> Mask:
    """Returns what a row may see of the columns: its key head, its mask, and no empty slot."""
    operands = tuple(_spread(problem, flat, o) for o in problem.mask.operands())
    return _FlatMask(flat, problem.length, problem.mask, operands)


def column_factors(problem: DecodeProblem, flat: Flat, factors: Array) -> Array:
    """Returns the factors of keys or values, float32 `[B, 1, columns]`, or `[B, rows, columns]`."""
    gathered = problem.layout.gather(factors.astype(jnp.float32))
    if flat.turned:
        return jnp.repeat(jnp.moveaxis(gathered, 1, 2), flat.rows, axis=1)
    return gathered.reshape(gathered.shape[0], 1, -1)


def check_integers(problem: DecodeProblem) -> None:
    """Refuses integers of other widths in functions of the caller, which may see them wrap.

    Raises:
      NotImplementedError: if a function of the caller declares such an array.
    """
    declared = [
        o for leaf in walk(problem.mask) if isinstance(leaf, Where) for o in leaf.operands()
    ]
    for mod in problem.score_mods:
        if isinstance(mod, Declared):
            declared += mod.operands(problem.sizes)
    for operand in declared:
        dtype = operand.array.dtype
        if jnp.issubdtype(dtype, jnp.integer) and dtype not in (jnp.int32, jnp.uint32):
            raise NotImplementedError(
                f"{operand.name} is of dtype {dtype}, and a kernel computes with 32 bits. Pass "
                f"{operand.name}.astype('int32'), or implementation='xla'."
            )


def _spread(problem: DecodeProblem, flat: Flat, operand: Operand) -> Operand:
    """Spreads an operand over rows and columns: `[B|1, rows|1, columns|1]`."""
    T, N = flat.T, flat.N
    array = tile(operand, places(problem.layout, problem.length, T, flat.capacity))
    B, n, t, s = array.shape
    if n > 1 or t > 1:
        array = jnp.broadcast_to(array, (B, N, T, s)).reshape(B, N * T, s)
    else:
        array = array.reshape(B, 1, s)
    if s > 1:
        array = jnp.repeat(array, flat.columns, axis=-1)
    return dataclasses.replace(operand, array=array, axes="BTS")


@dataclasses.dataclass(frozen=True, eq=False)
class _FlatScores(ScoreMod):
    flat: Flat
    length: Array
    mods: tuple[ScoreMod | ScoreFn, ...]
    sizes: dict[str, int]
    scaled: bool
    found: tuple[Operand, ...]

    def operands(self, sizes: Any) -> tuple[Operand, ...]:
        return self.found

    def apply(self, score: Array, index: Index, *tiles: Array) -> Array:
        given = iter(tiles)
        if self.scaled:
            score = score * next(given)
        own = self.flat.over(index, self.length)
        for mod in self.mods:
            if isinstance(mod, ScoreMod):
                new = mod.apply(score, own, *(next(given) for _ in mod.operands(self.sizes)))
            else:
                new = mod(score, *own)
            score = check_scores(new, score)
        return score


class _FlatMask(Mask):
    _fields = ("flat", "length", "inner", "found")
    flat: Flat
    length: Array
    inner: Mask
    found: tuple[Operand, ...]

    def __init__(self, flat: Flat, length: Array, inner: Mask, found: tuple[Operand, ...]) -> None:
        self._set(flat=flat, length=length, inner=inner, found=found)

    def operands(self) -> tuple[Operand, ...]:
        return self.found

    def allowed(self, index: Index, *tiles: Array) -> Array:
        own = self.flat.over(index, self.length)
        given = iter(tiles)
        seen = evaluate(self.inner, own, lambda _: next(given))
        return seen & (own.k >= 0) & self.flat.meets(index.q, index.k)
