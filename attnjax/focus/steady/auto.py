"""`--steady auto`: what is done to which head, decided from what was measured, inside the step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from attnjax.focus.heads import HeadStats
from attnjax.focus.steady.projections import Heads, owner, per_head
from attnjax.focus.steady.qk_clip import clip_factors, scale_heads


@dataclasses.dataclass(frozen=True)
class Auto:
    """The policy: each head has a level, 0 at first, which says what is done to it.

    At level 0 nothing is. Above it, QK-clip holds the head's largest logit at a limit, and from
    level 2 on updates of its query and key projections are made smaller, too:
    level `n` has the limit `growth * tighten^(n-1)` and the factor `slow^(n-1)`. A head rises to
    level 1 as soon as its largest logit exceeds `growth`, and further, one level at a time, when
    its logits are over the limit again in most of the last records, so that clipping alone does
    not help. It sinks by one level after `calm` records in a row within the limit.

    In a step whose loss or gradients are not finite, no parameter is changed.

    The limits are far from what attention needs: among n keys, a lead of `log(n) + 7` gives one key
    0.999 of the weight.

    Sources: Kimi Team, "Kimi K2" (2025) for QK-clip, whose threshold there is 100; Wortsman et al.,
    "Small-scale proxies for large-scale Transformer training instabilities" (2023) for the growth
    of logits as what breaks at high learning rates. Levels and numbers are our own, from the study
    in docs/focus.md.

    Attributes:
      growth: largest logit that is left alone.
      tighten: ratio of the limits of successive levels.
      slow: ratio of the factors on updates of successive levels.
      levels: the highest level.
      memory: over about so many records a head's being over its limit is averaged; it rises when
        the average exceeds one half.
      calm: records within the limit after which a head sinks.

    Raises:
      ValueError: if a number is out of its range.
    """

    growth: float = 50.0
    tighten: float = 0.7
    slow: float = 0.5
    levels: int = 5
    memory: int = 10
    calm: int = 200

    def __post_init__(self) -> None:
        if not (self.growth > 0 and math.isfinite(self.growth)):
            raise ValueError(f"Auto.growth: expected a positive number, got {self.growth!r}.")
        for name in ("tighten", "slow"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"Auto.{name}: expected a number in (0, 1], got {getattr(self, name)!r}."
                )
        for name in ("levels", "memory", "calm"):
            if getattr(self, name) < 1:
                raise ValueError(f"Auto.{name}: expected at least 1, got {getattr(self, name)!r}.")

    def init(self, heads: Mapping[str, Heads]) -> AutoState:
        """Returns the state before the first step.

        Args:
          heads: what may be acted on, as `clippable(model)` gives it.
        """
        zeros = {path: jnp.zeros(one.shape, jnp.int32) for path, one in heads.items()}
        return AutoState(
            level=zeros,
            pressure={path: x.astype(jnp.float32) for path, x in zeros.items()},
            calm=dict(zeros),
        )

    def decide(
        self,
        state: AutoState,
        stats: Mapping[str, HeadStats],
        heads: Mapping[str, Heads],
        *,
        loss: Array,
        grad_norm: Array,
    ) -> tuple[AutoState, Actions]:
        """Decides from the statistics of a step what is done to its updates.

        Pure, and made for the inside of a jitted step: the same inputs give the same bits.

        Args:
          state: after the last step.
          stats: of the heads of each module in this step, as `attnjax.focus.describe` has them.
          heads: as in `init`.
          loss: of this step.
          grad_norm: norm of its gradients.

        Returns:
          The new state, and all that is done.

        Raises:
          ValueError: if statistics are missing or of the wrong shape.
        """
        largest = {path: jnp.asarray(x.max_logit) for path, x in stats.items()}
        level, pressure, calm, limit = {}, {}, {}, {}
        for path, one in heads.items():
            old, logit = state.level[path], per_head("stats", largest, path, one)
            over = ~(logit <= self._limit(old))  # what is not a number is over any limit
            average = state.pressure[path] + (over - state.pressure[path]) / self.memory
            quiet = jnp.where(over, 0, state.calm[path] + 1)
            up = jnp.where(old == 0, over, average > 0.5)
            down = (old > 0) & (quiet >= self.calm)
            level[path] = jnp.clip(old + up - down, 0, self.levels)
            moved = up | down
            pressure[path] = jnp.where(moved, 0.0, average)
            calm[path] = jnp.where(moved, 0, quiet)
            limit[path] = jnp.where(level[path] > 0, self._limit(level[path]), jnp.inf)
        actions = Actions(
            before=dict(state.level),
            level=level,
            max_logit={path: per_head("stats", largest, path, one) for path, one in heads.items()},
            limit=limit,
            clip=clip_factors(largest, limit, heads),
            slow={path: self.slow ** jnp.maximum(x - 1, 0) for path, x in level.items()},
            skip=~(jnp.isfinite(loss) & jnp.isfinite(grad_norm)),
        )
        return AutoState(level, pressure, calm), actions

    def _limit(self, level: Array) -> Array:
        """Returns the largest logit that is left alone at a level."""
        return self.growth * self.tighten ** jnp.maximum(level - 1, 0)


class AutoState(NamedTuple):
    """What `Auto` remembers, by dotted path of the module, `[N]` or `[L, N]` of scanned layers.

    Attributes:
      level: of each head, int32.
      pressure: moving average of its being over the limit, float32.
      calm: records in a row within the limit, int32.
    """

    level: dict[str, Array]
    pressure: dict[str, Array]
    calm: dict[str, Array]


class Actions(NamedTuple):
    """All that `Auto` does in one step; `[N]` or `[L, N]` by dotted path.

    Attributes:
      before: level of each head after the last step.
      level: level now.
      max_logit: largest logit of each head, as measured.
      limit: largest logit that is allowed, infinity where none is set.
      clip: what logits are multiplied by, through the projections; 1 is nothing.
      slow: factor on the updates of query and key projections; 1 is nothing.
      skip: whether the whole update is left out, bool `[]`.
    """

    before: dict[str, Array]
    level: dict[str, Array]
    max_logit: dict[str, Array]
    limit: dict[str, Array]
    clip: dict[str, Array]
    slow: dict[str, Array]
    skip: Array


class Remedy(NamedTuple):
    """One line of the log: from this step on, until the next line about the same head and remedy.

    Attributes:
      module: dotted path, of scanned layers with the number of the layer; None for all.
      head: or None for all.
      what: `qk_clip` (strength: the limit; infinity when it ends), `slow_query_key` (the factor on
        updates; 1 when it ends) or `skip_update` (0; this step only).
      strength: see `what`.
      why: one sentence.
    """

    module: str | None
    head: int | None
    what: str
    strength: float
    why: str


def act(updates: Any, params: Any, actions: Actions, heads: Mapping[str, Heads]) -> Any:
    """Applies the actions to the updates of a step, the last thing before they are added.

    Args:
      updates: what is to be added to the parameters; nested dicts or an `nnx.State`.
      params: the parameters.
      actions: what `Auto.decide` returned.
      heads: as given to it.

    Returns:
      The updates. Without actions they are the same to the bit.
    """

    def slow(path: tuple[Any, ...], update: Array) -> Array:
        if (found := owner(path, heads)) is None:
            return update
        module, part = found
        one, factor = heads[module], actions.slow[module]
        if part.startswith("key") and one.num_kv_heads != one.num_heads:
            # Keys that several heads share go as slowly as the slowest of these.
            factor = jnp.min(factor.reshape(*factor.shape[:-1], one.num_kv_heads, -1), axis=-1)
        middle = (1,) * (update.ndim - factor.ndim - 1)
        shape = (*factor.shape[:-1], *middle, factor.shape[-1], 1)
        return update * factor.reshape(shape).astype(update.dtype)

    slowed = jax.tree_util.tree_map_with_path(slow, updates)
    clipped = scale_heads(slowed, params, actions.clip, heads)
    return jax.tree.map(lambda x: jnp.where(actions.skip, jnp.zeros_like(x), x), clipped)


def remedies(actions: Actions, heads: Mapping[str, Heads]) -> list[Remedy]:
    """Says what begins, changes or ends with this step, for the log of the host.

    Args:
      actions: what `Auto.decide` returned, outside of jit.
      heads: as given to it.
    """
    told = []
    if bool(actions.skip):
        why = "the loss or the gradients are not finite: this step changes no parameter"
        told.append(Remedy(None, None, "skip_update", 0.0, why))
    for path, one in heads.items():
        fields = (actions.before, actions.level, actions.max_logit, actions.limit, actions.slow)
        rows = [np.asarray(x[path]).reshape(-1, one.num_heads) for x in fields]
        for layer, name in enumerate(one.names(path)):
            for head in range(one.num_heads):
                told += _of_head(name, head, *(float(row[layer, head]) for row in rows))
    return told


def _of_head(
    module: str, head: int, before: float, level: float, logit: float, limit: float, slow: float
) -> list[Remedy]:
    if level == before:
        return []
    if level > before:
        why = (
            f"the largest logit is {logit:.4g}: held at {limit:.4g}"
            if before == 0
            else f"the largest logit is {logit:.4g}, again over its limit: level {level:.0f}"
        )
    else:
        why = f"the largest logit stayed within its limit for long: level {level:.0f}"
    told = [Remedy(module, head, "qk_clip", limit, why)]
    if max(before, level) > 1:
        told.append(Remedy(module, head, "slow_query_key", slow, why))
    return told
