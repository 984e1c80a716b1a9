"""`OptimConfig`: an optimiser by its name, as one optax transformation."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import optax

from train.common.schedule import ScheduleConfig

OptimName = Literal[
    "sgd",
    "momentum",
    "nesterov",
    "adagrad",
    "rmsprop",
    "adam",
    "adamw",
    "nadam",
    "adamax",
    "amsgrad",
    "radam",
    "adabelief",
    "lamb",
    "lion",
    "adafactor",
    "muon",
]


@dataclass(frozen=True)
class OptimConfig:
    """An optimiser, its learning rate over time, weight decay and gradient clipping.

    Weight decay is decoupled for every optimiser (Loshchilov and Hutter, 2019): each step takes
    `learning_rate * weight_decay * parameter` off, so `adam` with it is `adamw`.

    Raises:
        ValueError: a number is out of its range, or given to an optimiser that has no such thing.
    """

    name: OptimName = "adamw"
    """The update rule; see `DIRECTIONS` for what each one is in optax."""
    learning_rate: float = 1e-3
    """The largest learning rate of the schedule."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How the learning rate moves over the run."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on the parameters that `no_decay` does not match."""
    no_decay: str = r"(^|[._])(bias|scale|sinks?|temperature)([._]|$)|norm"
    """Regular expression on dotted paths; what it finds is not decayed, nor is any vector."""
    clip_norm: float | None = 1.0
    """Scale the gradients down to this global norm when it is larger; None means never."""
    momentum: float | None = None
    """Decay of the mean in momentum, nesterov, muon (None: 0.9, 0.9, 0.95), rmsprop (None: off)."""
    b1: float | None = None
    """Decay of the first moment (Adam family, lion); None means the optimiser's usual value."""
    b2: float | None = None
    """Decay of the second moment (Adam family, lion, rmsprop, adafactor); None: the usual value."""
    eps: float | None = None
    """Added to the denominator; None means the optimiser's usual value."""

    def __post_init__(self) -> None:
        """Rejects values out of range and values that the optimiser would ignore."""
        if self.name not in DIRECTIONS:
            raise ValueError(f"optimiser must be one of {', '.join(DIRECTIONS)}, got {self.name!r}")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive or None, got {self.clip_norm}")
        known = DIRECTIONS[self.name][1]
        for name in ("momentum", "b1", "b2", "eps"):
            value = getattr(self, name)
            if value is None:
                continue
            if name not in known:
                has = ", ".join(known) or "none of momentum, b1, b2, eps"
                raise ValueError(f"{self.name} has no {name} (it has {has}); leave it at None")
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
        try:
            re.compile(self.no_decay)
        except re.error as error:
            raise ValueError(f"no_decay is no regular expression: {self.no_decay!r}") from error

    def build(self, total_steps: int) -> optax.GradientTransformation:
        """Makes the transformation: clip, direction, weight decay, learning rate.

        Args:
            total_steps: optimiser steps of the whole run, for the schedule.
        """
        make, known = DIRECTIONS[self.name]
        given = {renamed: getattr(self, name) for name, renamed in known.items()}
        parts = [make(**{name: value for name, value in given.items() if value is not None})]
        if self.clip_norm is not None:
            parts.insert(0, optax.clip_by_global_norm(self.clip_norm))
        if self.weight_decay:
            parts.append(optax.add_decayed_weights(self.weight_decay, mask=self.decay_mask))
        if self.name == "lamb":
            parts.append(optax.scale_by_trust_ratio())
        schedule = self.schedule.build(self.learning_rate, total_steps)
        return optax.chain(*parts, optax.scale_by_learning_rate(schedule))

    def decay_mask(self, params: Any) -> Any:
        """True for the parameters that weight decay applies to; same structure as `params`."""
        pattern = re.compile(self.no_decay)
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x.ndim > 1 and not pattern.search(dotted(path)), params
        )


def dotted(path: tuple[Any, ...]) -> str:
    """A pytree key path as `encoder.layers.0.kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _adafactor(**options: float) -> optax.GradientTransformation:
    """Adafactor's direction (Shazeer and Stern, 2018): factored moments, clipped, scaled by RMS."""
    return optax.chain(
        optax.scale_by_factored_rms(**options),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
    )


def _muon(**options: float) -> optax.GradientTransformation:
    """Muon's direction (Jordan, 2024) for matrices, Adam's for embeddings and all the rest."""

    def matrices(params: Any) -> Any:
        dims = optax.contrib.MuonDimensionNumbers()
        return jax.tree_util.tree_map_with_path(
            lambda path, x: dims if x.ndim == 2 and "embed" not in dotted(path) else None, params
        )

    # At a learning rate of 1, optax's muon gives the direction with its sign turned.
    return optax.chain(
        optax.contrib.muon(1.0, muon_weight_dimension_numbers=matrices, **options),
        optax.scale(-1.0),
    )


def _rmsprop(momentum: float | None = None, **options: float) -> optax.GradientTransformation:
    """RMSProp's direction (Tieleman and Hinton, 2012), with momentum where asked for."""
    rms = optax.scale_by_rms(**options)
    return rms if momentum is None else optax.chain(rms, optax.trace(momentum))


def _lamb(eps: float = 1e-6, **options: float) -> optax.GradientTransformation:
    """The Adam part of LAMB (You et al., 2020); the trust ratio follows the weight decay."""
    return optax.scale_by_adam(eps=eps, **options)


_ADAM = {"b1": "b1", "b2": "b2", "eps": "eps"}

DIRECTIONS: dict[str, tuple[Callable[..., optax.GradientTransformation], dict[str, str]]] = {
    "sgd": (optax.identity, {}),
    "momentum": (lambda decay=0.9: optax.trace(decay), {"momentum": "decay"}),
    "nesterov": (lambda decay=0.9: optax.trace(decay, nesterov=True), {"momentum": "decay"}),
    "adagrad": (optax.scale_by_rss, {"eps": "eps"}),
    "rmsprop": (_rmsprop, {"momentum": "momentum", "b2": "decay", "eps": "eps"}),
    "adam": (optax.scale_by_adam, _ADAM),
    "adamw": (optax.scale_by_adam, _ADAM),
    "nadam": (lambda **options: optax.scale_by_adam(nesterov=True, **options), _ADAM),
    "adamax": (optax.scale_by_adamax, _ADAM),
    "amsgrad": (optax.scale_by_amsgrad, _ADAM),
    "radam": (optax.scale_by_radam, _ADAM),
    "adabelief": (optax.scale_by_belief, _ADAM),
    "lamb": (_lamb, _ADAM),
    "lion": (optax.scale_by_lion, {"b1": "b1", "b2": "b2"}),
    "adafactor": (_adafactor, {"b2": "decay_rate"}),
    "muon": (_muon, {"momentum": "beta", "b1": "adam_b1", "b2": "adam_b2", "eps": "eps"}),
}
"""Each optimiser's update direction, before weight decay and learning rate, and which of
momentum, b1, b2 and eps it takes under which name."""
