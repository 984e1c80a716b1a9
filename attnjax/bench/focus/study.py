"""The study: every treatment on every task, judged by the rules of `judging`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from attnjax.bench.focus.judging import (
    KINDS,
    MARGIN,
    TRAIL,
    Rule,
    final,
    rule,
    saved,
    trailing,
    warned,
)
from attnjax.bench.focus.runs import CLIP_NORM, Runs, train
from attnjax.bench.focus.tasks import TASKS, Task
from attnjax.bench.focus.treatments import TREATMENTS
from attnjax.focus import Thresholds

EARLY = 50
"""Steps ahead of the loss that a warning should come."""
CURVE = 40
"""Points of each curve that are kept."""


@dataclasses.dataclass(frozen=True)
class Study:
    """How much is run.

    Attributes:
      tasks: names of `TASKS`.
      treatments: names of `TREATMENTS`; `none` is added where it is missing. None: the tasks' own.
      seeds: of each rate. Steps, thresholds and the policy were chosen on seeds 100 to 104.
      steps: of each run; None is the task's own number.
      warm_up: steps of it in which the rate rises; None is the task's own number.
      every: steps from one record to the next in untreated runs.
    """

    tasks: tuple[str, ...] = tuple(TASKS)
    treatments: tuple[str, ...] | None = None
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int | None = None
    warm_up: int | None = None
    every: int = 5

    def __post_init__(self) -> None:
        for name, known in (("tasks", TASKS), ("treatments", TREATMENTS)):
            if unknown := [x for x in getattr(self, name) or () if x not in known]:
                raise ValueError(
                    f"Study.{name}: expected some of {', '.join(known)}; got {', '.join(unknown)}."
                )


QUICK = Study(tasks=("text",), treatments=("none", "auto"), seeds=(0,), steps=40, warm_up=4)
"""To see that everything runs; judges nothing."""


def measure(study: Study, *, log: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Trains everything, and yields what came out so far after each treatment, for JSON.

    Args:
      study: how much is run.
      log: is told what goes on.
    """
    result: dict[str, Any] = {
        "settings": {
            **dataclasses.asdict(study),
            "margin": MARGIN,
            "trail": TRAIL,
            "kinds": KINDS,
            "clip_norm": CLIP_NORM,
            "thresholds": dataclasses.asdict(Thresholds()),
        },
        "tasks": [],
    }
    for name in study.tasks:
        before = result["tasks"]
        for found in _task(study, TASKS[name](), log):
            result = {**result, "tasks": [*before, found]}
            yield result


def _task(study: Study, task: Task, log: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    chosen = study.treatments or task.treatments or tuple(TREATMENTS)
    rows: list[dict[str, Any]] = []
    untreated: Runs | None = None
    for name in ["none", *[x for x in chosen if x != "none"]]:
        start = time.perf_counter()
        runs = train(
            task,
            TREATMENTS[name],
            rates=task.rates,
            seeds=study.seeds,
            steps=study.steps or task.steps,
            warm_up=task.warm_up if study.warm_up is None else study.warm_up,
            every=study.every,
        )
        seconds = time.perf_counter() - start
        if untreated is None:
            untreated, judged = runs, rule(runs, task.floor)
            about = _untreated(study, task, runs, judged)
        rows.append(_row(name, untreated, runs, judged) | {"seconds": round(seconds, 1)})
        said = f"{rows[-1]['broken']} of {len(runs.seeds)} broken, {seconds:.0f} s"
        log(f"{task.name}, {name}: {said}")
        yield {**about, "treatments": list(rows)}


def _untreated(study: Study, task: Task, runs: Runs, judged: Rule) -> dict[str, Any]:
    return {
        "name": task.name,
        "about": task.about,
        "steps": runs.loss.shape[1],
        "warm_up": task.warm_up if study.warm_up is None else study.warm_up,
        "rates": task.rates,
        "reached": judged.reached,
        "limit": judged.limit,
        "floor": task.floor,
        "warnings": _warnings(runs, judged, task.floor),
        "curves": _curves(runs),
    }


def _row(name: str, untreated: Runs, runs: Runs, judged: Rule) -> dict[str, Any]:
    ends = final(runs.loss)
    return {
        "name": name,
        **saved(untreated, runs, judged),
        "final": _by_rate(ends, len(np.unique(runs.seeds))),
        "acted": None if runs.acted is None else int((runs.acted > 0).any(axis=1).sum()),
    }


def _by_rate(ends: np.ndarray, seeds: int) -> list[list[float | None]]:
    """Returns a list of each rate; None stands for a loss that is not finite."""
    return [
        [float(f"{x:.5g}") if np.isfinite(x) else None for x in row]
        for row in ends.reshape(-1, seeds)
    ]


def _warnings(untreated: Runs, judged: Rule, floor: float) -> dict[str, Any]:
    bad = judged.broken(untreated.loss)
    told = warned(untreated, judged, floor=floor)
    of_broken, of_healthy = (
        [x for x, b in zip(told, bad, strict=True) if b == kind] for kind in (True, False)
    )
    return {
        "broken": int(bad.sum()),
        "early": sum(x.lead is not None and x.lead >= EARLY for x in of_broken),
        "shown_early": sum(x.shown is not None and x.shown < EARLY for x in of_broken),
        "healthy": int((~bad).sum()),
        "slow": int(judged.slow.sum()),
        "false_alarms": sum(x.warned is not None for x in of_healthy),
        "runs": [
            {"rate": round(float(rate), 6), "seed": int(seed), "broken": bool(b), **x._asdict()}
            | {"lead": x.lead}
            for rate, seed, b, x in zip(untreated.rates, untreated.seeds, bad, told, strict=True)
        ],
    }


def _curves(untreated: Runs) -> dict[str, Any]:
    """Returns loss and largest logit of the first seed at each rate, at few steps."""
    largest = np.max([x.max_logit.max(axis=-1) for x in untreated.stats.values()], axis=0)
    records = np.unique(np.linspace(0, largest.shape[1] - 1, CURVE).astype(int))
    steps = records * untreated.every
    first = untreated.seeds == untreated.seeds[0]
    mean = trailing(untreated.loss)
    return {
        "steps": steps.tolist(),
        "loss": _rounded(mean[first][:, steps]),
        "max_logit": _rounded(largest[first][:, records]),
    }


def _rounded(values: np.ndarray) -> list[list[float | None]]:
    return [[float(f"{x:.4g}") if np.isfinite(x) else None for x in row] for row in values]
