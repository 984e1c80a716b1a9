"""Transformer encoder: every position may attend to every other."""

from __future__ import annotations

from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax.masks import Mask
from attnjax.nn.blocks import TransformerBlock
from attnjax.nn.config import TransformerConfig
from attnjax.nn.inputs import InputPositions
from attnjax.nn.spreading import place_sequence
from attnjax.nn.stack import LayerStack, stacked
from attnjax.ops.softmax.stats import AttentionStats


class Encoder(nnx.Module):
    """A stack of Transformer layers over embeddings.

    Args:
      config: sizes and choices.
      rngs: for the parameters, and the stream `dropout`.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs) -> None:
        self.inputs = InputPositions(config, rngs=rngs)
        self.stack = LayerStack(config, cross=False, rngs=rngs)
        self.norm = config.build_norm(rngs=rngs) if config.norm_position != "post" else None

    def __call__(
        self,
        x: Float[Array, "B T F"],
        *,
        mask: Mask | Array | None = None,
        positions: Int[Array, "*B T"] | None = None,
        stats: bool = False,
    ) -> Array | tuple[Array, AttentionStats]:
        """Encodes a sequence.

        Args:
          x: embeddings.
          mask: mask of every self-attention, for example `attnjax.Prefix(lengths)` to hide padding.
          positions: integers `[T]` or `[B, T]`; None counts from 0.
          stats: also return the `AttentionStats` of every layer, stacked on a new first axis.

        Returns:
          `[B, T, F]`; with `stats=True`, a pair of it and the statistics.

        Raises:
          ValueError: if an argument is wrong.
        """
        x = place_sequence(x, self.stack.partition)
        x, positions = self.inputs(x, positions), self.inputs.for_layers(positions)
        score_mods = self.inputs.score_mods()

        def layer(block: TransformerBlock, x: Array, _: None) -> tuple[Array, Any]:
            result = block(x, mask=mask, score_mod=score_mods, positions=positions, stats=stats)
            return result if stats else (result, None)

        x, found = self.stack.run(layer, x, None)
        x = x if self.norm is None else self.norm(x)
        return (x, stacked(found)) if stats else x
