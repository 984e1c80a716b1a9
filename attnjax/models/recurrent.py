"""Recurrent layers over padded sequences: LSTM and GRU, one step, one direction, or both."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

Cell = Literal["lstm", "gru"]
Carry = tuple[Array, ...]
"""What a layer keeps from step to step, `[B, H]` each; the first is its output."""


class Recurrent(nnx.Module):
    """Base of the layers that read in one direction.

    All input products are one matrix product before the scan, which is what makes it fast.

    Args:
      features: width F of the input.
      hidden: width H of the state.
      dtype: dtype of the computation; None promotes the input's with the parameters'.
      param_dtype: dtype of the parameters.
      rngs: stream `params`.
    """

    gates: ClassVar[int]
    parts: ClassVar[int]
    """Arrays of the carry."""

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.hidden = hidden
        self.inputs = nnx.Linear(
            features, self.gates * hidden, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        orthogonal = nnx.initializers.orthogonal()
        shape = (hidden, self.gates * hidden)
        self.recurrent = nnx.Param(orthogonal(rngs.params(), shape, param_dtype))

    def step(
        self, carry: Carry, projected: Float[Array, "B G*H"], keep: Float[Array, "B H"]
    ) -> Carry:
        """Reads one position.

        Args:
          carry: what the last step returned, or zeros.
          projected: `self.inputs` of what is read.
          keep: factors on the state before the recurrent product, the same at every position (Gal
            and Ghahramani, 2016); ones for no dropout.
        """
        raise NotImplementedError

    def start(self, batch: int, dtype: Any) -> Carry:
        """Returns the carry before the first position."""
        return (jnp.zeros((batch, self.hidden), dtype),) * self.parts

    def __call__(
        self, x: Float[Array, "B T F"], inside: Bool[Array, "B T"], keep: Float[Array, "B H"]
    ) -> Float[Array, "B T H"]:
        """Reads from the first position to the last; positions not inside change nothing.

        Args:
          x: the sequences.
          inside: which positions belong to each of them.
          keep: as in `step`.
        """

        def read(carry: Carry, at: tuple[Array, Array]) -> tuple[Carry, Array]:
            projected, here = at
            new = self.step(carry, projected, keep)
            carry = tuple(jnp.where(here[:, None], n, o) for n, o in zip(new, carry, strict=True))
            return carry, carry[0]

        projected = self.inputs(x)
        along_time = jnp.swapaxes(projected, 0, 1), inside.T
        start = self.start(x.shape[0], projected.dtype)
        return jnp.swapaxes(jax.lax.scan(read, start, along_time)[1], 0, 1)


class LSTM(Recurrent):
    """One direction of an LSTM.

    Source: Hochreiter and Schmidhuber (1997); forget gates start open (Jozefowicz et al., 2015).
    """

    gates, parts = 4, 2

    def step(self, carry: Carry, projected: Array, keep: Array) -> Carry:
        """Reads one position; the carry is the state and the cell."""
        state, cell = carry
        gates = projected + (state * keep) @ self.recurrent[...].astype(projected.dtype)
        entry, forget, update, exit_ = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(forget + 1) * cell + jax.nn.sigmoid(entry) * jnp.tanh(update)
        return jax.nn.sigmoid(exit_) * jnp.tanh(cell), cell


class GRU(Recurrent):
    """One direction of a GRU.

    Source: Cho et al. (2014), the state's product taken before it is reset, as in cuDNN.
    """

    gates, parts = 3, 1

    def step(self, carry: Carry, projected: Array, keep: Array) -> Carry:
        """Reads one position; the carry is the state."""
        (state,) = carry
        product = (state * keep) @ self.recurrent[...].astype(projected.dtype)
        *gates, change = jnp.split(projected, 3, axis=-1)
        *products, changed = jnp.split(product, 3, axis=-1)
        reset, old = (jax.nn.sigmoid(a + b) for a, b in zip(gates, products, strict=True))
        return ((1 - old) * jnp.tanh(change + reset * changed) + old * state,)


CELLS: dict[str, type[Recurrent]] = {"lstm": LSTM, "gru": GRU}


class Bidirectional(nnx.Module):
    """Reads forwards and backwards; the states of both stand side by side.

    Args:
      features: width F of the input.
      hidden: width H of each direction.
      cell: `lstm` or `gru`.
      dropout: rate on the recurrent state and on the output.
      dtype: dtype of the computation; None promotes the input's with the parameters'.
      param_dtype: dtype of the parameters.
      rngs: streams `params` and `dropout`.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        cell: Cell = "lstm",
        dropout: float,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.forwards, self.backwards = (
            CELLS[cell](features, hidden, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
            for _ in range(2)
        )
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T F"], length: Int[Array, "B"]
    ) -> Float[Array, "B T 2*H"]:
        """Reads padded sequences.

        Args:
          x: the sequences, padded at the end.
          length: how many positions of each count.

        Returns:
          The states. From the length on, those forwards stay what they were at the last position,
          and those backwards are 0.
        """
        inside = jnp.arange(x.shape[1]) < length[:, None]
        ones = jnp.ones((x.shape[0], self.forwards.hidden), x.dtype)
        there = self.forwards(x, inside, self.dropout(ones))
        # Backwards the padding comes first: it leaves the zero state as it is.
        back = self.backwards(x[:, ::-1], inside[:, ::-1], self.dropout(ones))[:, ::-1]
        return self.dropout(jnp.concatenate([there, back], axis=-1))
