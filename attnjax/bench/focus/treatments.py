"""What each treatment of the study changes: the model, the loss, or the updates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from attnjax.focus.heads import HeadStats
from attnjax.focus.steady import Auto, entropy_penalty, z_loss
from attnjax.nn import AttentionOptions

Penalty = Callable[[Mapping[str, HeadStats]], Array]


@dataclasses.dataclass(frozen=True)
class Treatment:
    """One remedy, alone.

    Attributes:
      name: of the treatment.
      options: options of attention that it sets.
      penalty: what it adds to the loss, from the statistics of the step.
      clip: threshold of QK-clip, or None.
      auto: the policy, or None.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()
    penalty: Penalty | None = None
    clip: float | None = None
    auto: Auto | None = None

    @property
    def acts(self) -> bool:
        """Whether it changes updates."""
        return self.clip is not None or self.auto is not None

    @property
    def watches(self) -> bool:
        """Whether it needs the statistics of every step."""
        return self.acts or self.penalty is not None

    def attention(self) -> AttentionOptions:
        """Returns the options of attention."""
        base = AttentionOptions(use_bias=False, implementation="reference")
        return dataclasses.replace(base, **dict(self.options))


def _entropy_floor(stats: Mapping[str, HeadStats]) -> Array:
    return 1.0 * sum(
        (entropy_penalty(x, floor=0.2, share=True) for x in stats.values()), jnp.zeros(())
    )


def _z_loss(stats: Mapping[str, HeadStats]) -> Array:
    return 1e-4 * sum((z_loss(x) for x in stats.values()), jnp.zeros(()))


TREATMENTS = {
    x.name: x
    for x in (
        Treatment("none"),
        Treatment("auto", auto=Auto()),
        Treatment("qk_clip_100", clip=100.0),
        Treatment("qk_norm", options=(("qk_norm", "rms"),)),
        Treatment("soft_cap_50", options=(("soft_cap", 50.0),)),
        Treatment("z_loss", penalty=_z_loss),
        Treatment("entropy_floor", penalty=_entropy_floor),
        Treatment("temperature", options=(("temperature", True),)),
        Treatment("sinks", options=(("sinks", True),)),
        Treatment("sigma_reparam", options=(("sigma_reparam", True),)),
    )
}
