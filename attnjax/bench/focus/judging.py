"""The study's rules: which runs are broken, when their loss shows it, and what warned of it."""

from __future__ import annotations

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


def reach(runs: Runs) -> float:
    """Returns what healthy runs reach: of the medians of each rate's final losses, the least."""
    ends = final(runs.loss)
    return float(min(np.median(ends[runs.rates == x]) for x in np.unique(runs.rates)))


def broken(loss: np.ndarray, reached: float) -> np.ndarray:
    """Returns which runs are broken, `[R]`.

    Those with a loss that is not finite, and those whose final loss is more than `MARGIN` above
    what healthy runs reach: they diverged, stalled, or did not recover from a spike.

    Args:
      loss: `[R, P]`.
      reached: what `reach` returned.
    """
    return ~(final(loss) <= (1 + MARGIN) * reached)


def trailing(loss: np.ndarray) -> np.ndarray:
    """Returns at each step the mean of the last `TRAIL` losses, over the last axis.

    Until there are so many, NaN.
    """
    ahead = np.full((*loss.shape[:-1], TRAIL - 1), np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(loss, TRAIL, axis=-1)
    return np.concatenate([ahead, windows.mean(axis=-1, dtype=np.float64)], axis=-1)


def shown(loss: np.ndarray, healthy: np.ndarray) -> int | None:
    """Returns the first step at which a loss shows that its run goes wrong, or None.

    It shows as soon as a loss is not finite; or the trailing mean has risen by more than `MARGIN`
    above its own minimum so far; or it is more than `MARGIN` above the median of the healthy
    runs at the same step, which tells runs that stall from runs that are fine.

    Args:
      loss: of one run, `[P]`.
      healthy: of the healthy runs, `[X, P]`.
    """
    mean, usual = trailing(loss), np.median(trailing(healthy), axis=0)
    least = np.fmin.accumulate(mean)
    wrong = (mean > (1 + MARGIN) * least) | (mean > (1 + MARGIN) * usual) | ~np.isfinite(loss)
    return int(np.argmax(wrong)) if wrong.any() else None


def foretold(
    loss: np.ndarray,
    healthy: np.ndarray,
    stats: Mapping[str, HeadStats],
    every: int,
    thresholds: Thresholds | None = None,
) -> Foretold:
    """Returns what was said of one run.

    Args:
      loss: `[P]`.
      healthy: of the healthy runs, `[X, P]`.
      stats: of the run's heads, by module, each `[P / every, N]`.
      every: steps from one record to the next.
      thresholds: of the warnings; None is the default.
    """
    warnings = Warnings(thresholds)
    for step in range(0, len(loss), every):
        here = {path: HeadStats(*(x[step // every] for x in of)) for path, of in stats.items()}
        said = [x for x in warnings.update(step, here) if x.what in KINDS]
        if said:
            return Foretold(step, said[0].what, shown(loss, healthy))
    return Foretold(None, None, shown(loss, healthy))


def warned(runs: Runs, reached: float, thresholds: Thresholds | None = None) -> list[Foretold]:
    """Returns what was said of each run.

    Args:
      runs: without treatment.
      reached: what `reach` returned.
      thresholds: of the warnings; None is the default.
    """
    bad = broken(runs.loss, reached)
    healthy, told = runs.loss[~bad], []
    for run, loss in enumerate(runs.loss):
        stats = {path: HeadStats(*(x[run] for x in of)) for path, of in runs.stats.items()}
        one = foretold(loss, healthy, stats, runs.every, thresholds)
        if one.shown is None and bad[run]:
            one = one._replace(shown=len(loss) - 1)
        told.append(one)
    return told


def saved(untreated: Runs, treated: Runs) -> dict[str, Any]:
    """Returns what a treatment did to the same rates and seeds.

    Args:
      untreated: the runs without it.
      treated: the runs with it, in the same order.

    Returns:
      `broken`: runs that are broken with it; `rescued`: of those broken without it, how many are
      not; `harmed`: of those healthy without it, how many are; `worse`: of those healthy with and
      without it, the mean of the change of the final loss, as a share of it; None of no runs.
    """
    reached = reach(untreated)
    before, after = (broken(x.loss, reached) for x in (untreated, treated))
    both = ~before & ~after
    ratio = final(treated.loss)[both] / final(untreated.loss)[both]
    return {
        "broken": int(after.sum()),
        "rescued": int((before & ~after).sum()),
        "harmed": int((~before & after).sum()),
        "worse": float(np.mean(ratio) - 1) if both.any() else None,
    }
