"""`--steady auto`, `--steady qk_clip=100,z_loss=1e-4`: what keeps the attention of a run steady."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from attnjax.focus import HeadStats
from attnjax.focus.steady import (
    Actions,
    Auto,
    Heads,
    act,
    clip_factors,
    clippable,
    entropy_penalty,
    scale_heads,
    z_loss,
)

Stats = Mapping[str, HeadStats]


@dataclass(frozen=True)
class SteadyConfig:
    """What is done to keep the attention of a run steady; nothing by default.

    Raises:
        ValueError: a number is out of its range, or two remedies exclude each other.
    """

    auto: bool = False
    """`attnjax.focus.steady.Auto` decides what is done to which head, and logs it."""
    qk_clip: float | None = None
    """The largest logit that `attnjax.focus.steady.qk_clip` leaves alone."""
    z_loss: float | None = None
    """Factor of `attnjax.focus.steady.z_loss`, mean over modules, in the loss."""
    entropy_floor: float | None = None
    """Least mean entropy of a head that costs nothing, as a share of its maximum."""
    entropy_ceiling: float | None = None
    """Greatest one, likewise."""
    entropy_strength: float = 1.0
    """Factor of `attnjax.focus.steady.entropy_penalty`, mean over modules, in the loss."""

    def __post_init__(self) -> None:
        """Rejects values that cannot mean anything."""
        for name in ("qk_clip", "z_loss", "entropy_strength"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"steady: {name} must be positive, got {value}")
        for name in ("entropy_floor", "entropy_ceiling"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"steady: {name} must lie between 0 and 1, got {value}")
        if self.auto and self.qk_clip is not None:
            raise ValueError("steady: auto clips by itself; give auto or qk_clip, not both")

    @property
    def penalises(self) -> bool:
        """Whether the loss has another term."""
        limits = self.z_loss, self.entropy_floor, self.entropy_ceiling
        return any(limit is not None for limit in limits)

    @property
    def acts(self) -> bool:
        """Whether updates may be changed."""
        return self.auto or self.qk_clip is not None

    @property
    def wanted(self) -> bool:
        """Whether there is anything to do."""
        return self.penalises or self.acts

    def heads(self, model: nnx.Module) -> dict[str, Heads]:
        """The heads of a model whose updates may be changed.

        Raises:
            ValueError: the remedy cannot act on a module; says why and what else would do.
        """
        if not self.acts:
            return {}
        try:
            return clippable(model, biased=self.auto)
        except NotImplementedError as error:
            raise ValueError(f"steady: {error}") from error

    def init(self, heads: Mapping[str, Heads]) -> Any:
        """What is remembered from one step to the next; a part of the training state."""
        return Auto().init(heads) if self.auto else {}

    def penalty(self, stats: Stats) -> jax.Array:
        """The other term of the loss."""
        terms = [jnp.zeros(())]
        for of in stats.values():
            if self.z_loss is not None:
                terms.append(z_loss(of, strength=self.z_loss))
            if self.entropy_floor is not None or self.entropy_ceiling is not None:
                terms.append(
                    entropy_penalty(
                        of,
                        floor=self.entropy_floor,
                        ceiling=self.entropy_ceiling,
                        share=True,
                        strength=self.entropy_strength,
                    )
                )
        return sum(terms, start=jnp.zeros(())) / len(stats)

    def change(
        self,
        remembered: Any,
        updates: Any,
        params: Any,
        stats: Stats,
        heads: Mapping[str, Heads],
        *,
        loss: jax.Array,
        grad_norm: jax.Array,
    ) -> Changed:
        """Changes the updates of a step, inside of it.

        Args:
            remembered: from the step before.
            updates: the optimiser's.
            params: the parameters before them.
            stats: of the heads in this step.
            heads: as `heads` gave them.
            loss: of this step.
            grad_norm: norm of its gradients.
        """
        if self.auto:
            remembered, actions = Auto().decide(
                remembered, stats, heads, loss=loss, grad_norm=grad_norm
            )
            return Changed(remembered, act(updates, params, actions, heads), actions, {})
        if self.qk_clip is None:
            return Changed(remembered, updates, None, {})
        limits = {path: jnp.full(one.shape, self.qk_clip) for path, one in heads.items()}
        factors = clip_factors({path: of.max_logit for path, of in stats.items()}, limits, heads)
        clipped = sum(jnp.sum(factor < 1) for factor in factors.values())
        metrics = {"clipped_heads": jnp.asarray(clipped, jnp.float32)}
        return Changed(remembered, scale_heads(updates, params, factors, heads), None, metrics)


class Changed(NamedTuple):
    """What `SteadyConfig.change` gives."""

    remembered: Any
    """For the next step."""
    updates: Any
    """To be added to the parameters."""
    actions: Actions | None
    """All that was done, if `auto` did it."""
    metrics: dict[str, jax.Array]
    """Float32 scalars that say so otherwise."""


def parse_steady(text: str) -> SteadyConfig:
    """Reads what `--steady` takes, such as auto, or qk_clip=100,z_loss=1e-4.

    Raises:
        ValueError: it cannot be read.
    """
    numbers = [field.name for field in fields(SteadyConfig) if field.name != "auto"]
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        try:
            known = name == "auto" if not equals else name in numbers
            if not known or name in values:
                raise ValueError(name)
            values[name] = float(value) if equals else True
        except ValueError as error:
            raise ValueError(
                f"steady must read auto, or name=number for some of {', '.join(numbers)}, "
                f"separated by commas; got {text!r}"
            ) from error
    return SteadyConfig(**values)
