"""The study's rules: which runs are broken, when their loss shows it, and what warned of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from attnjax.bench.focus.runs import Runs
from attnjax.focus import HeadStats, Thresholds, Warnings

MARGIN = 0.1
"""By how much of it a loss may exceed what healthy runs reach."""
TRAIL = 20
"""Steps that losses are averaged over before they are compared."""
KINDS = ("entropy_collapse", "logit_growth")
"""The warnings that are about runs which break."""


class Foretold(NamedTuple):
    """What was said of one run, and when.

    Attributes:
      warned: step of the first warning of `KINDS`, or None.
      what: its kind, or None.
      shown: step at which the loss shows that something is wrong, or None. Broken runs show it at
        their end at the latest, by which they are judged.
    """

    warned: int | None
    what: str | None
    shown: int | None

    @property
    def lead(self) -> int | None:
        """Steps from the warning to what the loss shows; None without either."""
        return None if self.warned is None or self.shown is None else self.shown - self.warned


def final(loss: np.ndarray) -> np.ndarray:
    """Returns the mean loss of the last tenth of the steps; infinity if any loss is not finite.

    Args:
      loss: `[R, P]`.
    """
    last = np.mean(loss[:, -max(1, loss.shape[1] // 10) :], axis=1, dtype=np.float64)
    return np.where(np.isfinite(loss).all(axis=1), last, np.inf)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which runs of a task are broken, as its untreated runs have it.

    Attributes:
      reached: what healthy runs reach: of the medians of each rate's final losses, the least.
      limit: the largest final loss of a run that is fine.
      slow: runs that are above the limit for another reason, `[R]`: at rates no higher than the
        best one they have not learnt yet.
    """

    reached: float
    limit: float
    slow: np.ndarray

    def broken(self, loss: np.ndarray) -> np.ndarray:
        """Returns which runs are broken, `[R]`; none that is slow without treatment is.

        Those with a loss that is not finite, and those whose final loss is above the limit: they
        diverged, stalled, or did not recover from a spike.

        Args:
          loss: `[R, P]`, of the same rates and seeds as the untreated runs.
        """
        ends = final(loss)
        return ~(ends <= self.limit) & ~(self.slow & np.isfinite(ends))


def rule(untreated: Runs, floor: float = 0.0) -> Rule:
    """Returns the rule that a task's untreated runs give.

    Args:
      untreated: runs without treatment.
      floor: as in `excess`.
    """
    ends, rates = final(untreated.loss), np.unique(untreated.rates)
    medians = [np.median(ends[untreated.rates == x]) for x in rates]
    reached = float(min(medians))
    limit = float(excess(reached, floor))
    slow = (ends > limit) & np.isfinite(ends) & (untreated.rates <= rates[np.argmin(medians)])
    return Rule(reached, limit, slow)


def excess(loss: Any, floor: float) -> Any:
    """Returns the least loss that is clearly more than another: by `MARGIN` of it.

    Args:
      loss: the other.
      floor: nats by which it must be more, however small the other is. Losses of tasks that can be
        solved go to 0, where a multiple says nothing.
    """
    return loss + np.maximum(MARGIN * loss, floor)


def trailing(loss: np.ndarray) -> np.ndarray:
    """Returns at each step the mean of the last `TRAIL` losses, over the last axis.

    Until there are so many, NaN.
    """
    ahead = np.full((*loss.shape[:-1], TRAIL - 1), np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(loss, TRAIL, axis=-1)
    return np.concatenate([ahead, windows.mean(axis=-1, dtype=np.float64)], axis=-1)


def shown(loss: np.ndarray, healthy: np.ndarray, floor: float = 0.0) -> int | None:
    """Returns the first step at which a loss shows that its run goes wrong, or None.

    It shows as soon as a loss is not finite; or the trailing mean clearly exceeds its own minimum
    so far; or it clearly exceeds the median of the healthy runs at the same step, which tells runs
    that stall from runs that are fine.

    Args:
      loss: of one run, `[P]`.
      healthy: of the healthy runs, `[X, P]`.
      floor: as in `excess`.
    """
    mean, usual = trailing(loss), np.median(trailing(healthy), axis=0)
    least = np.fmin.accumulate(mean)
    wrong = (mean > excess(least, floor)) | (mean > excess(usual, floor)) | ~np.isfinite(loss)
    return int(np.argmax(wrong)) if wrong.any() else None


def foretold(
    loss: np.ndarray,
    healthy: np.ndarray,
    stats: Mapping[str, HeadStats],
    every: int,
    thresholds: Thresholds | None = None,
    floor: float = 0.0,
) -> Foretold:
    """Returns what was said of one run.

    Args:
      loss: `[P]`.
      healthy: of the healthy runs, `[X, P]`.
      stats: of the run's heads, by module, each `[P / every, N]`.
      every: steps from one record to the next.
      thresholds: of the warnings; None is the default.
      floor: as in `excess`.
    """
    warnings = Warnings(thresholds)
    for step in range(0, len(loss), every):
        here = {path: HeadStats(*(x[step // every] for x in of)) for path, of in stats.items()}
        said = [x for x in warnings.update(step, here) if x.what in KINDS and not x.over]
        if said:
            return Foretold(step, said[0].what, shown(loss, healthy, floor))
    return Foretold(None, None, shown(loss, healthy, floor))


def warned(
    runs: Runs, judged: Rule, thresholds: Thresholds | None = None, floor: float = 0.0
) -> list[Foretold]:
    """Returns what was said of each run.

    Args:
      runs: without treatment.
      judged: what `rule` returned of them.
      thresholds: of the warnings; None is the default.
      floor: as in `excess`.
    """
    bad = judged.broken(runs.loss)
    healthy, told = runs.loss[~bad & ~judged.slow], []
    for run, loss in enumerate(runs.loss):
        stats = {path: HeadStats(*(x[run] for x in of)) for path, of in runs.stats.items()}
        one = foretold(loss, healthy, stats, runs.every, thresholds, floor)
        if one.shown is None and bad[run]:
            one = one._replace(shown=len(loss) - 1)
        told.append(one)
    return told


def saved(untreated: Runs, treated: Runs, judged: Rule) -> dict[str, Any]:
    """Returns what a treatment did to the same rates and seeds.

    Args:
      untreated: the runs without it.
      treated: the runs with it, in the same order.
      judged: what `rule` returned of the former.

    Returns:
      `broken`: runs that are broken with it; `rescued`: of those broken without it, how many are
      not; `harmed`: of those healthy without it, how many are; `worse`: of those healthy with and
      without it, the mean of the change of the final loss, as a share of it; `worse_nats`: the
      mean of the change; None of no runs.
    """
    before, after = (judged.broken(x.loss) for x in (untreated, treated))
    both = ~before & ~after & ~judged.slow
    old, new = (final(x.loss)[both] for x in (untreated, treated))
    return {
        "broken": int(after.sum()),
        "rescued": int((before & ~after).sum()),
        "harmed": int((~before & after).sum()),
        "worse": float(np.mean(new / old) - 1) if both.any() else None,
        "worse_nats": float(np.mean(new - old)) if both.any() else None,
    }
