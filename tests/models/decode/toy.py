"""A model small enough to enumerate: its logits depend on all of the history, in no simple way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

VOCABULARY, SOURCE, CAPACITY = 4, 3, 16
END = 3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    tokens: jax.Array  # [B, CAPACITY]
    length: jax.Array  # [B]
    source_lengths: jax.Array  # [B]
    attention: jax.Array | None = None  # [B, SOURCE]

    @property
    def capacity(self):
        return self.tokens.shape[1]

    def take(self, index):
        return jax.tree.map(lambda x: x[index], self)

    def rewind(self, length):
        return dataclasses.replace(self, length=length)


class Toy:
    """Adds up a table entry for each token of the history, chosen by how far back it lies."""

    def __init__(self, seed=0, loud=1.0, vocabulary=VOCABULARY):
        random = np.random.default_rng(seed)
        self.logits = random.normal(0, loud, (CAPACITY, vocabulary, vocabulary)).astype(np.float32)
        self.looks = random.normal(0, 2, (CAPACITY, vocabulary, SOURCE)).astype(np.float32)

    def cache(self, batch, *, capacity=CAPACITY, source_lengths=None):
        lengths = jnp.full(batch, SOURCE) if source_lengths is None else source_lengths
        attention = None if source_lengths is None else jnp.zeros((batch, SOURCE))
        tokens = jnp.zeros((batch, capacity), jnp.int32)
        return Cache(tokens, jnp.zeros(batch, jnp.int32), jnp.asarray(lengths), attention)

    def decode(self, tokens, cache):
        rows, outputs = jnp.arange(tokens.shape[0]), []
        held, length = cache.tokens, cache.length
        for t in range(tokens.shape[1]):
            held = held.at[rows, length].set(tokens[:, t], mode="drop")
            back = length[:, None] - jnp.arange(held.shape[1])
            inside = (back >= 0)[..., None]
            logits = jnp.sum(jnp.where(inside, jnp.asarray(self.logits)[back, held], 0), axis=1)
            looks = jnp.sum(jnp.where(inside, jnp.asarray(self.looks)[back, held], 0), axis=1)
            full = (length >= held.shape[1])[:, None]
            outputs.append(jnp.where(full, jnp.nan, logits))
            length = length + 1
        attention = cache.attention
        if attention is not None:
            hidden = jnp.arange(SOURCE) >= cache.source_lengths[:, None]
            attention = jax.nn.softmax(jnp.where(hidden, -jnp.inf, looks))
        return jnp.stack(outputs, axis=1), Cache(held, length, cache.source_lengths, attention)

    def logprobs(self, history):
        """What `decode` says after a history, as log-probabilities in float64."""
        logits = sum(self.logits[n, token].astype(float) for n, token in enumerate(history[::-1]))
        return logits - np.log(np.sum(np.exp(logits)))

    def attends(self, history, source_length):
        looks = sum(self.looks[n, token].astype(float) for n, token in enumerate(history[::-1]))
        weights = np.where(np.arange(SOURCE) < source_length, np.exp(looks), 0)
        return weights / weights.sum()
