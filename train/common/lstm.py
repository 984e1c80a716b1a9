"""A bidirectional LSTM over padded sequences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int


class LSTM(nnx.Module):
    """One direction.

    All input products are one matrix product before the scan, which is what makes it fast.
    Source: Hochreiter and Schmidhuber (1997); forget gates start open (Jozefowicz et al., 2015).

    Args:
        features: width of the input.
        hidden: width H of the state.
        rngs: stream `params`.
    """

    def __init__(self, features: int, hidden: int, *, rngs: nnx.Rngs):
        self.hidden = hidden
        self.inputs = nnx.Linear(features, 4 * hidden, rngs=rngs)
        orthogonal = nnx.initializers.orthogonal()
        self.recurrent = nnx.Param(orthogonal(rngs.params(), (hidden, 4 * hidden)))

    def __call__(
        self, x: Float[Array, "B T F"], inside: Bool[Array, "B T"], keep: Float[Array, "B H"]
    ) -> Float[Array, "B T H"]:
        """Reads from the first position to the last; positions not inside change nothing.

        Args:
            x: the sequences.
            inside: which positions belong to each of them.
            keep: factors on the state before each recurrent product, the same at every position
                (Gal and Ghahramani, 2016); ones for no dropout.
        """
        recurrent = self.recurrent[...]

        def read(
            carry: tuple[Array, Array], at: tuple[Array, Array]
        ) -> tuple[tuple[Array, Array], Array]:
            state, cell = carry
            projected, here = at
            gates = projected + (state * keep) @ recurrent
            entry, forget, update, exit_ = jnp.split(gates, 4, axis=-1)
            new_cell = jax.nn.sigmoid(forget + 1) * cell + jax.nn.sigmoid(entry) * jnp.tanh(update)
            new_state = jax.nn.sigmoid(exit_) * jnp.tanh(new_cell)
            here = here[:, None]
            carry = jnp.where(here, new_state, state), jnp.where(here, new_cell, cell)
            return carry, carry[0]

        start = jnp.zeros((x.shape[0], self.hidden), x.dtype)
        along_time = jnp.swapaxes(self.inputs(x), 0, 1), inside.T
        return jnp.swapaxes(jax.lax.scan(read, (start, start), along_time)[1], 0, 1)


class BiLSTM(nnx.Module):
    """Reads forwards and backwards; the states of both stand side by side.

    Args:
        features: width F of the input.
        hidden: width H of each direction.
        dropout: rate on the recurrent state and on the output.
        rngs: streams `params` and `dropout`.
    """

    def __init__(self, features: int, hidden: int, *, dropout: float, rngs: nnx.Rngs):
        self.forwards = LSTM(features, hidden, rngs=rngs)
        self.backwards = LSTM(features, hidden, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T F"], length: Int[Array, "B"]
    ) -> Float[Array, "B T 2*H"]:
        """Reads padded sequences.

        Args:
            x: the sequences, padded at the end.
            length: how many positions of each count.

        Returns:
            The states; those beyond the length mean nothing.
        """
        inside = jnp.arange(x.shape[1]) < length[:, None]
        ones = jnp.ones((x.shape[0], self.forwards.hidden), x.dtype)
        there = self.forwards(x, inside, self.dropout(ones))
        # Backwards the padding comes first: it leaves the zero state as it is.
        back = self.backwards(x[:, ::-1], inside[:, ::-1], self.dropout(ones))[:, ::-1]
        return self.dropout(jnp.concatenate([there, back], axis=-1))
