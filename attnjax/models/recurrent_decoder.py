"""A recurrent decoder that attends to what an encoder made, step by step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from attnjax.models.alignment import Alignment, Memory, Score
from attnjax.models.recurrent import CELLS, Carry, Cell


class DecoderState(NamedTuple):
    """What the decoder keeps from step to step.

    Attributes:
      layers: carry of each layer.
      fed: what was predicted from last, `[B, F]`; Luong's decoder reads it with the next token.
    """

    layers: tuple[Carry, ...]
    fed: Float[Array, "B F"]

    @property
    def top(self) -> Float[Array, "B F"]:
        """State of the last layer."""
        return self.layers[-1][0]


class Keep(NamedTuple):
    """Factors of dropout, the same at every position.

    Attributes:
      states: on the state of each layer before its recurrent product, `[B, F]` each.
      outputs: on what goes from each layer to the next, likewise.
    """

    states: tuple[Float[Array, "B F"], ...]
    outputs: tuple[Float[Array, "B F"], ...]


class RecurrentDecoder(nnx.Module):
    """Layers of LSTM or GRU, and attention before them (Bahdanau) or after them (Luong).

    `early`: the last layer's previous state asks, the first layer reads the token and the answer
    `c`, and what is predicted from is `tanh(W [s; c; token])`; the paper's maxout is a tanh here.
    Otherwise the layers read the token and, if `feeding`, what was predicted from last; the last
    layer's new state asks, and what is predicted from is `tanh(W [s; c])`.

    Sources: Bahdanau et al. (2015), appendix A.2.2; Luong et al. (2015), sections 3.1 and 3.3.

    Args:
      features: width F of tokens, states and memory.
      layers: number of layers.
      cell: `lstm` or `gru`.
      score: how states are compared with the memory.
      early: whether attention comes before the layers.
      feeding: whether the layers read what was predicted from last; without it, and with attention
        after the layers, all positions ask at once.
      dropout: rate on the recurrent state, between layers and on what is predicted from.
      dtype: dtype of the computation; None promotes the input's with the parameters'.
      param_dtype: dtype of the parameters.
      rngs: streams `params` and `dropout`.
    """

    def __init__(
        self,
        features: int,
        layers: int,
        *,
        cell: Cell,
        score: Score,
        early: bool,
        feeding: bool,
        dropout: float,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ) -> None:
        self.early, self.feeding = early, feeding
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.cells = nnx.List(CELLS[cell](features, features, **common) for _ in range(layers))
        # Beside `cells[0].inputs`, whose products with the tokens are taken before the scan.
        gates = self.cells[0].gates * features
        second = early or feeding
        self.second = nnx.Linear(features, gates, use_bias=False, **common) if second else None
        self.alignment = Alignment(features, score=score, **common)
        self.readout = nnx.Linear((3 if early else 2) * features, features, **common)
        parts = sum(layer.parts for layer in self.cells)
        self.bridge = nnx.Linear(features, parts * features, **common)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def start(self, memory: Memory) -> DecoderState:
        """Returns the state before the first token: a layer over the encoder's last states."""
        half = memory.states.shape[-1] // 2
        # Forwards the last state stands at every later position, backwards at the first.
        ends = memory.states[:, -1, :half], memory.states[:, 0, half:]
        parts = jnp.tanh(self.bridge(jnp.concatenate(ends, axis=-1)))
        pieces = iter(jnp.split(parts, sum(layer.parts for layer in self.cells), axis=-1))
        layers = tuple(tuple(next(pieces) for _ in range(c.parts)) for c in self.cells)
        return DecoderState(layers, jnp.zeros_like(layers[-1][0]))

    def __call__(
        self, x: Float[Array, "B T F"], state: DecoderState, memory: Memory
    ) -> tuple[Float[Array, "B T F"], DecoderState, Float[Array, "B F"]]:
        """Reads the next T tokens.

        Args:
          x: embeddings.
          state: what `start` or the last call returned.
          memory: what `self.alignment.read` returned.

        Returns:
          What to predict from, the next state, and what asked for the last position's attention.
        """
        keep = self._keep(x)
        projected = self.cells[0].inputs(x)

        def read(state: DecoderState, at: tuple[Array, Array]) -> tuple[DecoderState, Any]:
            token, projected = at
            if self.early:
                asks = state.top
                context = self._look(asks, memory)
                state = self._advance(state, projected, context, keep)
                out = self._predict(state.top, context, token)
            else:
                fed = state.fed if self.feeding else None
                state = self._advance(state, projected, fed, keep)
                asks = out = state.top
                if self.feeding:
                    out = self._predict(asks, self._look(asks, memory))
            return state._replace(fed=out), (out, asks)

        along_time = jnp.swapaxes(x, 0, 1), jnp.swapaxes(projected, 0, 1)
        state, (out, asks) = jax.lax.scan(read, state, along_time)
        out = jnp.swapaxes(out, 0, 1)
        if not self.early and not self.feeding:
            out = self._predict(out, self.alignment(out, memory))
        return self.dropout(out), state, asks[-1]

    def _look(self, asks: Array, memory: Memory) -> Array:
        return self.alignment(asks[:, None], memory)[:, 0]

    def _advance(
        self, state: DecoderState, projected: Array, second: Array | None, keep: Keep
    ) -> DecoderState:
        if self.second is not None and second is not None:
            projected = projected + self.second(second)
        layers: list[Carry] = []
        for n, (cell, carry) in enumerate(zip(self.cells, state.layers, strict=True)):
            if n:
                projected = cell.inputs(layers[-1][0] * keep.outputs[n - 1])
            layers.append(cell.step(carry, projected, keep.states[n]))
        return state._replace(layers=tuple(layers))

    def _predict(self, *parts: Array) -> Array:
        return jnp.tanh(self.readout(jnp.concatenate(parts, axis=-1)))

    def _keep(self, x: Array) -> Keep:
        ones = jnp.ones((x.shape[0], x.shape[-1]), x.dtype)
        states = tuple(self.dropout(ones) for _ in self.cells)
        return Keep(states, tuple(self.dropout(ones) for _ in self.cells[1:]))
