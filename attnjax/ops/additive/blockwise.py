"""Additive scores inside the blockwise softmax attention: O(T + S) memory, forward and backward.

The hidden layer of a pair of positions exists for one tile and one hidden unit at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attnjax.operands import Operand
from attnjax.ops.additive.problem import AdditiveProblem, as_softmax
from attnjax.ops.softmax import blockwise
from attnjax.ops.softmax.problem import Problem
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.scores import ScoreMod
from attnjax.scores.base import pytree
from attnjax.typing import Index

BLOCK = 256


def attend(
    problem: AdditiveProblem, *, block_q: int = BLOCK, block_k: int = BLOCK
) -> tuple[Array, AttentionStats | None]:
    """Computes additive attention block by block.

    Args:
      problem: the call; no axis may be empty.
      block_q: queries in a block.
      block_k: keys in a block.

    Returns:
      The output `[B, T, N, D]` in the dtype of `v`, and the statistics if they are wanted.
    """
    return blockwise.attend(with_scores(problem), block_q=block_q, block_k=block_k)


def with_scores(problem: AdditiveProblem, *, shared_keys: bool = True) -> Problem:
    """Returns softmax attention whose first score_mod makes the additive scores.

    Args:
      problem: the call; no axis may be empty.
      shared_keys: query heads read the key heads that they share; otherwise each has its own copy.

    Returns:
      The softmax attention.
    """
    q, k, w, softmax = as_softmax(problem)
    axis = "K"
    if not shared_keys:
        axis, k = "N", jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
    scores = _AdditiveScores(jnp.moveaxis(q, 2, 1), jnp.moveaxis(k, 2, 1), w, axis)
    return dataclasses.replace(softmax, score_mods=(scores, *softmax.score_mods))


@pytree("axis")
class _AdditiveScores(ScoreMod):
    """Adds `w . tanh(q + k)` to the scores.

    q is `[B, N, T, H]`, k `[B, K, S, H]` or, if `axis` is N, `[B, N, S, H]`, w `[N, H]`.
    """

    q: Array
    k: Array
    w: Array
    axis: str

    def operands(self, sizes: Mapping[str, int]) -> tuple[Operand, ...]:
        return (
            Operand("q", self.q, "BNTF"),
            Operand("k", self.k, f"B{self.axis}SF"),
            Operand("w", self.w, "NF"),
        )

    def apply(self, score: Array, index: Index, *tiles: Array) -> Array:
        # Without the checkpoint, reversing the scan would store the hidden layer of all units.
        @jax.checkpoint
        def add_unit(total: Array, unit: tuple[Array, Array, Array]) -> tuple[Array, None]:
            q, k, w = unit
            return total + w * jnp.tanh(q + k), None

        units = tuple(jnp.moveaxis(x, -1, 0) for x in tiles)
        return jax.lax.scan(add_unit, score, units)[0]
