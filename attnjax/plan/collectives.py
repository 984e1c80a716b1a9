"""What devices say to each other in a compiled program: between whom, how much, and when."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.sharding import AbstractMesh, Mesh

from attnjax.plan import hlo

_KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices, as often as it happens in a step.

    Attributes:
      kind: `all-gather`, `reduce-scatter`, `all-reduce`, `all-to-all` or `collective-permute`.
      axes: the mesh axes along which it goes; empty if that is not known.
      devices: how many devices there are along these axes.
      count: how often it happens in a step.
      bytes: what each device sends in all of them.
      overlaps: whether the schedule puts matrix products or a kernel between its start and its end,
        or makes it a part of them.
      group: places in the mesh, counted row by row, of the devices of one group.
    """

    kind: str
    axes: tuple[str, ...]
    devices: int
    count: int
    bytes: int
    overlaps: bool
    group: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Found:
    kind: str
    instruction: hlo.Instruction
    size: int
    overlaps: bool
    piece: bool


def find(program: hlo.Program, mesh: Mesh | AbstractMesh) -> list[Collective]:
    """Finds the collectives of a program.

    Args:
      program: compiled for the devices of the mesh.
      mesh: the mesh.

    Returns:
      Those that differ in kind, axes or overlap, each with the sum over all of its occurrences.
    """
    times, _ = program.times()
    sums: dict[tuple[Any, ...], list[int]] = {}
    seen: set[tuple[str, str | None]] = set()
    for name, count in times.items():
        for found in _in(program, name):
            # An exchange that is done piece by piece, beside several products, is in the text of
            # each of them, under one channel.
            piece = (found.kind, found.instruction.channel)
            if found.piece and piece in seen:
                continue
            seen.add(piece)
            group = group_of(found.instruction, mesh.size)
            sent = _sent(found.kind, found.size, len(group))
            if len(group) == 1 or not sent:
                continue
            axes = axes_of(group, mesh)
            size = math.prod(mesh.shape[axis] for axis in axes)
            key = (found.kind, axes, size, found.overlaps, group)
            total = sums.setdefault(key, [0, 0])
            total[0] += count
            total[1] += count * sent
    return sorted(
        (
            Collective(kind, axes, size, count, sent, overlaps, group)
            for (kind, axes, size, overlaps, group), (count, sent) in sums.items()
        ),
        key=lambda c: -c.bytes,
    )


def _in(program: hlo.Program, name: str) -> Iterator[_Found]:
    """Yields the collectives of one computation."""
    for x in program.computations.get(name, ()):
        kind = x.opcode.removesuffix("-start")
        if kind not in _KINDS:
            continue
        begun = x.opcode.endswith("-start")
        overlaps = _covered(program, x) if begun else _wrapped(program, name, x)
        if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        around = program.callers.get(name)
        piece = around is not None and around[0].opcode == "fusion"
        yield _Found(kind, x, _size(program, x, kind), overlaps, piece)


def _wrapped(program: hlo.Program, name: str, x: hlo.Instruction) -> bool:
    """Whether a collective without a start of its own is a part of something that overlaps."""
    while (caller := program.callers.get(name)) is not None:
        around, name = caller
        if around.opcode == "async-start":
            return _covered(program, around)
        if around.opcode == "fusion":
            return program.works(around) or program.channels[x.channel] > 1
        if around.opcode not in ("call", "custom-call"):
            return False
    return False


def _size(program: hlo.Program, x: hlo.Instruction, kind: str) -> int:
    """Returns the bytes of the whole array: what is gathered, reduced, exchanged or passed on."""
    operands = sum(hlo.bytes_of(program.instructions[name].shape) for name in x.operands)
    if kind != "all-gather":
        return operands
    # The result of a start repeats the operands.
    return hlo.bytes_of(x.shape) - (operands if x.opcode.endswith("-start") else 0)


def _sent(kind: str, size: int, devices: int) -> int:
    """Returns the bytes that a device sends, by the usual algorithms on a ring."""
    if kind == "collective-permute":
        return size
    share = size * (devices - 1) // devices
    return 2 * share if kind == "all-reduce" else share


def _covered(program: hlo.Program, start: hlo.Instruction) -> bool:
    """Whether something is computed between an instruction's start and its end."""
    names, waiting = {start.name}, False
    for x in program.computations[program.homes[start.name]]:
        if x is start:
            waiting = True
        elif waiting and names & {*x.operands}:
            if x.opcode.endswith("-done"):
                return False
            names.add(x.name)
        elif waiting and program.works(x):
            return True
    return False


def group_of(x: hlo.Instruction, devices: int) -> tuple[int, ...]:
    """Returns the places of the devices of the first group that exchange with each other.

    Args:
      x: a collective.
      devices: how many there are in all.

    Raises:
      ValueError: if its text is of an unknown form.
    """
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", x.rest):
        edges = [tuple(map(int, p.split(","))) for p in re.findall(r"(\d+,\d+)", pairs[1])]
        return _linked(edges)
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", x.rest):
        sizes = {n: int(s) for n, s in re.findall(r"'([^']+)'=(\d+)", named[1])}
        wanted = re.findall(r"'([^']+)'", named[2])
        if {*wanted} <= {*sizes} and ":" not in named[2]:
            places = np.arange(devices).reshape(tuple(sizes.values()))
            rest = tuple(0 if n not in wanted else slice(None) for n in sizes)
            return tuple(places[rest].ravel().tolist())
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", x.rest):
        shape, dims, order = (tuple(map(int, g.split(","))) if g else () for g in iota.groups())
        places = np.arange(devices).reshape(dims)
        places = places.transpose(order) if order else places
        return tuple(places.reshape(shape)[0].ravel().tolist())
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", x.rest):
        return tuple(map(int, listed[1].split(",")))
    if "replica_groups={}" in x.rest:
        return tuple(range(devices))
    raise ValueError(f"the groups of a collective are of an unknown form: {x.rest[:300]}")


def _linked(edges: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the places that are linked with the first, in any number of steps."""
    group = {edges[0][0]}
    while more := {n for edge in edges if group & {*edge} for n in edge} - group:
        group |= more
    return tuple(sorted(group))


def axes_of(group: tuple[int, ...], mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """Returns the mesh axes along which the places of a group differ."""
    at = np.array(np.unravel_index(np.array(group), tuple(mesh.shape.values())))
    return tuple(
        name
        for name, places in zip(mesh.axis_names, at, strict=True)
        if len({*places.tolist()}) > 1
    )
