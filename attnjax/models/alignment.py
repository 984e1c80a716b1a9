"""Attention of a recurrent decoder to what the encoder made: additive, or by products."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax.additive import additive_attention
from attnjax.api import attention
from attnjax.masks import Prefix
from attnjax.nn import AttentionOptions
from attnjax.nn.weights import last_weights
from attnjax.sharding.partition import Partition

Score = Literal["additive", "general", "dot"]


class Memory(NamedTuple):
    """What a decoder looks at.

    Attributes:
      states: what the encoder made, `[B, S, F]`.
      keys: what queries are compared with, `[B, S, F]`.
      lengths: number of positions of each source, `[B]`.
    """

    states: Float[Array, "B S F"]
    keys: Float[Array, "B S F"]
    lengths: Int[Array, "B"]


class Alignment(nnx.Module):
    """Weighs the states of an encoder for each state of a decoder; the values are not projected.

    Scores are `w . tanh(Wq q + Wk k + b)` (`additive`), `q . Wk k` (`general`) or `q . k` (`dot`).

    Sources: Bahdanau et al., "Neural Machine Translation by Jointly Learning to Align and
    Translate" (2015), appendix A.1.2; Luong et al., "Effective Approaches to Attention-based Neural
    Machine Translation" (2015), equation 8.

    Args:
      features: width F of queries and states.
      score: how they are compared.
      dtype: dtype of the computation; None promotes the input's with the parameters'.
      param_dtype: dtype of the parameters.
      rngs: for the parameters.

    Raises:
      ValueError: for an unknown score.
    """

    def __init__(
        self,
        features: int,
        *,
        score: Score,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if score not in get_args(Score):
            raise ValueError(f"score: expected one of {', '.join(get_args(Score))}; got {score!r}.")

        def project(use_bias: bool) -> nnx.Linear:
            return nnx.Linear(
                features,
                features,
                use_bias=use_bias,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        self.score = score
        self.key = None if score == "dot" else project(score == "additive")
        self.query = project(False) if score == "additive" else None
        init = nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        self.weight = (
            nnx.Param(init(rngs.params(), (1, features), param_dtype))
            if score == "additive"
            else None
        )
        self.options = AttentionOptions()  # `attnjax.nn.spread` sets its partition

    def read(self, states: Float[Array, "B S F"], lengths: Int[Array, "B"]) -> Memory:
        """Projects what the encoder made, once for all steps.

        Args:
          states: what the encoder made.
          lengths: number of positions of each source.
        """
        keys = states if self.key is None else self.key(states)
        return Memory(states, keys, jnp.asarray(lengths))

    def __call__(self, x: Float[Array, "B T F"], memory: Memory) -> Float[Array, "B T F"]:
        """Returns the weighted mean of the states for each state of the decoder.

        Args:
          x: states of the decoder.
          memory: what `read` returned.
        """
        return self._attend(x, memory, memory.states[:, :, None])[:, :, 0]

    def last_weights(self, x: Float[Array, "B T F"], memory: Memory) -> Float[Array, "B S"]:
        """Returns the weights of the last state of the decoder, float32.

        Args:
          x: states of the decoder.
          memory: what `read` returned.
        """
        shape = (*memory.keys.shape[:2], 1)
        return last_weights(lambda values: self._attend(x, memory, values), shape)

    def _attend(self, x: Array, memory: Memory, values: Float[Array, "B S 1 D"]) -> Array:
        spread = self.options.partition
        # Decoders ask with one position at a time, which no sequence axis could split.
        spread = None if spread is None else Partition(batch=spread.batch)
        mask, keys = Prefix(memory.lengths), memory.keys[:, :, None]
        values = values.astype(keys.dtype)
        if self.query is None or self.weight is None:
            out: Any = attention(
                x[:, :, None], keys, values, mask=mask, scale=1.0, partition=spread
            )
            return out
        query = self.query(x)[:, :, None]
        weight = self.weight[...].astype(query.dtype)
        out = additive_attention(query, keys, values, weight, mask=mask, partition=spread)
        return out
