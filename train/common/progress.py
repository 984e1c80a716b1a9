"""Progress on stderr: a bar in a terminal, plain lines in a log file, and messages in both."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

LINE_SECONDS = 10.0
"""Least time between two plain progress lines; evaluations and messages are always printed."""


class Progress:
    """Shows where a run is, and records what it says in the run directory's log.txt.

    Args:
        log: the file that messages are appended to, with the time before them; None, in a process
            that does not speak for the run, for no messages either.
        show: whether progress is shown at all; messages always are.
        stream: where to; stderr by default.
    """

    def __init__(self, log: Path | None, *, show: bool, stream: TextIO | None = None) -> None:
        self._log = log
        self._show = show and log is not None
        self._stream = stream or sys.stderr
        self._bar: tqdm | None = None
        self._total = 0
        self._started = self._last_line = time.monotonic()
        self._first_step = 0

    def start(self, step: int, total: int) -> None:
        """Begins to show progress, from `step` of `total` steps."""
        self._first_step, self._total, self._started = step, total, time.monotonic()
        if self._show and self._stream.isatty():
            self._bar = tqdm(
                total=total, initial=step, unit="step", file=self._stream, dynamic_ncols=True
            )

    def say(self, message: str) -> None:
        """Prints a sentence, whatever is shown else, and appends it to the log."""
        if self._log is not None:
            self.record(message)
            self._print(message)

    def record(self, message: str) -> None:
        """Appends a sentence to the log only."""
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Reports a training row: moves the bar, or prints a line if the last one is old."""
        text = _text(metrics)
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._show and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            rate = (step - self._first_step) / max(time.monotonic() - self._started, 1e-9)
            left = (self._total - step) / max(rate, 1e-9)
            self._print(f"step {step}/{self._total} {text} {rate:.1f} steps/s, {left:.0f} s to go")

    def evaluation(self, step: int, metrics: Mapping[str, float], *, best: bool) -> None:
        """Reports an evaluation."""
        if self._show:
            mark = " (best so far)" if best else ""
            self._print(f"step {step}/{self._total} evaluation: {_text(metrics)}{mark}")

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _print(self, message: str) -> None:
        if self._bar is not None:
            self._bar.write(message, file=self._stream)
        else:
            print(message, file=self._stream, flush=True)


def _text(metrics: Mapping[str, float]) -> str:
    """Metrics as `loss 0.693, accuracy 0.5`."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
