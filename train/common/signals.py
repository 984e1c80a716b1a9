"""SIGTERM and SIGINT as a flag that the loop looks at between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):  # noqa: N818 (an order carried out, not an error)
    """A run stopped because it was told to, after it saved a checkpoint.

    Attributes:
        signum: the signal; the process should exit with 128 + signum.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


class StopSignals:
    """A context in which the first SIGTERM or SIGINT sets `received`; a second one is not caught.

    Outside the main thread Python allows no handlers; the context then does nothing.
    """

    handled: tuple[signal.Signals, ...] = SIGNALS

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Puts the handlers in place."""
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in self.handled}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Puts the handlers before back."""
        self._restore()

    def poll(self) -> bool:
        """Whether it is time to stop; the loop asks after each step and evaluation batch."""
        return self.received is not None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class AgreedStop(StopSignals):
    """The same for several processes: a signal to any of them stops all, at the same `poll`.

    jax's coordination service has taken SIGTERM over and tells the others; SIGINT is handed on to
    it. All processes must call `poll` equally often.
    """

    handled = (signal.SIGINT,)

    def __init__(self) -> None:
        super().__init__()
        self._polls, self._signum = 0, int(signal.SIGTERM)

    def poll(self) -> bool:
        """Whether all processes have agreed to stop here."""
        self._polls += 1
        if self.received is None and multihost_utils.reached_preemption_sync_point(self._polls):
            self.received = self._signum
        return super().poll()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum
        self._restore()
        signal.raise_signal(signal.SIGTERM)


def stop_signals() -> StopSignals:
    """The kind that this run needs."""
    return AgreedStop() if jax.process_count() > 1 else StopSignals()
