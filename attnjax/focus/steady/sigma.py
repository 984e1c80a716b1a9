"""Sigma-reparametrisation of a model's layers, in place, and the way back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from flax import nnx

from attnjax.nn.attention import MultiHeadAttention
from attnjax.nn.sigma import (
    FIRST_STEPS,
    SIGMA_KINDS,
    SigmaLayer,
    begin_sigma,
    divisor_of,
    kernel_of,
    new_vector,
)
from attnjax.nn.watching import Watchable

Where = Callable[[str, nnx.Module], bool]


def sigma_reparam(
    model: nnx.Module, where: Where | None = None, *, keep: bool = False, steps: int = 1
) -> int:
    """Gives linear layers the kernel `gamma / sigma(W) * W`, `sigma(W)` being W's spectral norm.

    The entropy of attention weights is bounded from below by a function of the spectral norms of
    its projections, which then change only with `gamma`, a learned number per layer:

        model = Encoder(config, rngs=nnx.Rngs(0))
        sigma_reparam(model)  # before the optimiser is made, for gamma is a parameter
        ...  # train; model.eval() stops the power iteration
        fold_sigma(model)  # plain layers again, with the same outputs

    Layers become `attnjax.nn.SigmaLinear` or `SigmaLinearGeneral` in place, and are then what they
    were but for their class, the parameter `gamma` and the variable `vector` (a `SigmaVector`, to
    be saved with the rest of the state). `AttentionOptions(sigma_reparam=True)` builds the
    projections of new modules so. Layers that a scan runs over have a gamma each.

    Every call in training makes a step of power iteration, so it changes `vector` as batch
    statistics are changed: carry it on as `flax.nnx` or `nnx.split(model, nnx.Param, ...)` do.
    Averages of parameters are measured along the vectors of what they average; `refresh_sigma`
    measures them anew.

    One step a call follows the norm with a delay, and never above it: on a tiny model that Adam
    changed fast (0.02), the estimate fell to 0.63 of the norm for a while, with 4 steps to 0.81.

    Decay of W only changes how far a step turns it. A kernel of zeros is left as it is while it is
    zeros, and its first step away from them gives it the spectral norm gamma. QK-clip and `Auto`
    refuse heads with such queries or keys: scaling one head would scale the others.

    Source: Zhai et al., "Stabilizing Transformer Training by Preventing Attention Entropy Collapse"
    (2023), who give it to all linear layers.

    Args:
      model: any module; changed in place, outside of jitted functions.
      where: of a dotted path and the `nnx.Linear` or `nnx.LinearGeneral` there (not of a subclass),
        whether to change it; `lambda path, layer: True` takes all. None takes the projections of
        attention modules of attnjax.nn and of `flax.nnx.MultiHeadAttention`.
      keep: start gamma at the spectral norm, so that a trained model goes on as it was, instead of
        at 1.
      steps: of power iteration in every call in training, at least 1.

    Returns:
      The number of kernels that were changed, each layer of a scanned stack counted.

    Raises:
      ValueError: if there is none to change, or no step.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}.")
    evaluating = _evaluating(model)
    chosen = [x for path, x, own in _layers(model) if (where(path, x) if where else own)]
    if not chosen:
        raise ValueError(
            "model: expected plain nnx.Linear or nnx.LinearGeneral layers to change "
            f"{'where `where` says so' if where else 'in attention modules'}, found none in "
            f"{type(model).__name__} (layers that are changed already do not count)."
        )
    kernels = 0
    for layer in chosen:
        layer.__class__ = SIGMA_KINDS[type(layer)]
        begin_sigma(layer)
        layer.deterministic, layer.steps = evaluating, steps
        if keep:
            layer.gamma[...] = divisor_of(layer)
        kernels += layer.gamma.size
    return kernels


def fold_sigma(model: nnx.Module) -> int:
    """Makes reparametrised layers plain ones whose kernels give the outputs of evaluation.

    Inference then costs what it costs without, and everything that handles plain kernels (writing
    pretrained weights, QK-clip, `nnx.LinearGeneral` elsewhere) is at home again.

    Args:
      model: any module; changed in place, outside of jitted functions.

    Returns:
      The number of kernels that were changed, each layer of a scanned stack counted; 0 if there is
      nothing to fold.

    Raises:
      NotImplementedError: for a subclass of these layers; names it.
    """
    modules: list[Any] = [module for _, module in nnx.iter_modules(model)]
    found: list[tuple[Any, type[nnx.Module]]] = [
        (x, _plain(x)) for x in modules if isinstance(x, SigmaLayer)
    ]
    kernels = 0
    for layer, plain in found:
        kernels += layer.gamma.size
        layer.kernel[...] = kernel_of(layer)
        del layer.gamma, layer.vector, layer.deterministic, layer.steps
        layer.__class__ = plain
    for module in modules:
        if isinstance(module, MultiHeadAttention) and module.options.sigma_reparam:
            module.options = dataclasses.replace(module.options, sigma_reparam=False)
    return kernels


def refresh_sigma(model: nnx.Module, *, steps: int = FIRST_STEPS) -> int:
    """Measures the kernels of reparametrised layers anew, wherever these now are.

    For kernels that were replaced without their vectors: averages of parameters, weights of a run
    that are loaded alone.

    Args:
      model: any module; changed in place, outside of jitted functions.
      steps: of power iteration.

    Returns:
      The number of kernels, each layer of a scanned stack counted.

    Raises:
      ValueError: if the model has no such layer.
    """
    kernels = 0
    for _, module in nnx.iter_modules(model):
        if isinstance(module, SigmaLayer):
            module.vector[...] = new_vector(module, steps=steps)
            kernels += module.gamma.size
    if not kernels:
        raise ValueError(
            "model: expected one with layers that sigma_reparam changed, found none in "
            f"{type(model).__name__}."
        )
    return kernels


def _layers(model: nnx.Module) -> Iterator[tuple[str, Any, bool]]:
    """Yields path and layer of what can be changed, and whether an attention module owns it."""
    modules = dict(nnx.iter_modules(model))
    for path, module in modules.items():
        if type(module) in SIGMA_KINDS:
            owner = modules.get(path[:-1])
            owned = isinstance(owner, Watchable | nnx.MultiHeadAttention)
            yield ".".join(map(str, path)), module, owned


def _plain(layer: nnx.Module) -> type[nnx.Module]:
    for plain, ours in SIGMA_KINDS.items():
        if type(layer) is ours:
            return plain
    raise NotImplementedError(
        f"{type(layer).__name__}: expected SigmaLinear or SigmaLinearGeneral, got a subclass, of "
        "which fold_sigma can't tell what it becomes. Fold it yourself, by "
        "attnjax.focus.steady.sigma_kernel."
    )


def _evaluating(model: nnx.Module) -> bool:
    """Whether the model is in evaluation mode, as far as its modules have such a thing."""
    modes = [x.deterministic for _, x in nnx.iter_modules(model) if hasattr(x, "deterministic")]
    return bool(modes) and all(modes)
