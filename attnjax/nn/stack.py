"""A stack of equal layers: a list, or one layer with stacked parameters that is scanned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from attnjax.nn.blocks import TransformerBlock
from attnjax.nn.config import TransformerConfig

_POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


class LayerStack(nnx.Module):
    """The layers of an encoder or a decoder.

    Scanned or not, the same parameters give the same results; every layer has a dropout stream of
    its own.

    Args:
      config: sizes and choices.
      cross: whether the layers attend to a memory.
      rngs: for the parameters, and the stream `dropout`.
    """

    def __init__(self, config: TransformerConfig, *, cross: bool, rngs: nnx.Rngs) -> None:
        self.scanned, self.remat = config.scan_layers, config.remat
        self.num_layers = config.num_layers
        self.layers: TransformerBlock | nnx.List
        if not config.scan_layers:
            self.layers = nnx.List(
                TransformerBlock(config, cross=cross, rngs=rngs) for _ in range(config.num_layers)
            )
            return

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap
        def build(rngs: nnx.Rngs) -> TransformerBlock:
            return TransformerBlock(config, cross=cross, rngs=rngs)

        self.layers = build(rngs)

    def run(
        self,
        function: Callable[[TransformerBlock, Array, Any], tuple[Array, Any]],
        x: Array,
        per_layer: Any,
    ) -> tuple[Array, Any]:
        """Passes an array through the layers.

        Args:
          function: `(layer, x, part) -> (x, result)`.
          x: what goes into the first layer.
          per_layer: a pytree of arrays that hold one entry per layer on their first axis; each
            layer gets its part. None if there is nothing.

        Returns:
          What came out of the last layer, and the layers' results, stacked on a new first axis.
        """
        if self.remat != "none":
            # Inside a scan no common subexpression can undo the rematerialisation.
            function = nnx.remat(
                function, prevent_cse=not self.scanned, policy=_POLICIES[self.remat]
            )
        if self.scanned:
            scan = nnx.scan(function, in_axes=(0, nnx.Carry, 0), out_axes=(nnx.Carry, 0))
            return scan(self.layers, x, per_layer)
        results = []
        for n, layer in enumerate(self.layers):
            x, result = function(layer, x, jax.tree.map(lambda a, n=n: a[n], per_layer))
            results.append(result)
        return x, jax.tree.map(lambda *parts: jnp.stack(parts), *results)

    def each(self, function: Callable[[TransformerBlock], Any]) -> Any:
        """Returns `function(layer)` of every layer, stacked on a new first axis."""
        if self.scanned:
            return nnx.vmap(function)(self.layers)
        results = [function(layer) for layer in self.layers]
        return jax.tree.map(lambda *parts: jnp.stack(parts), *results)
