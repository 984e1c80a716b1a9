"""Where the time of a step goes: waiting for data, for the device, and the host's own work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds since the last `take`, by what they were spent on; pauses count for nothing."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forgets everything."""
        self._start = time.perf_counter()
        self._spent = {"data": 0.0, "compute": 0.0}
        self._paused = 0.0
        self._steps = 0

    @contextmanager
    def measure(self, what: str) -> Iterator[None]:
        """Counts the time inside as `data` (next batch) or `compute` (dispatch, waiting)."""
        start = time.perf_counter()
        yield
        self._spent[what] += time.perf_counter() - start

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves out the time inside."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def step(self) -> None:
        """Counts one step."""
        self._steps += 1

    def take(self) -> dict[str, float]:
        """Mean seconds a step spent on `data`, `compute` and, the remainder, `host`; restarts."""
        total = time.perf_counter() - self._start - self._paused
        seconds = {**self._spent, "host": total - sum(self._spent.values())}
        steps = max(self._steps, 1)
        self.restart()
        return {name: value / steps for name, value in seconds.items()}
