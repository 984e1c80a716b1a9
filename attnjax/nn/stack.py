"""A stack of layers: a list, or one layer with stacked parameters that is scanned."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from attnjax.nn.blocks import TransformerBlock
from attnjax.nn.config import TransformerConfig
from attnjax.sharding.partition import Partition

_POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


@jax.tree_util.register_pytree_node_class
class PerLayer(tuple):
    """Arrays of the layers of a list, where scanned layers have one array with one more axis."""

    __slots__ = ()

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        return tuple(self), None

    @classmethod
    def tree_unflatten(cls, _: None, arrays: Iterable[Any]) -> PerLayer:
        return cls(arrays)


def stacked(results: Any) -> Any:
    """Returns results of layers, of a list or scanned, as arrays stacked on a new first axis."""
    return _map_layers(lambda x: jnp.stack(x) if isinstance(x, PerLayer) else x, results)


def _map_layers(function: Callable[[Any], Any], results: Any) -> Any:
    return jax.tree.map(function, results, is_leaf=lambda x: isinstance(x, PerLayer))


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
        self.layers: Any  # a list of blocks; if scanned, one whose arrays hold all the layers
        if not config.scan_layers:
            self.layers = nnx.List(
                TransformerBlock(config, cross=cross, layer=n, rngs=rngs)
                for n in range(config.num_layers)
            )
            return

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap
        def build(rngs: nnx.Rngs) -> TransformerBlock:
            return TransformerBlock(config, cross=cross, rngs=rngs)

        self.layers = build(rngs)

    @property
    def partition(self) -> Partition | None:
        """How the layers are spread over a mesh."""
        layer = self.layers if self.scanned else self.layers[0]
        found: Partition | None = layer.attention.options.partition
        return found

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
          per_layer: a pytree of what `each` gives, of which each layer gets its part. None if there
            is nothing.

        Returns:
          What came out of the last layer, and the layers' results, as `each` gives them.
        """
        if self.scanned:
            step, state = self._pure(self.layers, function)
            x, (rest, results) = jax.lax.scan(step, x, (*state, per_layer))
            self._keep(self.layers, rest)
            return x, results
        results = []
        for n, layer in enumerate(self.layers):
            part = _map_layers(operator.itemgetter(n), per_layer)
            if self.remat == "none":
                x, result = function(layer, x, part)
            else:
                step, state = self._pure(layer, function)
                x, (rest, result) = step(x, (*state, part))
                self._keep(layer, rest)
            results.append(result)
        return x, _one_by_one(results)

    def each(self, function: Callable[[TransformerBlock], Any]) -> Any:
        """Returns `function(layer)` of every layer.

        Returns:
          A pytree of arrays: of scanned layers stacked on a new first axis, of a list `PerLayer`,
          because stacking what a step of decoding changes would copy all of it.
        """
        if self.scanned:
            graphdef, state = nnx.split(self.layers)
            return jax.vmap(lambda state: function(nnx.merge(graphdef, state)))(state)
        return _one_by_one([function(layer) for layer in self.layers])

    def _pure(self, layers: TransformerBlock, function: Callable[..., Any]) -> Any:
        """Returns the function over the state of a layer, and the state: parameters and the rest.

        The function returns the rest in its new state, or None if nothing in it changed. nnx.scan
        and nnx.remat would write everything back, which nnx refuses inside a `lax.scan` that the
        module was made outside of, such as a loop of decoding steps.
        """
        graphdef, *state = nnx.split(layers, nnx.Param, ...)

        def step(x: Array, parts: Any) -> tuple[Array, Any]:
            params, rest, part = parts
            before = jax.tree.leaves(rest)  # the merged layer may write into `rest` itself
            layer = nnx.merge(graphdef, params, rest)
            x, result = function(layer, x, part)
            after = nnx.state(layer, nnx.Not(nnx.Param))
            pairs = zip(before, jax.tree.leaves(after), strict=True)
            return x, (after if any(a is not b for a, b in pairs) else None, result)

        if self.remat != "none":
            # Inside a scan no common subexpression can undo the rematerialisation.
            step = jax.checkpoint(step, prevent_cse=not self.scanned, policy=_POLICIES[self.remat])
        return step, state

    @staticmethod
    def _keep(layers: TransformerBlock, rest: Any) -> None:
        if rest is not None:
            nnx.update(layers, rest)


def _one_by_one(results: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *parts: PerLayer(parts), *results)
