"""Which evaluation was the best so far, and whether it is time to give up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Selection:
    """The best evaluation so far; a value that travels inside every checkpoint."""

    best_step: int | None = None
    """The step of the best evaluation; None before the first that is a number."""
    best_metrics: Mapping[str, float] | None = None
    """All metrics of that evaluation."""
    last_metrics: Mapping[str, float] | None = None
    """All metrics of the latest evaluation."""
    since_best: int = 0
    """Evaluations since the best one."""

    def update(
        self, step: int, metrics: Mapping[str, float], *, metric: str, mode: Literal["max", "min"]
    ) -> Selection:
        """The selection after one more evaluation; a NaN is never better, nor is a tie.

        Raises:
            ValueError: `metric` is not among `metrics`.
        """
        if metric not in metrics:
            raise ValueError(
                f"select_metric must be one of {', '.join(sorted(metrics))}, got {metric!r}"
            )
        new = metrics[metric]
        old = None if self.best_metrics is None else self.best_metrics[metric]
        improved = not math.isnan(new) and (
            old is None or (new > old if mode == "max" else new < old)
        )
        if improved:
            return Selection(step, dict(metrics), dict(metrics), 0)
        return replace(self, last_metrics=dict(metrics), since_best=self.since_best + 1)

    def exhausted(self, patience: int | None) -> bool:
        """Whether `patience` evaluations in a row brought nothing better."""
        return patience is not None and self.since_best >= patience

    def to_json(self) -> dict[str, Any]:
        """JSON-able; `Selection(**value)` is the way back."""
        return asdict(self)
