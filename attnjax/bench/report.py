"""Writes what a suite found: JSON, a Markdown table and a plot."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

VERSION = 1


def write(result: dict[str, Any], folder: pathlib.Path) -> list[str]:
    """Writes the files of a result.

    Args:
      result: with `suite`, `fingerprint`, `unit` and `rows`.
      folder: where to; `SUITE.json`, `SUITE.md` and, with matplotlib, `SUITE.png`.

    Returns:
      Lines that say what was written, and why something was not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / result["suite"]
    complete = {"version": VERSION, **result}
    base.with_suffix(".json").write_text(json.dumps(complete, indent=1) + "\n")
    base.with_suffix(".md").write_text(markdown(result))
    said = [f"wrote {base}.json", f"wrote {base}.md"]
    try:
        _plot(result, base.with_suffix(".png"))
        said.append(f"wrote {base}.png")
    except ModuleNotFoundError as error:
        said.append(f"no plot, for {error.name} is missing: pip install 'attnjax[train]'")
    return said


def read(path: pathlib.Path) -> dict[str, Any]:
    """Reads a result.

    Raises:
      ValueError: if it is none.
    """
    try:
        result = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected the JSON of a benchmark; {error}") from error
    if not isinstance(result, dict) or result.get("version") != VERSION:
        raise ValueError(f"{path}: expected a benchmark's JSON of version {VERSION}.")
    return result


def markdown(result: dict[str, Any]) -> str:
    """Returns the tables of a result, with what it ran on."""
    origin = result["fingerprint"]
    device, processor = origin["device"], origin["processor"]
    packages = ", ".join(f"{name} {version}" for name, version in origin["packages"].items())
    git = origin["git"] or {"commit": "unknown", "changed": False}
    changed = ", with changes" if git["changed"] else ""
    lines = [
        f"# attnjax.bench {result['suite']}",
        "",
        f"- {origin['date']}, commit {git['commit']}{changed}",
        f"- {device['count']} x {device['kind']} ({device['platform']}); "
        f"{processor['model']}, {processor['cores']} cores",
        f"- Python {origin['python']}, {packages}",
        *[f"- `{name}={value}`" for name, value in origin["flags"].items()],
        f"- settings: {json.dumps(result['settings'])}",
    ]
    if (rate := result.get("matrix_tflops")) is not None:
        lines.append(f"- matrix products: {rate:.2f} TFLOP/s")
    for case, direction in _groups(result["rows"]):
        rows = [x for x in result["rows"] if (x["case"], x["direction"]) == (case, direction)]
        timed = [x for x in rows if x["status"] == "ok"]
        lines += ["", f"## {case}, {direction}", ""]
        if timed:
            lines += list(_table(timed, result["unit"]))
        lines += ["", *[f"- {x['contestant']}: {_why(x)}" for x in rows if x["status"] != "ok"]]
    absent = [f"- {x['contestant']}: {x['reason']}" for x in result["rows"] if x["case"] == "all"]
    if absent:
        lines += ["", "## Absent", "", *absent]
    return "\n".join(lines) + "\n"


def entry(contestant: str, case: str, direction: str, status: str, reason: str) -> dict[str, Any]:
    """Returns the row of a contestant without what was measured.

    Args:
      contestant: its name.
      case: the case, or `all`.
      direction: `fwd`, `fwdbwd` or `all`.
      status: `ok`, or what is in the way: `absent` (not here), `refused` (it can't do this case),
        `wrong` (its numbers are), `failed`, `skipped` (out of time).
      reason: why it is not `ok`.
    """
    return {
        "contestant": contestant,
        "case": case,
        "direction": direction,
        "status": status,
        "reason": reason,
    }


def value(number: float, unit: str) -> str:
    """Returns a measured number as text."""
    return f"{number * 1e3:,.3f} ms" if unit == "s" else f"{number:,.0f} {unit}"


def spread(row: dict[str, Any]) -> tuple[float, float]:
    """Returns the least and the greatest sample of a row."""
    return min(row["samples"]), max(row["samples"])


def _groups(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((x["case"], x["direction"]) for x in rows if x["case"] != "all"))


def _why(row: dict[str, Any]) -> str:
    return f"{row['status']}: {' '.join(row['reason'].split())[:300]}"


def _table(rows: Sequence[dict[str, Any]], unit: str) -> Iterator[str]:
    timed = unit == "s"
    columns = ["contestant", "median", "least to greatest", "x attnjax"]
    columns += ["TFLOP/s", "of matrix rate", "temporaries"] if timed else ["spills", "notes"]
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        low, high = spread(row)
        note = f" ({row['note']})" if row.get("note") else ""
        if row.get("disturbed"):
            note += ", while another was still getting ready"
        cells = [
            f"{row['contestant']}{note}",
            value(row["median"], unit),
            f"{value(low, unit)} to {value(high, unit)}",
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
        ]
        if timed:
            memory = row["temporaries"]
            cells += [f"{row['tflops']:.2f}", f"{row['share']:.0%}"]
            cells += ["" if memory is None else f"{memory / 2**20:,.1f} MiB"]
        else:
            cells += [f"{row['spills']:,}", row["detail"]]
        yield f"| {' | '.join(cells)} |"


def _plot(result: dict[str, Any], path: pathlib.Path) -> None:
    """Draws bars of all contestants, a panel for each case and direction."""
    from matplotlib.figure import Figure

    timed = [x for x in result["rows"] if x["status"] == "ok"]
    groups = _groups(timed)
    if not groups:
        return
    columns = min(len(groups), 4)
    height = -(-len(groups) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * height), layout="constrained")
    panels = figure.subplots(height, columns, squeeze=False).ravel()
    scale = 1e3 if result["unit"] == "s" else 1.0
    for panel, group in zip(panels, groups, strict=False):
        rows = [x for x in timed if (x["case"], x["direction"]) == group][::-1]
        medians = [x["median"] * scale for x in rows]
        errors = [
            [x["median"] * scale - spread(x)[0] * scale for x in rows],
            [spread(x)[1] * scale - x["median"] * scale for x in rows],
        ]
        colors = [
            "tab:orange" if x["contestant"].startswith("attnjax") else "tab:blue" for x in rows
        ]
        panel.barh([x["contestant"] for x in rows], medians, xerr=errors, color=colors)
        panel.set_title(", ".join(group))
        panel.set_xlabel("ms" if result["unit"] == "s" else result["unit"])
    for panel in panels[len(groups) :]:
        panel.remove()
    figure.savefig(path, dpi=110)
