"""Several processes as one run: how they meet, agree on what process 0 decides, and end together.

Every process runs the same program; jax's coordination service, inside process 0, tells when one
is gone. Where one ends with an error, it leaves at once, and the others follow: mostly at once,
because a collective fails, at the latest after `stop_seconds`, because its heartbeats are missed.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated, Any, Literal, NoReturn

import jax
import numpy as np
import tyro
from jax.experimental import multihost_utils

CRASHED = 75
"""Exit status of a process that a bug or the end of another process stopped."""
_STATUS = re.compile(
    "(ABORTED|CANCELLED|DATA_LOSS|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|UNAVAILABLE|"
    "UNKNOWN): "
)
"""How messages of jax's runtime begin; it raises some of them as ValueError."""
_MARGIN_SECONDS = 20
"""How much later than the first missed heartbeat the last process ends, at the most."""
_LAST_WORDS_SECONDS = 1.0
"""How long process 0 stays where another one was lost: its own end aborts all that are left, before
they can say why they end."""
_BUSY_SECONDS = 3600
"""How long processes that are done wait for one that is alive and still writes its report."""


@dataclass(frozen=True)
class DistributedConfig:
    """Which processes train together.

    Raises:
        ValueError: the fields contradict each other.
    """

    mode: Annotated[
        Literal["off", "auto"], tyro.conf.arg(name="distributed", prefix_name=False)
    ] = "off"
    """auto: under SLURM, Kubernetes, Open MPI or on a TPU pod jax finds the other processes."""
    coordinator: Annotated[str | None, tyro.conf.arg(prefix_name=False)] = None
    """HOST:PORT, free on process 0's machine, where the processes meet."""
    processes: Annotated[int | None, tyro.conf.arg(prefix_name=False)] = None
    """How many there are."""
    process_id: Annotated[int | None, tyro.conf.arg(prefix_name=False)] = None
    """This one's number, from 0."""
    initialization_timeout: Annotated[int, tyro.conf.arg(prefix_name=False)] = 300
    """Seconds to wait for all processes to start; then the ones that did end with an error."""
    heartbeat_timeout: Annotated[int, tyro.conf.arg(prefix_name=False)] = 10
    """Seconds without a sign of life after which a process counts as dead and all others end."""

    def __post_init__(self) -> None:
        """Rejects what cannot be started, before anything waits for it."""
        given = [x is not None for x in (self.coordinator, self.processes, self.process_id)]
        if any(given) and self.mode == "auto":
            raise ValueError(
                "give --distributed auto, or --coordinator, --processes and --process-id, not both"
            )
        if any(given) and not all(given):
            raise ValueError(
                "--coordinator, --processes and --process-id go together, got "
                f"{self.coordinator}, {self.processes} and {self.process_id}"
            )
        for name in ("initialization_timeout", "heartbeat_timeout"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 second, got {getattr(self, name)}")
        if self.coordinator is None or self.processes is None or self.process_id is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"--coordinator must be HOST:PORT, got {self.coordinator!r}")
        if not 0 <= self.process_id < self.processes:
            raise ValueError(
                f"--process-id must lie from 0 to {self.processes - 1} with --processes "
                f"{self.processes}, got {self.process_id}"
            )

    @property
    def stop_seconds(self) -> int:
        """All processes have ended so many seconds after one of them died (once all had met)."""
        return self.heartbeat_timeout + _MARGIN_SECONDS

    def start(self) -> None:
        """Joins the other processes, if there are to be any; a second call does nothing.

        Must run before anything else uses jax. From then on an exception that nothing catches ends
        the process at once, with status `CRASHED`.

        Raises:
            ValueError: `auto` found no cluster.
            RuntimeError: jax was used before.
        """
        if (self.mode == "off" and self.coordinator is None) or jax.distributed.is_initialized():
            return
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        explicit = self.coordinator is not None
        late = threading.Timer(self.initialization_timeout, self._say_late)
        late.daemon = True
        late.start()
        try:
            jax.distributed.initialize(
                self.coordinator,
                self.processes,
                self.process_id,
                # Detection would go on to ask this machine's metadata server for what is given.
                cluster_detection_method="deactivate" if explicit else None,
                initialization_timeout=self.initialization_timeout,
                heartbeat_timeout_seconds=self.heartbeat_timeout,
                shutdown_timeout_seconds=_BUSY_SECONDS,
            )
        except ValueError as error:
            raise ValueError(
                f"--distributed auto found no cluster here ({error}); give --coordinator HOST:PORT "
                "--processes N --process-id I"
            ) from error
        finally:
            late.cancel()
        sys.excepthook = _crash
        if is_main():
            _say(
                f"{jax.process_count()} processes with {jax.device_count()} devices; if one dies, "
                f"the others end within {self.stop_seconds} seconds"
            )

    def _say_late(self) -> None:
        """Says in a sentence what jax, which then aborts the process, says in a stack trace."""
        where = f" at {self.coordinator}" if self.coordinator else ""
        _say(
            f"not all processes have met{where} within {self.initialization_timeout} seconds; "
            "ending (--initialization-timeout)"
        )


def is_main() -> bool:
    """Whether this process is number 0, which decides, writes and speaks for all."""
    return jax.process_index() == 0


def broadcast(value: Any) -> Any:
    """Process 0's value, in every process; what the others give is ignored.

    All processes must call it, in the same order among their other collective operations.

    Args:
        value: anything that JSON can hold; floats keep every bit.
    """
    if jax.process_count() == 1:
        return value
    text = json.dumps(value).encode() if is_main() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(size, np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(padded).tobytes())


def barrier(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextmanager
def main_first(name: str) -> Iterator[None]:
    """What stands inside is done by process 0, then by the others: it may prepare files for them.

    Args:
        name: of the barrier between them.
    """
    if not is_main():
        barrier(name)
    yield
    if is_main():
        barrier(name)


def same_everywhere(what: str, values: dict[str, Any]) -> None:
    """Checks that the processes were given the same.

    Args:
        what: names it in the message.
        values: JSON-able values by name.

    Raises:
        ValueError: this process has something else than process 0; names both.
    """
    mine = json.loads(json.dumps(values))
    main = broadcast(mine)
    if differing := sorted(k for k in mine.keys() | main.keys() if mine.get(k) != main.get(k)):
        raise ValueError(
            f"every process must have the same {what}; process {jax.process_index()} has "
            + "; ".join(f"{k}={mine.get(k)!r}, not {main.get(k)!r}" for k in differing)
        )


def is_lost(error: BaseException) -> bool:
    """Whether an error came of working together with other processes: one of them has ended."""
    runtime = isinstance(error, jax.errors.JaxRuntimeError) or _STATUS.match(str(error))
    return bool(runtime) and _has_others()


def leave(status: int) -> int:
    """Ends this process at once if there are others, else returns `status`.

    An ordinary exit would wait for the others, who wait for this process.
    """
    if _has_others():
        _exit(status)
    return status


def _crash(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> NoReturn:
    """The `sys.excepthook` of a process that others wait for."""
    if is_lost(error):
        why = f"another process has probably ended, see what it said; here: {error}"
    else:
        traceback.print_exception(kind, error, trace)
        why = "the error above; the other processes will follow"
    _say(
        f"process {jax.process_index()} of {jax.process_count()} ends with status {CRASHED}: {why}"
    )
    if is_lost(error) and is_main():
        time.sleep(_LAST_WORDS_SECONDS)
    _exit(CRASHED)


def _has_others() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _exit(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
