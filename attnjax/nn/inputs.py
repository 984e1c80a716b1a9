"""What happens to embeddings before the first layer of a stack."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax.nn.config import TransformerConfig
from attnjax.nn.positions import Positions


class InputPositions(nnx.Module):
    """Adds learned or sinusoidal positions to a stack's input, then applies dropout.

    Args:
      config: sizes and choices; other position schemes leave the input as it is.
      rngs: for the parameters, and the stream `dropout`.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs) -> None:
        scheme = config.attention.position
        self.scheme = scheme if scheme is not None and scheme.absolute else Positions()
        self.features = config.features
        self.scheme.check(
            features=config.features, num_heads=config.num_heads, head_dim=config.features
        )
        table = self.scheme.init(
            rngs.params(),
            features=config.features,
            num_heads=config.num_heads,
            dtype=config.param_dtype,
        )
        self.table = None if table is None else nnx.Param(table)
        self.dropout = nnx.Dropout(config.dropout_rate, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T F"], positions: Int[Array, "*B T"] | None
    ) -> Float[Array, "B T F"]:
        """Adds the positions.

        Args:
          x: the sequence.
          positions: integers `[T]` or `[B, T]`; None counts from 0.

        Returns:
          An array of the same shape.

        Raises:
          ValueError: if `x` has another width or rank.
        """
        if x.ndim != 3 or x.shape[-1] != self.features:
            raise ValueError(
                f"x: expected an array [batch, time, {self.features}], got shape {x.shape}."
            )
        at: Any = positions
        if at is None:
            at = np.arange(x.shape[1], dtype=np.int32)  # known inside a trace, too
        table = None if self.table is None else self.table[...]
        return self.dropout(self.scheme.embed(x, at, table))

    def for_layers(self, positions: Array | None) -> Array | None:
        """Returns the positions that the layers still need to be told."""
        return None if self.scheme.absolute else positions
