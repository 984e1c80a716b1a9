"""A plan as text, as JSON and as a plot."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attnjax.plan.planning import UNKNOWN, Plan
from attnjax.plan.roofline import ASSUMPTIONS
from attnjax.plan.searching import Change, Largest

VERSION = 1


def text(plan: Plan) -> str:
    """Returns a plan as a page of text."""
    lines = [
        plan.title,
        f"  settings  {_listed(plan.settings)}",
        f"  target    {plan.request.target.describe()}",
        f"  mesh      {_listed(plan.request.mesh)}",
        f"  compiled in {plan.seconds:.0f} s by the target's own compiler, on this machine",
        "",
        "Memory of one device",
        *_memory(plan),
        "",
        *_collectives(plan),
        "",
        *_time(plan),
        *(f"note: {note}" for note in plan.notes),
        "",
        "Not known here:",
        *(f"  - {line}" for line in UNKNOWN),
    ]
    return "\n".join(lines)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _memory(plan: Plan) -> Iterator[str]:
    for name, size in plan.memory.kinds.items():
        yield f"  {name:<42}{size_of(size):>12}"
    source = "the compiler's own figure" if plan.memory.compiled else "what the compiler asked for"
    yield f"  {'total, ' + source:<42}{size_of(plan.memory.total):>12}"
    hbm = plan.request.target.device.hbm
    if plan.fits:
        share = plan.headroom / hbm
        yield f"  fits: {size_of(plan.headroom)} ({share:.0%}) of {size_of(hbm)} are left"
    else:
        yield f"  DOES NOT FIT: {size_of(-plan.headroom)} more than the {size_of(hbm)} there are"


def _collectives(plan: Plan) -> Iterator[str]:
    yield "Collectives of one step, and what each device sends"
    if plan.collectives is None:
        yield "  not known"
        return
    if not plan.collectives:
        yield "  none"
    for c in merged(plan):
        axes = "*".join(c["axes"]) or "the same chip"
        state = "overlapped" if c["overlaps"] else "exposed"
        yield (
            f"  {c['kind']:<19}{axes:<16}{c['devices']:>5} devices {c['count']:>6} times"
            f"{size_of(c['bytes']):>12}  {state}"
        )


def merged(plan: Plan) -> list[dict[str, Any]]:
    """Returns the collectives, summed over groups that lie along the same axes."""
    sums: dict[Any, dict[str, Any]] = {}
    for c in plan.collectives or ():
        key = (c.kind, c.axes, c.devices, c.overlaps)
        entry = {"kind": c.kind, "axes": c.axes, "devices": c.devices, "count": 0, "bytes": 0}
        total = sums.setdefault(key, {**entry, "overlaps": c.overlaps})
        total["count"] += c.count
        total["bytes"] += c.bytes
    return sorted(sums.values(), key=lambda c: -c["bytes"])


def _time(plan: Plan) -> Iterator[str]:
    devices = plan.request.target.devices
    yield (
        f"FLOPs of one step: {plan.flops:.4g} in all, {plan.flops / devices:.4g} a device; "
        f"{plan.attention / max(plan.flops, 1):.0%} in attention kernels"
    )
    bound = plan.roofline
    if bound is None:
        return
    yield f"Step time at the data sheet's peaks ({plan.request.target.device.source})"
    yield f"  compute {_ms(bound.compute)}, HBM {_ms(bound.hbm)}, network {_ms(bound.network)}"
    yield f"  {_ms(bound.overlapped)} if everything overlaps: {bound.bound} comes first"
    exposed = f"{_ms(bound.exposed)} of collectives are exposed"
    yield f"  {_ms(bound.scheduled)} if what the schedule overlaps does: {exposed}"
    yield f"  {_ms(bound.total)} if nothing overlaps"
    yield from (f"  - {line}" for line in ASSUMPTIONS)


def largest_text(found: Largest) -> str:
    """Returns what came of a search, in a line or two."""
    if found.fits is None:
        return f"No {found.axis} fits: tried {', '.join(map(str, found.tried))}."
    beyond = "" if found.too_large is None else f"; {found.too_large} does not"
    return (
        f"Largest {found.axis} that fits: {found.fits}{beyond}. Each was compiled "
        f"({len(found.tried)} in all); what lies between was not."
    )


def changes_text(changes: Sequence[Change], tried: int) -> str:
    """Returns which changes would make a plan fit."""
    if not changes:
        return f"None of the {tried} changes that were compiled makes it fit."
    lines = ["Each of these makes it fit; each was compiled:"]
    for change in changes:
        total = size_of(change.plan.memory.total)
        left = size_of(change.plan.headroom)
        lines.append(f"  - {change.text}: {total} a device, {left} are left")
    return "\n".join(lines)


def as_dict(plan: Plan) -> dict[str, Any]:
    """Returns a plan as what JSON can hold; times in seconds, sizes in bytes."""
    target, bound = plan.request.target, plan.roofline
    times = None
    if bound is not None:
        times = {
            **dataclasses.asdict(bound),
            "overlapped": bound.overlapped,
            "scheduled": bound.scheduled,
            "total": bound.total,
            "bound": bound.bound,
            "assumptions": ASSUMPTIONS,
        }
    return {
        "version": VERSION,
        "title": plan.title,
        "settings": dict(plan.settings),
        "target": {
            **dataclasses.asdict(target),
            "chips": target.chips,
            "hosts": target.hosts,
        },
        "mesh": dict(plan.request.mesh),
        "memory": {
            "kinds": dict(plan.memory.kinds),
            "total": plan.memory.total,
            "compiled": plan.memory.compiled,
            "headroom": plan.headroom,
            "fits": plan.fits,
        },
        "flops": {"total": plan.flops, "kernels": plan.attention},
        "collectives": None if plan.collectives is None else merged(plan),
        "seconds": times,
        "notes": list(plan.notes),
        "not_known": list(UNKNOWN),
        "compile_seconds": plan.seconds,
    }


def plot(plan: Plan, path: pathlib.Path) -> None:
    """Draws memory by kind, times, and the bytes of collectives.

    Args:
      plan: what to draw.
      path: of the picture.

    Raises:
      ModuleNotFoundError: without matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.5), layout="constrained")
    memory, times, sent = figure.subplots(1, 3)
    figure.suptitle(f"{plan.title} on {plan.request.target.name}")
    below = 0.0
    for name, size in plan.memory.kinds.items():
        memory.bar(["needed"], [size / 2**30], bottom=below, label=name)
        below += size / 2**30
    limit = plan.request.target.device.hbm / 2**30
    memory.axhline(limit, color="black", linestyle="--", label="there is")
    memory.set_ylabel("GiB of a device")
    memory.legend(fontsize="x-small")
    if plan.roofline is not None:
        bound = plan.roofline
        parts = {
            "compute": bound.compute,
            "HBM": bound.hbm,
            "network": bound.network,
            "all overlapped": bound.overlapped,
            "as scheduled": bound.scheduled,
            "in sum": bound.total,
        }
        times.barh([*parts][::-1], [1e3 * x for x in parts.values()][::-1])
    times.set_xlabel("ms at the peaks of the data sheet")
    rows = merged(plan)[:8][::-1]
    names = [f"{c['kind']}\n{'*'.join(c['axes'])}" for c in rows]
    colors = ["tab:green" if c["overlaps"] else "tab:red" for c in rows]
    sent.barh(range(len(rows)), [c["bytes"] / 2**20 for c in rows], color=colors)
    sent.set_yticks(range(len(rows)), names, fontsize="x-small")
    sent.set_xlabel("MiB sent by a device in a step; green is overlapped")
    figure.savefig(path, dpi=110)


def size_of(size: float) -> str:
    """Returns bytes as text."""
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:,.2f} GiB"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms"
