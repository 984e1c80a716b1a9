"""One call of additive attention, validated."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attnjax.numerics import poison, split_nonfinite
from attnjax.ops.softmax.problem import Problem


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdditiveProblem:
    """A validated call of `attnjax.additive_attention`.

    Attributes:
      softmax: queries, keys, values, and everything that is as in softmax attention.
      w: the weight of each hidden unit.
      bias: added inside the tanh, or None.
    """

    softmax: Problem
    w: Float[Array, "N H"]
    bias: Float[Array, "N H"] | None

    @property
    def user_functions(self) -> bool:
        """Whether functions of the caller take part, whose closures no cache can compare."""
        return self.softmax.user_functions


def as_softmax(problem: AdditiveProblem) -> tuple[Array, Array, Array, Problem]:
    """Splits a call into what makes the scores and the softmax attention around it.

    Returns:
      The finite part of the queries `[B, T, N, H]`, the bias included, that of the keys
      `[B, S, K, H]` and w, all in the accumulation dtype; and a problem without score whose queries
      and keys, of width 1, are NaN where the given ones are not finite and 0 elsewhere, so that
      those spoil the rows that may see them and no others.
    """
    dtype = problem.softmax.accumulation_dtype
    q, k = (x.astype(dtype) for x in (problem.softmax.q, problem.softmax.k))
    if problem.bias is not None:
        q += problem.bias.astype(dtype)
    (q, q_bad), (k, k_bad) = split_nonfinite(q), split_nonfinite(k)
    flags = (poison(bad, problem.softmax.v.dtype)[..., None] for bad in (q_bad, k_bad))
    q_flags, k_flags = flags
    one = jnp.ones((), dtype)
    rest = dataclasses.replace(problem.softmax, q=q_flags, k=k_flags, scale=one)
    return q, k, problem.w.astype(dtype), rest
