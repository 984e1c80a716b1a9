"""Metrics on disk: one JSON object a line, and TensorBoard events beside it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
from tensorboardX import SummaryWriter

from train.common.files import write_text

Kind = Literal["train", "eval", "focus"]
HISTORY = "metrics.jsonl"


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line that a kill cut off is left out.

    Raises:
        ValueError: a line before the last is no JSON object.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("no object")
        except ValueError as error:
            if number == len(lines):  # every whole line ends in a newline, so this one is cut off
                break
            raise ValueError(f"{path} line {number} is no JSON object: {line[:80]!r}") from error
        rows.append(row)
    return rows


class History:
    """Appends rows `{"kind", "step", metrics..., "seconds": {...}}` to a run's metrics.jsonl.

    Everything but `seconds` is the same in every run of the same command.

    Args:
        run_dir: where metrics.jsonl and tensorboard/ are.
        keep: says of each row already there whether it belongs to the state that is resumed; rows
            written after the checkpoint was made will be written again.
        tensorboard: also write TensorBoard events.
        resumed_step: the step of the checkpoint; TensorBoard hides older events beyond it.
        write: False in a process that does not keep the run's records.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        keep: Callable[[dict[str, Any]], bool],
        tensorboard: bool,
        resumed_step: int,
        write: bool = True,
    ) -> None:
        self.path = run_dir / HISTORY
        self._file: TextIO | None = None
        self._events: SummaryWriter | None = None
        if not write:
            return
        rows = [row for row in read_history(self.path) if keep(row)]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = self.path.open("a", encoding="utf-8")
        if tensorboard:
            self._events = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resumed_step + 1)

    def write(
        self, kind: Kind, step: int, metrics: Mapping[str, float], seconds: Mapping[str, float]
    ) -> None:
        """Appends one row; it is in the file when this returns, if not yet on the disk."""
        if self._file is None:
            return
        rounded = {name: round(value, 6) for name, value in seconds.items()}
        # JSON has no NaN and no infinity; null is what its readers expect there.
        finite = {name: x if math.isfinite(x) else None for name, x in metrics.items()}
        row = {"kind": kind, "step": step, **finite, "seconds": rounded}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in metrics.items():
                self._events.add_scalar(f"{kind}/{name}", value, step, display_name=name)
            for name, value in seconds.items():
                self._events.add_scalar(f"seconds/{kind}_{name}", value, step)

    def picture(self, tag: str, step: int, image: np.ndarray) -> None:
        """Shows a picture in TensorBoard, uint8 `[height, width, 3]`."""
        if self._events is not None:
            self._events.add_image(tag, image, step, dataformats="HWC")

    def sync(self) -> None:
        """Puts every row on the disk; a checkpoint must not outlive the rows before it."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()


class Means:
    """Means of named numbers over the steps since the last row; survives a resume exactly."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        """Starts empty, or where `state`, from an older `Means`, was taken."""
        self._count: int = state["count"] if state else 0
        self._sums: dict[str, float] = dict(state["sums"]) if state else {}

    @property
    def state(self) -> dict[str, Any]:
        """A JSON-able copy; floats survive JSON to the last bit."""
        return {"count": self._count, "sums": dict(self._sums)}

    def add(self, values: Mapping[str, float]) -> None:
        """Adds the numbers of one step."""
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        """Returns the means and starts again; empty if nothing was added."""
        means = {name: total / self._count for name, total in self._sums.items()}
        self._count, self._sums = 0, {}
        return means
