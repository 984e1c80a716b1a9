"""End-to-end memory network: a question asks a memory of sentences, several times over."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from attnjax.api import attention
from attnjax.sharding.partition import Partition

_PAD = 0
_INIT = nnx.initializers.normal(0.1)


@dataclasses.dataclass(frozen=True)
class MemoryNetworkConfig:
    """Sizes and variants of a `MemoryNetwork`.

    Attributes:
      vocabulary: number of word ids V; id 0 is padding.
      features: width F, a multiple of `num_heads`.
      num_heads: heads N of each hop, each over its own slice of the features.
      hops: how many times the memory is asked.
      tying: `adjacent`: the values of a hop are the keys of the next, hops + 1 tables in all;
        `layerwise`: every hop has the same two tables.
      mapping: whether a learned matrix takes the state from each hop to the next.
      word_order: weigh the words of a sentence by their place, feature by feature; without it a
        sentence is a bag of words.
      ages: number of distinct ages of sentences; 0 for none.
      kinds: number of kinds of sentences, such as speakers; 0 for none.

    Raises:
      ValueError: a size is out of range.
    """

    vocabulary: int
    features: int = 64
    num_heads: int = 1
    hops: int = 3
    tying: Literal["adjacent", "layerwise"] = "adjacent"
    mapping: bool = False
    word_order: bool = False
    ages: int = 0
    kinds: int = 0

    def __post_init__(self) -> None:
        for name in ("vocabulary", "features", "num_heads", "hops"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}.")
        for name in ("ages", "kinds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}.")
        if self.features % self.num_heads:
            raise ValueError(
                f"features: expected a multiple of num_heads={self.num_heads}, got {self.features}."
            )
        if self.tying not in ("adjacent", "layerwise"):
            raise ValueError(f"tying: expected 'adjacent' or 'layerwise', got {self.tying!r}.")

    def build(self, *, rngs: nnx.Rngs) -> MemoryNetwork:
        """Builds the module, its parameters drawn from the stream `params`."""
        return MemoryNetwork(self, rngs=rngs)


class MemoryNetwork(nnx.Module):
    """Answers a question from a memory of sentences by asking it several times.

    A sentence is the sum of its words' embeddings, of its age's and of its kind's. The state begins
    as the question's embedding; each hop attends from the state to the sentences as keys, unscaled,
    and adds the weighted mean of the sentences as values to the state.

    The parameters are the tables `words [L, V, F]`, `age [L, ages, F]` and `kind [L, kinds, F]`,
    with L = hops + 1 (`adjacent`) or 2 (`layerwise`), and `mapping [F, F]`.

    Source: Sukhbaatar et al., "End-To-End Memory Networks" (2015), section 2; `word_order` is its
    position encoding, `ages` its temporal encoding (section 4.1). Kinds of sentences follow Bordes
    et al., "Learning End-to-End Goal-Oriented Dialog" (2017), section 4.4.

    Args:
      config: sizes and variants.
      rngs: for the parameters.
    """

    single_query: ClassVar[bool] = True
    """`attnjax.nn.spread` gives it batch axes only."""

    def __init__(self, config: MemoryNetworkConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.partition: Partition | None = None
        tables = config.hops + 1 if config.tying == "adjacent" else 2

        def table(rows: int) -> nnx.Param[Array] | None:
            if not rows:
                return None
            return nnx.Param(_INIT(rngs.params(), (tables, rows, config.features)))

        self.words = nnx.Param(_INIT(rngs.params(), (tables, config.vocabulary, config.features)))
        self.age, self.kind = table(config.ages), table(config.kinds)
        self.mapping = (
            nnx.Param(_INIT(rngs.params(), (config.features, config.features)))
            if config.mapping
            else None
        )

    def __call__(
        self,
        sentences: Int[Array, "B M W"],
        question: Int[Array, "B Q"],
        *,
        ages: Int[Array, "B M"] | None = None,
        kinds: Int[Array, "B M"] | None = None,
        linear: bool = False,
        return_weights: bool = False,
    ) -> Array | tuple[Array, Array]:
        """Asks the memory.

        Args:
          sentences: word ids, padded at the end by 0; a sentence of nothing but padding is not
            there.
          question: word ids, padded likewise.
          ages: how old each sentence is, 0 for the newest; older ones than the config has rows for
            share the last. Goes with `ages` in the config.
          kinds: what each sentence is. Goes with `kinds` in the config.
          linear: leave the softmax out, as at the start of training in section 4.2 of the paper.
          return_weights: also return the attention weights.

        Returns:
          The last state `[B, F]`; with `return_weights=True`, a pair of it and the weights `[B,
          hops, N, M]` in float32, which sum to 1 over M (0 for an empty memory; the masked scores
          themselves with `linear=True`).

        Raises:
          ValueError: shapes do not fit, or ages or kinds came without tables or did not come.
        """
        self._check(sentences, question, ages, kinds)
        if ages is not None and self.age is not None:
            ages = jnp.minimum(ages, self.config.ages - 1)
        there = jnp.any(sentences != _PAD, axis=-1)
        state = self.embed(question, 0)
        weights = []
        keys = self.remember(sentences, 0, ages=ages, kinds=kinds)
        values = keys
        for hop in range(self.config.hops):
            if self.config.tying == "adjacent" or hop == 0:
                keys = values
                values = self.remember(sentences, hop + 1, ages=ages, kinds=kinds)
            heads = self.config.num_heads
            read, hop_weights = read_memory(
                state, keys, values, there, heads=heads, linear=linear, partition=self.partition
            )
            if self.mapping is not None:
                state = state @ self.mapping[...]
            state = state + read
            weights.append(hop_weights)
        return (state, jnp.stack(weights, axis=1)) if return_weights else state

    def embed(self, words: Int[Array, "... W"], table: int) -> Float[Array, "... F"]:
        """Returns the sum of the words' embeddings in one of the tables, padding left out."""
        inside = words != _PAD
        embedded = self.words[table][words]
        if self.config.word_order:
            embedded = embedded * _word_order(inside, self.config.features)
        return jnp.sum(jnp.where(inside[..., None], embedded, 0), axis=-2)

    def remember(
        self,
        sentences: Int[Array, "B M W"],
        table: int,
        *,
        ages: Int[Array, "B M"] | None = None,
        kinds: Int[Array, "B M"] | None = None,
    ) -> Float[Array, "B M F"]:
        """Returns the sentences as one of the tables has them: words, age and kind."""
        memory = self.embed(sentences, table)
        if ages is not None and self.age is not None:
            memory = memory + self.age[table][ages]
        if kinds is not None and self.kind is not None:
            memory = memory + self.kind[table][kinds]
        return memory

    def logits(self, state: Float[Array, "B F"]) -> Float[Array, "B V"]:
        """Returns a score of each word as the answer, by the last table."""
        return state @ self.words[-1].T

    def _check(self, sentences: Any, question: Any, ages: Any, kinds: Any) -> None:
        if sentences.ndim != 3 or question.ndim != 2 or len(sentences) != len(question):
            raise ValueError(
                "sentences, question: expected [B, M, W] and [B, Q], got shapes "
                f"{tuple(sentences.shape)} and {tuple(question.shape)}."
            )
        for name, given in (("ages", ages), ("kinds", kinds)):
            rows = getattr(self.config, name)
            if (given is None) == bool(rows):
                raise ValueError(
                    f"{name}: the config has {rows} of them, so expected "
                    f"{'an array [B, M]' if rows else 'None'}, got "
                    f"{'None' if given is None else 'an array'}."
                )
            if given is not None and given.shape != sentences.shape[:2]:
                raise ValueError(
                    f"{name}: expected shape {tuple(sentences.shape[:2])}, one per sentence, got "
                    f"{tuple(given.shape)}."
                )


