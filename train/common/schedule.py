"""Learning-rate schedules: step number in, learning rate out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax

ScheduleName = Literal["constant", "linear", "cosine", "exponential", "rsqrt", "onecycle"]
Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


@dataclass(frozen=True)
class ScheduleConfig:
    """The shape of the learning rate over a run, as a fraction of the peak.

    Raises:
        ValueError: a field is out of its range, or both warm-up fields are given.
    """

    name: ScheduleName = "cosine"
    """What follows the warm-up. `rsqrt` is 1/sqrt(step), `onecycle` goes up and down by cosines."""
    warmup_steps: int | None = None
    """Steps over which the rate climbs from 0 to the peak. Give this or `warmup_fraction`."""
    warmup_fraction: float | None = None
    """Warm-up as a fraction of all steps. None, without `warmup_steps`, means 0.1."""
    final_fraction: float = 0.0
    """Last rate as a fraction of the peak (linear, cosine, onecycle, exponential)."""

    def __post_init__(self) -> None:
        """Rejects values out of range."""
        if self.name not in get_args(ScheduleName):
            raise ValueError(
                f"schedule must be one of {', '.join(get_args(ScheduleName))}, got {self.name!r}"
            )
        if self.warmup_steps is not None and self.warmup_fraction is not None:
            raise ValueError("give warmup_steps or warmup_fraction, not both")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {self.warmup_steps}")
        if self.warmup_fraction is not None and not 0 <= self.warmup_fraction < 1:
            raise ValueError(
                f"warmup_fraction must be at least 0 and below 1, got {self.warmup_fraction}"
            )
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"final_fraction must lie in [0, 1], got {self.final_fraction}")
        if self.name == "exponential" and self.final_fraction == 0:
            raise ValueError("an exponential schedule never reaches 0: set final_fraction > 0")
        if self.name in ("constant", "rsqrt") and self.final_fraction != 0:
            raise ValueError(f"a {self.name} schedule has no final_fraction; leave it at 0")

    def warmup(self, total_steps: int) -> int:
        """Warm-up steps in a run of `total_steps`."""
        if self.warmup_steps is None:
            fraction = 0.1 if self.warmup_fraction is None else self.warmup_fraction
            return int(fraction * total_steps)
        if self.warmup_steps >= total_steps > 0:
            raise ValueError(
                f"warmup_steps must be below the steps of the whole run, got {self.warmup_steps} "
                f"of {total_steps}"
            )
        return self.warmup_steps

    def build(self, peak: float, total_steps: int) -> Schedule:
        """Makes the schedule.

        Args:
            peak: the largest learning rate.
            total_steps: optimiser steps of the whole run.

        Returns:
            A traceable function of the number of steps already taken. With a warm-up of w steps,
            step i < w uses peak * (i + 1) / w: no step is spent on a rate of 0.
        """
        warmup = self.warmup(total_steps)
        after = max(1, total_steps - warmup)
        if self.name == "onecycle":
            return optax.cosine_onecycle_schedule(
                transition_steps=total_steps,
                peak_value=peak,
                pct_start=max(warmup, 1) / max(total_steps, 2),
                div_factor=25,
                final_div_factor=1 / (25 * self.final_fraction) if self.final_fraction else 1e4,
            )
        decay = self._decay(peak, after, warmup)

        def schedule(count: jax.typing.ArrayLike) -> jax.Array:
            count = jnp.asarray(count)
            rising = peak * (count + 1) / max(warmup, 1)
            return jnp.where(count < warmup, rising, decay(jnp.maximum(count - warmup, 0)))

        return schedule

    def _decay(self, peak: float, steps: int, warmup: int) -> Schedule:
        """The part after the warm-up, as a function of the steps since its end."""
        final = peak * self.final_fraction
        match self.name:
            case "linear":
                return optax.linear_schedule(peak, final, steps)
            case "cosine":
                return optax.cosine_decay_schedule(peak, steps, self.final_fraction)
            case "exponential":
                return optax.exponential_decay(peak, steps, self.final_fraction, end_value=final)
            case "rsqrt":
                knee = max(warmup, 1)
                return lambda count: peak * jnp.sqrt(knee / (knee + count))
            case _:
                return optax.constant_schedule(peak)
