"""Recurrent encoder-decoders with attention, over tokens."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax.models.alignment import Memory, Score
from attnjax.models.pointer import SourceKeys
from attnjax.models.recurrent import CELLS, Bidirectional, Cell
from attnjax.models.recurrent_decoder import DecoderState, RecurrentDecoder
from attnjax.models.source_to_target import SourceToTarget, Tied, check_vocabularies
from attnjax.nn.cache import check_examples, taken
from attnjax.numerics import poison

_SCORES: dict[str, Score] = {"general": "general", "dot": "dot"}


@dataclasses.dataclass(frozen=True)
class RecurrentSeq2SeqConfig:
    """Sizes and choices of a `RecurrentSeq2Seq`.

    Attributes:
      source_vocabulary: number of source tokens.
      target_vocabulary: number of target tokens V.
      features: width F of embeddings and of every state, an even number: each direction of the
        encoder has half of it.
      encoder_layers: bidirectional layers that read the source.
      decoder_layers: layers that write the target.
      attention: `bahdanau`: additive, from the decoder's previous state; `luong`: by products, from
        its new state; `RecurrentDecoder` says how the rest follows.
      score: of `luong`: `general`, `q . W k`, or `dot`.
      input_feeding: of `luong`: whether the decoder reads what it predicted from last.
      cell: `lstm` or `gru`.
      tied: as in `Seq2SeqConfig`.
      embedding_scale: factor on embeddings; None for none.
      copy: whether a `Pointer` may copy tokens of the source, which needs one vocabulary for both.
      dropout_rate: on embeddings, between layers, on recurrent states (the same units at every
        position) and on what is predicted from.
      dtype: dtype of the computation; None promotes the input's with the parameters'.
      param_dtype: dtype of the parameters.
    """

    source_vocabulary: int
    target_vocabulary: int
    features: int = 256
    encoder_layers: int = 1
    decoder_layers: int = 1
    attention: Literal["bahdanau", "luong"] = "bahdanau"
    score: Literal["general", "dot"] = "general"
    input_feeding: bool = True
    cell: Cell = "lstm"
    tied: Tied = "all"
    embedding_scale: float | None = None
    copy: bool = False
    dropout_rate: float = 0.0
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_vocabularies(self)
        owner = type(self).__name__
        if self.features < 2 or self.features % 2:
            raise ValueError(
                f"{owner}.features: expected an even number, half of it for each direction of the "
                f"encoder, got {self.features}."
            )
        for name in ("encoder_layers", "decoder_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{owner}.{name}: expected at least 1, got {getattr(self, name)}.")
        for name, known in (
            ("attention", ("bahdanau", "luong")),
            ("score", tuple(_SCORES)),
            ("cell", tuple(CELLS)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{owner}.{name}: expected one of {', '.join(known)}; got "
                    f"{getattr(self, name)!r}."
                )
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(
                f"{owner}.dropout_rate: expected a number in [0, 1), got {self.dropout_rate!r}."
            )

    def build(self, *, rngs: nnx.Rngs) -> RecurrentSeq2Seq:
        """Builds the model.

        Args:
          rngs: for the parameters, and the stream `dropout`.
        """
        return RecurrentSeq2Seq(self, rngs=rngs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RecurrentCache:
    """What a recurrent decoder keeps of the source and of the target so far.

    Attributes:
      state: of the decoder's layers.
      memory: what they attend to.
      length: target tokens so far, int32 `[]`.
      source: what the pointer keeps of the source, if the model copies; otherwise None.
      attention: if asked for, where the last decoded position looked in the source: float32 weights
        `[B, S]`; zeros before the first. Otherwise None.
      capacity: the longest target that it can hold.
    """

    state: DecoderState
    memory: Memory
    length: Array
    source: SourceKeys | None
    attention: Array | None
    capacity: int = dataclasses.field(metadata={"static": True})

    def rewind(self, lengths: int | Int[Array, "*B"]) -> RecurrentCache:
        """Raises NotImplementedError: a recurrent state holds the present and not the past."""
        raise NotImplementedError(
            "rewind: a recurrent decoder keeps only its present state. Decode prompts of one "
            "length together, or keep the cache from before the tokens that shall be undone."
        )

    def take(self, index: Int[Array, "A"]) -> RecurrentCache:
        """Returns the cache of some examples, source included; `KVCache.take` says how."""
        check_examples(index, self.memory.lengths.shape[0])
        rows = (self.state, self.memory, self.source, self.attention)
        state, memory, source, attention = jax.tree.map(lambda x: taken(x, index), rows)
        return RecurrentCache(state, memory, self.length, source, attention, self.capacity)


class RecurrentSeq2Seq(SourceToTarget):
    """A bidirectional recurrent encoder, and a recurrent decoder that attends to its states.

    Sources: Bahdanau et al., "Neural Machine Translation by Jointly Learning to Align and
    Translate" (2015); Luong et al., "Effective Approaches to Attention-based Neural Machine
    Translation" (2015).

    Args:
      config: sizes and choices.
      rngs: for the parameters, and the stream `dropout`.
    """

    def __init__(self, config: RecurrentSeq2SeqConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, config, config, rngs=rngs)
        self.config = config
        common: dict[str, Any] = {
            "cell": config.cell,
            "dropout": config.dropout_rate,
            "dtype": config.dtype,
            "param_dtype": config.param_dtype,
            "rngs": rngs,
        }
        self.encoder = nnx.List(
            Bidirectional(config.features, config.features // 2, **common)
            for _ in range(config.encoder_layers)
        )
        early = config.attention == "bahdanau"
        self.decoder = RecurrentDecoder(
            config.features,
            config.decoder_layers,
            score="additive" if early else _SCORES[config.score],
            early=early,
            feeding=config.input_feeding and not early,
            **common,
        )
        self.dropout = nnx.Dropout(config.dropout_rate, rngs=rngs)

    def init_cache(
        self,
        source: Int[Array, "B S"],
        source_lengths: Int[Array, "B"],
        capacity: int,
        *,
        attention: bool = False,
        dtype: Any = None,
    ) -> RecurrentCache:
        """Reads the source, and returns a cache for `decode`.

        Args:
          source: source tokens, padded on the right.
          source_lengths: number of tokens of each source.
          capacity: the longest target that it can hold, the begin token included. It costs nothing,
            for the state has one size; it is there so that models can stand for each other.
          attention: whether the cache says where the last decoded position looked.
          dtype: of the state; None is the computation's.

        Raises:
          ValueError: if an argument is wrong.
        """
        if capacity < 1:
            raise ValueError(f"capacity: expected at least 1, got {capacity}.")
        states = self.encode(source, source_lengths)
        memory = self.decoder.alignment.read(states, source_lengths)
        state = self.decoder.start(memory)
        return RecurrentCache(
            state if dtype is None else jax.tree.map(lambda x: x.astype(dtype), state),
            memory,
            jnp.zeros((), jnp.int32),
            self._source_keys(states, source, source_lengths),
            jnp.zeros(source.shape, jnp.float32) if attention else None,
            capacity,
        )

    def decode(
        self, tokens: Int[Array, "B T"], cache: RecurrentCache
    ) -> tuple[Array, RecurrentCache]:
        """Reads the next T target tokens; the result equals that of the full pass.

        Args:
          tokens: the begin token first, then one token of each sequence, or several at once.
          cache: what is kept of the source and of the target so far.

        Returns:
          float32 `[B, T, V]` as in the call, and the next cache. Beyond the capacity they are NaN.

        Raises:
          ValueError: if an argument is wrong.
        """
        x = self.dropout(self._embed(tokens))
        hidden, state, asks = self.decoder(x, cache.state, cache.memory)
        attention = cache.attention
        if attention is not None:
            attention = self.decoder.alignment.last_weights(asks[:, None], cache.memory)
        length = cache.length + tokens.shape[1]
        predicted = self._predicted(hidden, cache.source)
        predicted += poison(length > cache.capacity, predicted.dtype)
        return predicted, dataclasses.replace(
            cache, state=state, length=length, attention=attention
        )

    def _read(self, x: Array, lengths: Array) -> Float[Array, "B S F"]:
        x = self.dropout(x)
        for layer in self.encoder:
            x = layer(x, lengths)
        return x

    def _write(self, x: Array, memory: Array, lengths: Array) -> Float[Array, "B T F"]:
        read = self.decoder.alignment.read(memory, lengths)
        hidden, _, _ = self.decoder(self.dropout(x), self.decoder.start(read), read)
        return hidden
