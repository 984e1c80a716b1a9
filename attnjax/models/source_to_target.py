"""What encoder-decoders over tokens share, whatever reads and writes: vocabularies and heads."""

from __future__ import annotations

from typing import Any, Literal, Protocol, get_args

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax.models.losses import BLOCK, token_losses
from attnjax.models.pointer import Pointer, SourceKeys
from attnjax.models.vocabulary import (
    Width,
    build_embedding,
    build_output,
    check_tokens,
    check_vocabulary,
    embed,
    project,
)
from attnjax.sharding.partition import Partition

Tied = Literal["all", "inputs", "target", "none"]


class Vocabularies(Protocol):
    """What every config of an encoder-decoder says about its vocabularies."""

    @property
    def source_vocabulary(self) -> int: ...
    @property
    def target_vocabulary(self) -> int: ...
    @property
    def tied(self) -> Tied: ...
    @property
    def embedding_scale(self) -> float | None: ...
    @property
    def copy(self) -> bool: ...


def check_vocabularies(config: Vocabularies) -> None:
    """Raises ValueError unless a config's two vocabularies allow its `tied` and its `copy`."""
    owner = type(config).__name__
    for name in ("source_vocabulary", "target_vocabulary"):
        check_vocabulary(f"{owner}.{name}", getattr(config, name))
    if config.tied not in get_args(Tied):
        raise ValueError(
            f"{owner}.tied: expected one of {', '.join(get_args(Tied))}; got {config.tied!r}."
        )
    if config.source_vocabulary == config.target_vocabulary:
        return
    sizes = f"{config.source_vocabulary} and {config.target_vocabulary} tokens"
    if config.tied in ("all", "inputs"):
        raise ValueError(
            f"{owner}.tied: {config.tied!r} needs one vocabulary for source and target, got "
            f"{sizes}. Choose 'target' or 'none'."
        )
    if config.copy:
        raise ValueError(
            f"{owner}.copy: copying needs one vocabulary for source and target, got {sizes}."
        )


class SourceToTarget(nnx.Module):
    """Base of the encoder-decoders: embeddings, output matrix and pointer, and the full pass.

    A subclass says how the source is read (`_read`) and the target written (`_write`).

    Args:
      config: vocabularies.
      source: width and dtypes of what reads.
      target: those of what writes.
      precision: of the product with the output matrix.
      rngs: for the parameters.
    """

    def __init__(
        self,
        config: Vocabularies,
        source: Width,
        target: Width,
        *,
        precision: Any = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.precision = precision
        self.vocabularies = config
        self.embedding = build_embedding(config.target_vocabulary, target, rngs=rngs)
        self.source_embedding = (
            None
            if config.tied in ("all", "inputs")
            else build_embedding(config.source_vocabulary, source, rngs=rngs)
        )
        self.output = (
            build_output(config.target_vocabulary, target, rngs=rngs)
            if config.tied in ("inputs", "none")
            else None
        )
        self.pointer = (
            Pointer(target.features, dtype=target.dtype, param_dtype=target.param_dtype, rngs=rngs)
            if config.copy
            else None
        )

    def __call__(
        self,
        source: Int[Array, "B S"],
        target: Int[Array, "B T"],
        *,
        source_lengths: Int[Array, "B"],
    ) -> Float[Array, "B T V"]:
        """Computes the logits of what follows each target token.

        Args:
          source: source tokens, padded on the right.
          target: target tokens, the begin token first.
          source_lengths: number of tokens of each source.

        Returns:
          float32; if the model copies, the logarithm of the mixture's probabilities.

        Raises:
          ValueError: if an argument is wrong.
        """
        memory = self.encode(source, source_lengths)
        hidden = self._write(self._embed(target), memory, source_lengths)
        keys = self._source_keys(memory, source, source_lengths)
        return self._predicted(hidden, keys)

    def target_logprobs(
        self,
        source: Int[Array, "B S"],
        inputs: Int[Array, "B T"],
        targets: Int[Array, "B T"],
        source_lengths: Int[Array, "B"],
        *,
        block: int = BLOCK,
    ) -> Float[Array, "B T"]:
        """Returns the log-probability of each target, without all logits or weights at once.

        Args:
          source: source tokens, padded on the right.
          inputs: target tokens, the begin token first.
          targets: what follows each of them.
          source_lengths: number of tokens of each source.
          block: positions whose logits are held at a time.

        Returns:
          float32.

        Raises:
          ValueError: if an argument is wrong.
        """
        memory = self.encode(source, source_lengths)
        hidden = self._write(self._embed(inputs), memory, source_lengths)
        losses = token_losses(
            self.logits, hidden, targets, block=block, partition=self._target_partition
        )
        keys = self._source_keys(memory, source, source_lengths)
        if self.pointer is None or keys is None:
            return -losses
        return self.pointer.target_logprobs(hidden, -losses, targets, keys)

    def encode(
        self, source: Int[Array, "B S"], source_lengths: Int[Array, "B"]
    ) -> Float[Array, "B S F"]:
        """Reads the source.

        Args:
          source: source tokens, padded on the right.
          source_lengths: number of tokens of each source.

        Raises:
          ValueError: if an argument is wrong.
        """
        check_source(source, source_lengths)
        table = self.embedding if self.source_embedding is None else self.source_embedding
        return self._read(embed(table, source, self.vocabularies.embedding_scale), source_lengths)

    def logits(self, hidden: Float[Array, "*B F"]) -> Float[Array, "*B V"]:
        """Returns what the vocabulary says, float32, before any mixture with a pointer's."""
        output = self.embedding if self.output is None else self.output
        return project(hidden, output, self.precision)

    @property
    def _target_partition(self) -> Partition | None:
        """How target sequences are spread over a mesh."""
        return None

    def _read(self, x: Array, lengths: Array) -> Float[Array, "B S F"]:
        raise NotImplementedError

    def _write(self, x: Array, memory: Array, lengths: Array) -> Float[Array, "B T F"]:
        raise NotImplementedError

    def _embed(self, target: Array) -> Array:
        check_tokens("target", target)
        return embed(self.embedding, target, self.vocabularies.embedding_scale)

    def _source_keys(self, memory: Array, source: Array, lengths: Array) -> SourceKeys | None:
        return None if self.pointer is None else self.pointer.read(memory, source, lengths)

    def _predicted(self, hidden: Array, source: SourceKeys | None) -> Float[Array, "B T V"]:
        """The logits, or what the pointer makes of them."""
        logits = self.logits(hidden)
        if self.pointer is None:
            return logits
        assert source is not None
        return self.pointer.logprobs(hidden, logits, source)


def check_source(source: Any, lengths: Any) -> None:
    """Raises ValueError unless there are integers `[B, S]` and a length for each row."""
    check_tokens("source", source)
    shape = jnp.shape(lengths)
    if shape != source.shape[:1] or not jnp.issubdtype(jnp.result_type(lengths), jnp.integer):
        raise ValueError(
            f"source_lengths: expected integers [B={source.shape[0]}], got shape {shape}, dtype "
            f"{jnp.result_type(lengths)}."
        )
