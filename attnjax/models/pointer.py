"""A pointer that copies tokens of the source: its mixture with what the vocabulary says."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax.api import attention
from attnjax.masks import Mask, Prefix, Segments
from attnjax.nn import AttentionOptions
from attnjax.sharding.partition import Partition


class SourceKeys(NamedTuple):
    """What a pointer keeps of a source.

    Attributes:
      keys: projection of what the encoder made, `[B, S, F]`.
      tokens: source tokens, of the target's vocabulary, `[B, S]`.
      lengths: number of tokens of each source, `[B]`.
    """

    keys: Float[Array, "B S F"]
    tokens: Int[Array, "B S"]
    lengths: Int[Array, "B"]


class Pointer(nnx.Module):
    """Mixes the distribution over the vocabulary with one over the tokens of the source.

    `p(y) = g * softmax(logits)[y] + (1 - g) * sum of the weights on source tokens equal to y`, with
    a gate `g = sigmoid(w . hidden + b)` and weights of a single attention head of its own from the
    decoder's output to what the encoder made. Where a source has no tokens, `g` is 1.

    Source: See et al., "Get To The Point: Summarization with Pointer-Generator Networks" (2017),
    equations 8 and 9; there the weights are those of the decoder's own attention.

    Args:
      features: width F of the decoder's output.
      dtype: dtype of the projections; None promotes the input's with the parameters'.
      param_dtype: dtype of the parameters.
      rngs: for the parameters.
    """

    def __init__(
        self, features: int, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        def project(width: int, use_bias: bool) -> nnx.Linear:
            return nnx.Linear(
                features,
                width,
                use_bias=use_bias,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        self.query, self.key = project(features, False), project(features, False)
        self.gate = project(1, True)
        self.options = AttentionOptions()  # `attnjax.nn.spread` sets its partition

    def read(
        self, memory: Float[Array, "B S F"], tokens: Int[Array, "B S"], lengths: Int[Array, "B"]
    ) -> SourceKeys:
        """Projects what the encoder made, once for all steps.

        Args:
          memory: what the encoder made.
          tokens: source tokens, of the target's vocabulary.
          lengths: number of tokens of each source.
        """
        return SourceKeys(self.key(memory), tokens, jnp.asarray(lengths))

    def logprobs(
        self,
        hidden: Float[Array, "B T F"],
        logits: Float[Array, "B T V"],
        source: SourceKeys,
    ) -> Float[Array, "B T V"]:
        """Returns the logarithm of the mixture, for every token of the vocabulary.

        Makes an array of `B * T * S` weights.

        Args:
          hidden: the decoder's output.
          logits: what the vocabulary says.
          source: what `read` returned.
        """
        scores = jnp.einsum(
            "btf,bsf->bts", self.query(hidden), source.keys, preferred_element_type=jnp.float32
        )
        inside = (jnp.arange(source.tokens.shape[1]) < source.lengths[:, None])[:, None]
        scores = jnp.where(inside, scores * hidden.shape[-1] ** -0.5, -jnp.inf)
        # A source without tokens has no largest score.
        largest = jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.finfo(scores.dtype).max)
        weights = jnp.where(inside, jnp.exp(scores - jax.lax.stop_gradient(largest)), 0)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        weights /= jnp.where(total == 0, 1, total)

        def scatter(weights: Array, tokens: Array) -> Array:
            zeros = jnp.zeros((weights.shape[0], logits.shape[-1]), weights.dtype)
            return zeros.at[:, tokens].add(weights)

        copied = jax.vmap(scatter)(weights, source.tokens)
        written, pointed = self._gates(hidden, source.lengths)
        return _mixed(
            written[..., None] + jax.nn.log_softmax(logits), pointed[..., None] + _log(copied)
        )

    def target_logprobs(
        self,
        hidden: Float[Array, "B T F"],
        written: Float[Array, "B T"],
        targets: Int[Array, "B T"],
        source: SourceKeys,
    ) -> Float[Array, "B T"]:
        """Returns the logarithm of the mixture for one token each, without an array `[B, T, S]`.

        The share of the target is `exp(lse_target - lse)`: the logsumexp of the scores of the
        source tokens equal to it, and that of all.

        Args:
          hidden: the decoder's output.
          written: log-probability of the targets under the vocabulary.
          targets: the tokens.
          source: what `read` returned.
        """
        query = self.query(hidden)
        inside = Prefix(source.lengths)
        every = self._logsumexp(query, source.keys, inside)
        equal = self._logsumexp(query, source.keys, inside & Segments(targets, source.tokens))
        found = equal > -jnp.inf
        share = jnp.where(found, equal - jnp.where(found, every, 0), -jnp.inf)
        gate, pointed = self._gates(hidden, source.lengths)
        return _mixed(gate + written, pointed + share)

    def _logsumexp(self, query: Array, keys: Array, mask: Mask) -> Float[Array, "B T"]:
        own = self.options.partition
        if own is not None:  # a single head is on every device
            own = Partition(batch=own.batch, sequence=own.sequence, method=own.method)
        result: Any = attention(
            query[:, :, None],
            keys[:, :, None],
            keys[:, :, None],
            mask=mask,
            partition=own,
            stats=True,
        )
        return result[1].logsumexp[:, 0]

    def _gates(self, hidden: Array, lengths: Array) -> tuple[Array, Array]:
        """The logarithms of both shares, float32 `[B, T]`."""
        gate = self.gate(hidden)[..., 0].astype(jnp.float32)
        some = (lengths > 0)[:, None]
        written = jnp.where(some, jax.nn.log_sigmoid(gate), 0)
        return written, jnp.where(some, jax.nn.log_sigmoid(-gate), -jnp.inf)


def _log(x: Array) -> Array:
    """The logarithm, whose derivative at 0 is 0 here."""
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1)), -jnp.inf)


def _mixed(written: Array, pointed: Array) -> Array:
    """`log(exp(written) + exp(pointed))`, where the second may be minus infinity."""
    known = pointed > -jnp.inf
    mixed = jnp.logaddexp(written, jnp.where(known, pointed, written))
    return jnp.where(known, mixed, written)
