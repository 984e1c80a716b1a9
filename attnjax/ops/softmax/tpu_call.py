"""What is static in a call of the TPU kernels, and the arrays that they share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from attnjax.dropout import keep
from attnjax.masks import PARTIAL
from attnjax.numerics import poison, split_nonfinite
from attnjax.ops.kernels import steps
from attnjax.ops.kernels.padding import pad
from attnjax.ops.kernels.programs import Tile, TileProgram
from attnjax.ops.kernels.tpu_parts import LANES
from attnjax.typing import Index

# Tiles of 1024 by 1024 numbers take more vector memory than the compiler allows by default; no TPU
# has less than 64 MiB of it.
VMEM_LIMIT = 56 * 2**20


LOG2E = math.log2(math.e)
LN2 = math.log(2)


class Arguments(NamedTuple):
    """Everything that the operation computes with; q, k and v as `[B, heads, time, width]`."""

    q: Array
    k: Array
    v: Array
    sinks: Array | None
    scores: tuple[Array, ...]
    mask: tuple[Array, ...]
    dropout: Array | None
    by_query: Array
    back_by_query: Array
    by_key: Array
    origin: Array | None = None


@dataclasses.dataclass(frozen=True)
class Pass:
    """What is static in one kernel of a call.

    Attributes:
      tile: its tiles, and the sizes of B, N, T and S.
      scores, mask: its programs, without arrays.
      steps: its schedule.
      positional: what decides on POSITIONAL blocks, over the first operands of `mask`; None where
        the schedule has no such blocks.
    """

    tile: Tile
    scores: TileProgram
    mask: TileProgram
    steps: steps.Shape
    positional: TileProgram | None = None


@dataclasses.dataclass(frozen=True)
class Call:
    """What is static in a call.

    Attributes:
      forward: the forward pass.
      by_query, by_key: the two kernels of the backward pass.
      K: number of key heads.
      precision: of matrix products.
      stats: whether statistics are wanted.
      dropout: rate and shared axes, or None.
      one_sided: whether no query sees a later key, and the digits that are lost by summing
        distances as if they were signed are lost on the inputs already.
      only_scaled: whether scores are scaled dot products and nothing else.
      interpret: whether kernels run in the interpreter.
    """

    forward: Pass
    by_query: Pass
    by_key: Pass
    K: int
    precision: Any
    stats: bool
    dropout: tuple[float, str] | None
    one_sided: bool
    only_scaled: bool
    interpret: bool

    @property
    def groups(self) -> int:
        """Query heads per key head."""
        return self.forward.tile.N // self.K

    def compiler_params(
        self, *semantics: Literal["parallel", "arbitrary"], vmem_limit: int | None = None
    ) -> Any:
        """Returns how the compiler treats a kernel's grid, and the memory that it may use."""
        limit = VMEM_LIMIT if vmem_limit is None else vmem_limit
        return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=limit)


class Inputs(NamedTuple):
    """Queries, keys and values in whole blocks, without NaNs and infinities.

    Attributes:
      q, k, v: finite, padded with zeros.
      bad_rows: NaN where a query is not finite, else 0: `[B, N, T]`.
      bad_keys: the same for keys and their values: `[B, K, 1, S']`.
    """

    q: Array
    k: Array
    v: Array
    bad_rows: Array
    bad_keys: Array


def inputs_of(tile: Tile, arguments: Arguments) -> Inputs:
    """Prepares queries, keys and values for kernels on these tiles."""
    dtype = jnp.result_type(arguments.q, arguments.k)
    q, k = (x.astype(dtype) for x in arguments[:2])
    (q, q_bad), (k, k_bad), (v, v_bad) = (split_nonfinite(x) for x in (q, k, arguments.v))
    bad = pad(poison(k_bad | v_bad, jnp.float32)[:, :, None], 3, tile.block_k)
    return Inputs(
        pad(q, 2, tile.block_q),
        pad(k, 2, tile.block_k),
        pad(v, 2, tile.block_k),
        poison(q_bad, jnp.float32),
        bad,
    )


def across(x: Array, width: int) -> Array:
    """Spreads `[n, LANES]`, whose columns are alike, to `[n, width]`."""
    if width <= LANES:
        return x[:, :width]
    if width % LANES:
        return jnp.broadcast_to(x[:, :1], (x.shape[0], width))
    return jnp.tile(x, (1, width // LANES))


def allowed(
    run: Pass, kind: int, index: Index, read: Callable[[int], list[Array]], origin: Any
) -> Array | None:
    """Evaluates as much of a mask as a block needs.

    Args:
      run: the pass.
      kind: the kind of the block.
      index: its positions.
      read: reads the parts of that many of the mask's operands.
      origin: as in `Problem`, or a reference to it.

    Returns:
      What is allowed, without the keys that only fill the last block; None where all is.
    """
    program = run.positional if kind == steps.POSITIONAL else run.mask
    if kind not in (PARTIAL, steps.POSITIONAL) or program is None:
        return None
    result = program(index=index, parts=read(len(program.operands)))
    if run.tile.S % run.tile.block_k:
        result &= index.k < run.tile.S + (0 if origin is None else origin[3])
    shape = jnp.broadcast_shapes(index.q.shape, index.k.shape)
    return jnp.broadcast_to(result, shape)


def drop(call: Call, words: Any, index: Index, *tiles: Array) -> tuple[Array, ...]:
    """Applies dropout to tiles: what is dropped becomes 0, the rest is scaled up."""
    if call.dropout is None:
        return tiles
    rate, shared = call.dropout
    chosen = keep(words, rate, index, shared)
    return tuple(jnp.where(chosen, x / (1 - rate), 0) for x in tiles)


def dot(call: Call, left: Array, right: Array, contract: tuple[int, int]) -> Array:
    """Multiplies two matrices over one axis of each, summing in float32."""
    return jax.lax.dot_general(
        left,
        right,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=call.precision,
        preferred_element_type=jnp.float32,
    )
