"""Interleaved timing under a time limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from attnjax.bench.prepared import Prepared

Result = TypeVar("Result")
_SHORT = 0.02
_MOST = 64
_THREAD = "attnjax.bench"


class OutOfTimeError(Exception):
    """Something took longer than there was time for."""


class Clock:
    """A time limit, of a whole run or a part of one.

    Args:
      seconds: how long from now.
    """

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        """Returns the seconds that are left; negative once it is over."""
        return self.end - time.monotonic()

    def part(self, share: float) -> Clock:
        """Returns a clock for a share of what is left."""
        return Clock(max(self.left(), 0.0) * share)


def attempt(
    work: Mapping[str, Callable[[], Result]], clock: Clock
) -> dict[str, Result | Exception]:
    """Runs functions side by side and returns what each gave or raised.

    What is not done in time is left to itself, in a thread that does not outlive the process, and
    counts as `OutOfTimeError`.

    Args:
      work: functions by name.
      clock: until when to wait.
    """
    results: dict[str, Result | Exception] = {}

    def run(name: str, function: Callable[[], Result]) -> None:
        try:
            results[name] = function()
        except Exception as caught:
            # Whatever a library raises becomes the stated reason of that contestant.
            results[name] = caught

    threads = {
        name: threading.Thread(target=run, args=(name, function), name=_THREAD, daemon=True)
        for name, function in work.items()
    }
    for thread in threads.values():
        thread.start()
    for name, thread in threads.items():
        thread.join(max(clock.left(), 0.0))
        if thread.is_alive():
            results[name] = OutOfTimeError("was not ready in the time that was left")
    return {name: results[name] for name in work}


def disturbed() -> bool:
    """Returns whether something that ran out of time is still at it, beside all else."""
    return any(thread.name == _THREAD for thread in threading.enumerate())


def samples(
    contestants: Mapping[str, Prepared], clock: Clock, *, rounds: int, least: int
) -> dict[str, list[float]]:
    """Returns the seconds of one run of each contestant, several samples of each, interleaved.

    A sample follows an untimed run of the same contestant, which finds its caches as the others
    left them, and spans as many runs as take 20 ms, for starting one takes time as well.

    Args:
      contestants: what to run; each has run before.
      clock: when to stop.
      rounds: samples of each if time allows.
      least: samples of each even if time does not allow.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    repeats = {name: _repeats(prepared) for name, prepared in contestants.items()}
    for done in range(rounds):
        if done >= least and clock.left() < 0:
            break
        for name, prepared in contestants.items():
            prepared.wait(prepared.run())
            start = time.perf_counter()
            result: Any = None
            for _ in range(repeats[name]):
                result = prepared.run()
            prepared.wait(result)
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    return seconds


def _repeats(prepared: Prepared) -> int:
    start = time.perf_counter()
    prepared.wait(prepared.run())
    return max(1, min(_MOST, round(_SHORT / (time.perf_counter() - start))))