def read_memory(
    state: Float[Array, "B F"],
    keys: Float[Array, "B M E"],
    values: Float[Array, "B M G"],
    there: Bool[Array, "B M"],
    *,
    heads: int = 1,
    linear: bool = False,
    partition: Partition | None = None,
) -> tuple[Float[Array, "B R"], Float[Array, "B N M"]]:
    """Attends from one state to a memory, with unscaled scores.

    Args:
      state: what asks, heads side by side, each of width H = F / N.
      keys: what it is compared with: K = E / H heads, N a multiple of K, which share them.
      values: what is read: as many heads as keys.
      there: which places of the memory hold something.
      heads: number of heads N.
      linear: weigh by the scores themselves instead of their softmax.
      partition: batch axes of the mesh in context; None leaves it to `jax.jit`.

    Returns:
      What each head read, R = N G / K, and the float32 weights; both 0 where the memory is empty.
    """
    (B, M, E), H = keys.shape, state.shape[-1] // heads
    K = E // H
    q = state.reshape(B, 1, heads, H)
    k, v = keys.reshape(B, M, K, H), values.reshape(B, M, K, -1)
    grouped = q.reshape(B, K, heads // K, H)
    scores = jnp.einsum(
        "bkgh,bmkh->bkgm", grouped, k, precision="highest", preferred_element_type=jnp.float32
    )
    if linear:
        scores = jnp.where(there[:, None, None], scores, 0)
        read = jnp.einsum("bkgm,bmkd->bkgd", scores, v)
        return read.reshape(B, -1), scores.reshape(B, heads, M)
    scores = scores.reshape(B, heads, M)
    mask = there[:, None, None]
    read, stats = attention(q, k, v, mask=mask, scale=1.0, stats=True, partition=partition)
    # An empty row has logsumexp -inf, and inf - inf would spoil its gradient.
    total = jnp.where(jnp.any(there, axis=-1)[:, None, None], stats.logsumexp, 0)
    weights = jnp.exp(jnp.where(there[:, None], scores - total, -jnp.inf))
    return read.reshape(B, -1), weights


def _word_order(inside: Bool[Array, "... W"], features: int) -> Float[Array, "... W F"]:
    """Returns each word's weight by its place in the sentence, as in section 4.1 of the paper."""
    count = jnp.maximum(jnp.sum(inside, axis=-1, keepdims=True), 1)
    place = (jax.lax.broadcasted_iota(jnp.int32, inside.shape, inside.ndim - 1) + 1) / count
    feature = jnp.arange(1, features + 1) / features
    return (1 - place[..., None]) - feature * (1 - 2 * place[..., None])
