"""The attention modules of a model, by name."""

from __future__ import annotations

from collections.abc import Iterator

from flax import nnx

from attnjax.nn.stack import LayerStack
from attnjax.nn.watching import Watchable


def attention_modules(model: nnx.Module) -> Iterator[tuple[str, Watchable, int]]:
    """Yields dotted path, module and, in a scanned stack, the number of its layers, else 0.

    In the path of a module in a scanned stack, `*` stands for the layers.
    """
    modules = dict(nnx.iter_modules(model))
    scanned = {
        (*path, "layers"): stack.num_layers
        for path, stack in modules.items()
        if isinstance(stack, LayerStack) and stack.scanned
    }
    for path, module in modules.items():
        if not isinstance(module, Watchable):
            continue
        inside = [stack for stack in scanned if path[: len(stack)] == stack]
        if inside:
            stack = inside[0]
            yield _dotted((*stack, "*", *path[len(stack) :])), module, scanned[stack]
        else:
            yield _dotted(path), module, 0


def layer_names(path: str, layers: int) -> list[str]:
    """Returns the path of each layer of a scanned stack, as layers of a list have theirs."""
    return [path.replace("*", str(layer)) for layer in range(layers)]


def _dotted(path: tuple[object, ...]) -> str:
    return ".".join(str(part) for part in path)
