"""Starts a training command as several processes on this machine, and again where one is cut off.

python -m train.launch --processes 4 -- python -m train.text_classification --run-dir runs/x

The command gets --coordinator, --processes and --process-id. When a process ends with an error, the
others get --grace seconds to end by themselves and are then killed. Unless the error is one that
would come again (exit status 2, 3 or 4), everything starts again on a fresh port and goes on from
the last complete checkpoint, --restarts times at most. SIGTERM and SIGINT are passed on, so that
the run saves and stops; a second one kills. The exit status is that of the first process to fail.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, TextIO

from train.common import cli
from train.common.signals import SIGNALS

FINAL = (cli.DONE, cli.WRONG_USE, cli.NOT_FINITE, cli.BROKEN, *(128 + s for s in SIGNALS))
"""Exit statuses after which running the same command again cannot help, or is not wanted."""
_PAUSE_SECONDS = 1.0
_DRAIN_SECONDS = 2.0


@dataclass(frozen=True)
class LaunchConfig:
    """Starts a training command, given after `--`, as several processes on this machine.

    Raises:
        ValueError: a field is out of its range.
    """

    processes: int
    """How many processes."""
    devices_per_process: int | None = None
    """On CPUs: how many devices each process simulates."""
    restarts: int = 3
    """How many times the processes are started again after one was cut off."""
    grace: float = 30.0
    """Seconds for the others to end by themselves after one has failed."""

    def __post_init__(self) -> None:
        """Rejects values that cannot mean anything."""
        for name, least in (("processes", 1), ("devices_per_process", 1), ("restarts", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not self.grace >= 0:
            raise ValueError(f"grace must not be negative, got {self.grace}")

    def run(self, command: Sequence[str]) -> int:
        """Runs `command` to its end.

        Args:
            command: program and arguments; takes --coordinator, --processes and --process-id.

        Returns:
            0, or the exit status of the first process that failed in the last attempt; 128 + n
            where a signal n ended it.
        """
        with _Forwarding() as forwarding:
            for attempt in range(1, self.restarts + 2):
                status = self._attempt(command, attempt, forwarding)
                if status in FINAL or forwarding.received:
                    break
                if attempt <= self.restarts:
                    _say(f"starting again, {self.restarts + 1 - attempt} restarts left")
                    time.sleep(_PAUSE_SECONDS)  # the system may still be clearing up behind them
        return status

    def _attempt(self, command: Sequence[str], attempt: int, forwarding: _Forwarding) -> int:
        """Starts all processes, and returns the status of the first failure when all have ended."""
        address = f"127.0.0.1:{_free_port()}"
        environment = dict(os.environ)
        if self.devices_per_process is not None:
            environment["JAX_NUM_CPU_DEVICES"] = str(self.devices_per_process)
        ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        ranks = []
        for number in range(self.processes):
            flags = ["--coordinator", address, "--processes", str(self.processes)]
            flags += ["--process-id", str(number)]
            ranks.append(_Rank(number, [*command, *flags], environment, ended))
            forwarding.add(ranks[-1])
        pids = " ".join(str(rank.process.pid) for rank in ranks)
        _say(f"attempt {attempt}: {self.processes} processes ({pids}) at {address}")
        first: _Rank | None = None
        deadline = float("inf")
        for _ in ranks:
            rank = ranks[_next(ended, deadline, ranks)]
            if rank.status and first is None:
                first, deadline = rank, time.monotonic() + self.grace
                _say(f"process {rank.number} {rank.ending}")
        for rank in ranks:
            rank.drain()
        forwarding.clear()
        return first.status if first is not None else 0


class _Rank:
    """One process; puts its number into `ended` when it ends, and its output, marked, into ours."""

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        environment: dict[str, str],
        ended: queue.SimpleQueue[int],
    ) -> None:
        self.number = number
        # A session of its own: Ctrl-C in a terminal reaches it once, through us.
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._copy, args=pair, daemon=True)
            for pair in ((self.process.stdout, sys.stdout), (self.process.stderr, sys.stderr))
        ]
        waiter = threading.Thread(target=self._wait, args=(ended,), daemon=True)
        for thread in (*self._readers, waiter):
            thread.start()

    @property
    def status(self) -> int:
        """The exit status as a shell would give it; 0 while it runs."""
        code = self.process.returncode or 0
        return 128 - code if code < 0 else code

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        code = self.process.returncode
        return f"was ended by signal {-code}" if code < 0 else f"ended with exit status {code}"

    def send(self, signum: int) -> None:
        """Sends it a signal, if it still runs."""
        self.process.send_signal(signum)

    def drain(self) -> None:
        """Waits for the rest of its output; not for children of its own that keep the pipe."""
        for reader in self._readers:
            reader.join(_DRAIN_SECONDS)

    def _wait(self, ended: queue.SimpleQueue[int]) -> None:
        self.process.wait()
        ended.put(self.number)

    def _copy(self, source: IO[bytes], target: TextIO) -> None:
        with source:
            for line in source:
                # One write for each line, or the lines of two processes would mix.
                target.write(f"[{self.number}] {line.decode(errors='replace').rstrip()}\n")
                target.flush()


class _Forwarding:
    """A context in which signals go to all processes; the second one kills them."""

    def __init__(self) -> None:
        self.received = 0
        """How many signals have come."""
        self._last = 0
        self._ranks: list[_Rank] = []
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Forwarding:
        self._before = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def add(self, rank: _Rank) -> None:
        """Passes signals on to a process, and the one that may have come before it was started."""
        self._ranks.append(rank)
        if self.received:
            rank.send(self._last)

    def clear(self) -> None:
        """Forgets the processes of an attempt."""
        self._ranks = []

    def _handle(self, signum: int, frame: object) -> None:
        self.received += 1
        self._last = signum if self.received == 1 else signal.SIGKILL
        for rank in self._ranks:
            rank.send(self._last)


def _next(ended: queue.SimpleQueue[int], deadline: float, ranks: Sequence[_Rank]) -> int:
    """The number of the next process to end; kills those left when the deadline passes."""
    while True:
        # Bounded waits, because a wait without a bound would keep Python from handling signals.
        with contextlib.suppress(queue.Empty):
            return ended.get(timeout=min(1.0, max(0.0, deadline - time.monotonic())))
        if time.monotonic() >= deadline:
            for rank in ranks:
                rank.send(signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


def _say(message: str) -> None:
    print(f"[launch] {message}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the options before `--` and runs the command after it."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    config = cli.parse(LaunchConfig, arguments[:at], description=__doc__ or "")
    if not (command := arguments[at + 1 :]):
        print("error: give the training command after --", file=sys.stderr)
        return cli.WRONG_USE
    try:
        return config.run(command)
    except (FileNotFoundError, PermissionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return cli.WRONG_USE


if __name__ == "__main__":
    sys.exit(main())
