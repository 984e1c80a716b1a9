"""focus.jsonl: where the heads of a run look, step by step, and what is to be said about that."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from attnjax.focus import HeadStats, Warned, Warnings
from attnjax.focus.records import RECORDS, VERSION
from attnjax.focus.report.colours import indices, viridis
from attnjax.focus.steady import Remedy
from train.common.files import write_text
from train.common.focusing import FocusConfig
from train.common.metrics import History, read_history

SAID = 3
"""Warnings, or remedies, of one step that are printed; all of them are in the file."""
_CELL = 12  # pixels of a head in the pictures for TensorBoard
_PICTURES = {"share": (0.0, 1.0), "sink_mass": (0.0, 1.0), "max_logit": (0.0, 100.0)}
"""Statistics that are drawn for TensorBoard, from dark to bright between two values."""


class HeadLog:
    """Appends statistics of heads, warnings, their ends, and remedies to a run's focus.jsonl.

    A summary goes to metrics.jsonl as a row of kind `focus`, and pictures of layers and heads to
    TensorBoard. What was written after the checkpoint that is resumed will be written again.

    Args:
        run_dir: where focus.jsonl is.
        config: when it is recorded; without, nothing is written, and nothing is lost.
        resumed_step: the step of the checkpoint.
        say: prints warnings and remedies.
        write: False in a process that does not keep the run's records.

    Raises:
        ValueError: a line of the file before its last cannot be read.
    """

    def __init__(
        self,
        run_dir: Path,
        config: FocusConfig,
        *,
        resumed_step: int,
        say: Callable[[str], object],
        write: bool = True,
    ) -> None:
        self._path, self._say, self._every = run_dir / RECORDS, say, config.every
        self._warnings = Warnings()
        self._file: TextIO | None = None
        self._begun, self._writes = False, config.every is not None and write
        if not self._writes:
            return
        rows = [row for row in read_history(self._path) if row.get("step", 0) <= resumed_step]
        for row in rows:
            if row["kind"] == "heads":
                self._warnings.update(row["step"], _from_json(row["modules"]))
        self._begun = bool(rows)
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))

    def write(self, step: int, stats: Mapping[str, HeadStats], history: History) -> None:
        """Appends what the heads did at a step; it is in the file when this returns.

        Args:
            step: its number.
            stats: of the heads of each module.
            history: takes the summary and the pictures.
        """
        if not self._writes:
            return
        modules = _to_json(stats)
        stats = _from_json(modules)  # with the digits that a resumed run will see
        if not self._begun:
            layout = {name: {"heads": len(of.entropy)} for name, of in stats.items()}
            about = {"version": VERSION, "every": self._every, "modules": layout}
            self._line({"kind": "layout", **about})
            self._begun = True
        self._line({"kind": "heads", "step": step, "modules": modules})
        told = self._warnings.update(step, stats)
        for warned in told:
            self._line(_told(warned))
        self._flush()
        begun = [warned for warned in told if not warned.over]
        self._say_some(step, [f"{_of(x.module, x.head)}{x.why}" for x in begun])
        history.write("focus", step, _summary(stats), {})
        for name, (low, high) in _PICTURES.items():
            picture = _picture([getattr(of, name) for of in stats.values()], low, high)
            history.picture(f"focus/{name}", step, picture)

    def remedied(self, step: int, remedies: Sequence[Remedy]) -> None:
        """Appends what was done at a step to keep the heads steady, and says so."""
        if not self._writes or not remedies:
            return
        for remedy in remedies:
            fields = {name: _finite(x) for name, x in remedy._asdict().items()}
            # What concerns no single module concerns the model.
            self._line({"kind": "remedy", "step": step, **fields, "module": remedy.module or ""})
        self._flush()
        self._say_some(
            step, [f"{_of(x.module, x.head)}{x.what} {x.strength:.4g}: {x.why}" for x in remedies]
        )

    def sync(self) -> None:
        """Puts every line on the disk; a checkpoint must not outlive the lines before it."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _line(self, row: Mapping[str, Any]) -> None:
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8")
        self._file.write(json.dumps(row) + "\n")

    def _flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def _say_some(self, step: int, sentences: Sequence[str]) -> None:
        for sentence in sentences[:SAID]:
            self._say(f"step {step}, focus: {sentence}")
        if len(sentences) > SAID:
            self._say(f"step {step}, focus: {len(sentences) - SAID} more in {RECORDS}")


def _of(module: str | None, head: int | None) -> str:
    """Whose a remedy or a warning is, before its sentence."""
    return "" if module is None else f"{module} head {head}: "


def _told(warned: Warned) -> dict[str, Any]:
    row = {name: _finite(x) for name, x in warned._asdict().items() if name != "over"}
    if not warned.over:
        return {"kind": "warning", **row}
    return {"kind": "over", **{name: row[name] for name in ("step", "module", "head", "what")}}


def _to_json(described: Mapping[str, HeadStats]) -> dict[str, dict[str, list[float | None]]]:
    """Statistics with five digits each; null stands for what is not finite."""
    return {
        module: {
            name: [_finite(float(f"{x:.5g}")) for x in np.asarray(values, np.float64)]
            for name, values in stats._asdict().items()
        }
        for module, stats in described.items()
    }


def _from_json(modules: Mapping[str, Mapping[str, Any]]) -> dict[str, HeadStats]:
    """What `_to_json` wrote."""

    def array(values: list[float | None]) -> Any:
        return np.array([math.nan if x is None else x for x in values])

    return {
        module: HeadStats(*(array(stats[name]) for name in HeadStats._fields))
        for module, stats in modules.items()
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary(stats: Mapping[str, HeadStats]) -> dict[str, float]:
    """The extremes over all heads, for metrics.jsonl."""
    together = {
        name: np.concatenate([getattr(of, name) for of in stats.values()])
        for name in HeadStats._fields
    }

    def over(reduce: Callable[[np.ndarray], float], name: str) -> float:
        known = together[name][~np.isnan(together[name])]
        return float(reduce(known)) if len(known) else math.nan

    return {
        "share_lowest": over(np.min, "share"),
        "share_mean": over(np.mean, "share"),
        "max_logit": over(np.max, "max_logit"),
        "sink_mass_highest": over(np.max, "sink_mass"),
        "duplicate_lowest": over(np.min, "duplicate"),
    }


def _picture(rows: list[np.ndarray], low: float, high: float) -> np.ndarray:
    """Modules from top to bottom, heads from left to right, uint8 `[height, width, 3]`."""
    places = np.full((len(rows), max(map(len, rows))), math.nan)
    for place, values in zip(places, rows, strict=True):
        place[: len(values)] = np.clip((values - low) / (high - low), 0, 1)
    palette = np.concatenate([viridis(), np.full((1, 3), 128, np.uint8)])  # grey: not known
    picture: np.ndarray = palette[indices(places)]
    return picture.repeat(_CELL, axis=0).repeat(_CELL, axis=1)
