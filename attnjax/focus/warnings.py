"""Early warnings: which heads look in a way that is known to end badly, and why that is said."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from attnjax.focus.heads import HeadStats

What = Literal["entropy_collapse", "logit_growth", "sink", "uniform", "duplicate", "dead"]


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """When a head is warned of.

    Attributes:
      collapse: `entropy_collapse` below this share of the largest possible entropy. Zhai et al.,
        "Stabilizing Transformer Training by Preventing Attention Entropy Collapse" (2023), tie
        collapsed entropy to divergence; the number is from our study (docs/focus.md).
      growth: `logit_growth` when the largest logit is heading above this: when, growing on as it
        did over the last `pace` steps, it gets there within as many more. Logits that no longer
        grow are taken as they are. Wortsman et al., "Small-scale proxies for large-scale
        Transformer training instabilities" (2023), tie the growth of logits to divergence at high
        learning rates. The number is from our study (docs/focus.md), where the logits of runs that
        break pass it early and fast, and those of healthy runs near the highest rates only.
      pace: steps over which growth is measured, and that it is thought to go on.
      sink: `sink` above this mean weight on key 0. Xiao et al., "Efficient Streaming Language
        Models with Attention Sinks" (2023): much weight there is common, and no harm while
        something is left for the other keys.
      uniform: `uniform` above this share of the largest possible entropy: the head averages.
      duplicate: `duplicate` below this distance to another head of the module. Bian et al., "On
        Attention Redundancy" (2021).
      dead: `dead` below this share of the median output of the module's heads. Michel et al., "Are
        Sixteen Heads Really Better than One?" (2019): what such heads add can be left out.
      settled: steps before `uniform`, `duplicate` and `dead` count; new heads are all of that.
      records: for so many records in a row a condition must hold, or no longer hold, to be told.
    """

    collapse: float = 0.05
    growth: float = 120.0
    pace: int = 20
    sink: float = 0.95
    uniform: float = 0.99
    duplicate: float = 0.01
    dead: float = 0.01
    settled: int = 500
    records: int = 2

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(
                    f"Thresholds.{field.name}: expected a number of at least 0, got {value!r}."
                )
        for name in ("pace", "records"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"Thresholds.{name}: expected at least 1, got {getattr(self, name)}."
                )


class Warned(NamedTuple):
    """A warning about one head, or word that one is over.

    Attributes:
      step: when it was said.
      module: dotted path of the attention module.
      head: which of its heads.
      what: the kind.
      over: whether the condition no longer holds.
      value: of the statistic; of `logit_growth` what the largest logit is heading for.
      threshold: that it passed.
      why: one sentence; empty if it is over.
    """

    step: int
    module: str
    head: int
    what: What
    over: bool
    value: float
    threshold: float
    why: str


class Warnings:
    """Tells of heads when they begin, or cease, to look in a way that is warned of.

    Args:
      thresholds: when that is.
      state: of an older one, from which this one goes on.
    """

    def __init__(
        self, thresholds: Thresholds | None = None, state: Mapping[str, Any] | None = None
    ) -> None:
        self.thresholds = Thresholds() if thresholds is None else thresholds
        state = {"heads": [], "logits": {}} if state is None else state
        # Whether a warning is on, and for how many records in a row the opposite has held.
        self._heads: dict[tuple[str, int, What], tuple[bool, int]] = {
            (module, head, what): (on, count) for module, head, what, on, count in state["heads"]
        }
        # By module the steps and largest logits of the records that growth is measured from.
        self._logits = {
            module: [(step, np.asarray(x, np.float64)) for step, x in records]
            for module, records in state["logits"].items()
        }

    @property
    def state(self) -> dict[str, Any]:
        """What another one needs to go on from here, for JSON."""
        return {
            "heads": [[*key, on, count] for key, (on, count) in self._heads.items()],
            "logits": {
                module: [[step, x.tolist()] for step, x in records]
                for module, records in self._logits.items()
            },
        }

    def update(self, step: int, modules: Mapping[str, HeadStats]) -> list[Warned]:
        """Takes the statistics of a step in.

        Args:
          step: number of the step.
          modules: statistics of the heads of each module, of one layer each.

        Returns:
          What is to be told now, in the order of modules and heads.
        """
        told = []
        for module, stats in modules.items():
            heading = self._heading(step, module, np.asarray(stats.max_logit, np.float64))
            for head, what, value, limit, holds in self._conditions(step, stats, heading):
                on, count = self._heads.get((module, head, what), (False, 0))
                count = count + 1 if holds != on else 0
                if count >= self.thresholds.records:
                    on, count = holds, 0
                    pace = self.thresholds.pace
                    why = _REASONS[what].format(value=value, limit=limit, pace=pace) if on else ""
                    told.append(Warned(step, module, head, what, not on, value, limit, why))
                if on or count:
                    self._heads[module, head, what] = on, count
                else:
                    self._heads.pop((module, head, what), None)
        return told

    def _heading(self, step: int, module: str, logits: np.ndarray) -> np.ndarray:
        """Returns what the largest logits `[N]` of a module get to if they grow on as they did.

        Growth is a ratio to the latest record that is `pace` steps old, or to the first one. One
        of fewer steps is taken as it is, for the first steps after random weights say little; one
        of more steps is brought down to `pace`, so that rare records do not warn of less.
        """
        pace = self.thresholds.pace
        past = [x for x in self._logits.get(module, ()) if x[0] < step]
        old = [x for x in past if x[0] <= step - pace]
        past = [*old[-1:], *past[len(old) :]]
        self._logits[module] = [*past, (step, logits)]
        if not past:
            return logits
        then, before = past[0]
        with np.errstate(invalid="ignore"):
            # Weights hardly depend on logits below 1, and neither does anything on their ratios.
            ratio = np.maximum(logits / np.maximum(before, 1), 1)
            heading = logits * ratio ** min(1.0, pace / (step - then))
        return np.where(np.isnan(heading), logits, heading)

    def _conditions(
        self, step: int, stats: HeadStats, heading: np.ndarray
    ) -> Iterator[tuple[int, What, float, float, bool]]:
        """Yields head, kind, value, threshold, and whether the value is past it."""
        limits, settled = self.thresholds, step >= self.thresholds.settled
        values = {name: np.asarray(x, np.float64) for name, x in stats._asdict().items()}
        median = float(np.nanmedian(values["output"])) if len(values["output"]) > 1 else math.nan
        for head in range(len(values["entropy"])):
            of = {name: float(x[head]) for name, x in values.items()}
            share, output = of["share"], of["output"]
            relative = output / median if median > 0 else math.nan
            yield head, "entropy_collapse", share, limits.collapse, share < limits.collapse
            logit = float(heading[head])
            yield head, "logit_growth", logit, limits.growth, logit > limits.growth
            yield head, "sink", of["sink_mass"], limits.sink, of["sink_mass"] > limits.sink
            yield head, "uniform", share, limits.uniform, settled and share > limits.uniform
            near = of["duplicate"]
            yield head, "duplicate", near, limits.duplicate, settled and near < limits.duplicate
            yield head, "dead", relative, limits.dead, settled and relative < limits.dead


_REASONS: dict[What, str] = {
    "entropy_collapse": (
        "entropy is at {value:.3g} of its maximum, below {limit:g}: the head sees single keys, and "
        "hardly any gradient reaches its queries and keys"
    ),
    "logit_growth": (
        "at the pace of the last {pace:g} steps, the largest logit gets to {value:.4g}, above "
        "{limit:g}: the softmax saturates, and small changes of the weights change it abruptly"
    ),
    "sink": "{value:.3g} of the weight is on key 0, more than {limit:g}: the rest is hardly used",
    "uniform": (
        "entropy is at {value:.4g} of its maximum, above {limit:g}: the head averages everything "
        "and tells nothing apart"
    ),
    "duplicate": (
        "the weights are within {value:.3g} of those of another head, below {limit:g}: one of them "
        "would do"
    ),
    "dead": (
        "its output is {value:.3g} of the median of the module's heads, below {limit:g}: it adds "
        "next to nothing"
    ),
}
