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
    broken,
    final,
    reach,
    saved,
    trailing,
    warned,
)
from attnjax.bench.focus.runs import CLIP_NORM, WARM_UP, Runs, train
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
      treatments: names of `TREATMENTS`; `none` is added where it is missing.
      seeds: of each rate. Thresholds and the policy were chosen on seeds 100 to 104.
      steps: of each run; None is the task's own number.
      every: steps from one record to the next in untreated runs.
    """

    tasks: tuple[str, ...] = ("text",)
    treatments: tuple[str, ...] = tuple(TREATMENTS)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int | None = None
    every: int = 5

    def __post_init__(self) -> None:
        for name, known in (("tasks", TASKS), ("treatments", TREATMENTS)):
            if unknown := [x for x in getattr(self, name) if x not in known]:
                raise ValueError(
                    f"Study.{name}: expected some of {', '.join(known)}; got {', '.join(unknown)}."
                )


QUICK = Study(treatments=("none", "auto"), seeds=(0,), steps=40)
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
            "warm_up": WARM_UP,
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
    names = ["none", *[x for x in study.treatments if x != "none"]]
    steps = study.steps or task.steps
    rows: list[dict[str, Any]] = []
    untreated: Runs | None = None
    about: dict[str, Any] = {}
    for name in names:
        start = time.perf_counter()
        runs = train(
            task,
            TREATMENTS[name],
            rates=task.rates,
            seeds=study.seeds,
            steps=steps,
            every=study.every,
        )
        seconds = time.perf_counter() - start
        if untreated is None:
            untreated, about = runs, _untreated(task, runs)
        rows.append(_row(name, untreated, runs) | {"seconds": round(seconds, 1)})
        said = f"{rows[-1]['broken']} of {len(runs.seeds)} broken, {seconds:.0f} s"
        log(f"{task.name}, {name}: {said}")
        yield {**about, "treatments": list(rows)}


def _untreated(task: Task, runs: Runs) -> dict[str, Any]:
    reached = reach(runs)
    return {
        "name": task.name,
        "about": task.about,
        "steps": runs.loss.shape[1],
        "rates": task.rates,
        "reached": reached,
        "limit": (1 + MARGIN) * reached,
        "warnings": _warnings(runs, reached),
        "curves": _curves(runs),
    }


def _row(name: str, untreated: Runs, runs: Runs) -> dict[str, Any]:
    ends = final(runs.loss)
    return {
        "name": name,
        **saved(untreated, runs),
        "final": _by_rate(ends, len(np.unique(runs.seeds))),
        "acted": None if runs.acted is None else int((runs.acted > 0).any(axis=1).sum()),
    }


def _by_rate(ends: np.ndarray, seeds: int) -> list[list[float | None]]:
    """Returns a list of each rate; None stands for a loss that is not finite."""
    return [
        [round(float(x), 4) if np.isfinite(x) else None for x in row]
        for row in ends.reshape(-1, seeds)
    ]


def _warnings(untreated: Runs, reached: float) -> dict[str, Any]:
    bad = broken(untreated.loss, reached)
    told = warned(untreated, reached)
    of_broken, of_healthy = (
        [x for x, b in zip(told, bad, strict=True) if b == kind] for kind in (True, False)
    )
    return {
        "broken": int(bad.sum()),
        "early": sum(x.lead is not None and x.lead >= EARLY for x in of_broken),
        "healthy": int((~bad).sum()),
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
