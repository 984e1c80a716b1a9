"""A run directory as the report sees it: all that could be read, and what is missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attnjax.focus.lines import Problems, is_number, number, objects, step_of, whole
from attnjax.focus.records import RECORDS, Records, read_records
from attnjax.focus.report.examples import Examples
from attnjax.focus.report.examples_file import EXAMPLES, read_examples

METRICS, CONFIG, MANIFEST = "metrics.jsonl", "config.json", "manifest.json"
FILES = (CONFIG, MANIFEST, METRICS, RECORDS, EXAMPLES)


@dataclasses.dataclass(frozen=True)
class Line:
    """One metric: `steps` int64 [P], rising, and `values` float64 [P], NaN where not finite."""

    steps: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory.

    Attributes:
        path: where it is.
        metrics: lines by metric, then by kind ("train" or "eval").
        config: config.json, or None.
        manifest: manifest.json, or None.
        records: focus.jsonl.
        examples: focus_examples.json.
        problems: a sentence for everything that is missing or broken.
    """

    path: Path
    metrics: Mapping[str, Mapping[str, Line]]
    config: Mapping[str, Any] | None
    manifest: Mapping[str, Any] | None
    records: Records
    examples: Examples
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.resolve().name or str(self.path)

    @property
    def last_step(self) -> int | None:
        """The last step that any file tells of."""
        ends = [line.steps[-1] for kinds in self.metrics.values() for line in kinds.values()]
        ends += list(self.records.heads.steps[-1:])
        return int(max(ends)) if ends else None


def read_run(path: Path) -> Run:
    """Reads a run directory, whatever state its files are in.

    Raises:
        ValueError: there is no such directory, or none of a run's files is in it.
    """
    if not path.is_dir():
        raise ValueError(f"expected a run directory, got {path}, which is no directory")
    if not any((path / name).is_file() for name in FILES):
        raise ValueError(
            f"expected a run directory, got {path}, which has none of {', '.join(FILES)}"
        )
    problems = Problems()
    metrics = _metrics(path / METRICS, problems)
    config, manifest = whole(path / CONFIG, problems), whole(path / MANIFEST, problems)
    records, examples = read_records(path / RECORDS), read_examples(path / EXAMPLES)
    return Run(
        path=path,
        metrics=metrics,
        config=config,
        manifest=manifest,
        records=records,
        examples=examples,
        problems=(*problems.sentences, *records.problems, *examples.problems),
    )


def _metrics(path: Path, problems: Problems) -> Mapping[str, Mapping[str, Line]]:
    points: dict[tuple[str, str], dict[int, float]] = {}
    try:
        for _, row in objects(path, problems):
            kind, step = row.get("kind"), step_of(row)
            if kind == "focus":  # extremes of what focus.jsonl has of every head
                continue
            if kind not in ("train", "eval") or step is None:
                problems.add(f"{path.name}: a line without kind (train or eval) or step")
                continue
            for name, value in row.items():
                if name not in ("kind", "step") and (value is None or is_number(value)):
                    found = number(value)
                    points.setdefault((name, kind), {})[step] = np.nan if found is None else found
    except FileNotFoundError:
        problems.add(f"{path.name} is missing: no training curves")
    except OSError as error:
        problems.add(f"{path.name} cannot be read: {error.strerror}")
    else:
        if not points:
            problems.add(f"{path.name} has no metrics")
    result: dict[str, dict[str, Line]] = {}
    for (name, kind), found_points in points.items():
        steps = sorted(found_points)
        values = np.asarray([found_points[step] for step in steps], np.float64)
        result.setdefault(name, {})[kind] = Line(np.asarray(steps, np.int64), values)
    return result
