"""Reads the text of a compiled and scheduled program: computations, instructions, loops."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^  (?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")
_CALLED = re.compile(
    r"\b(?:calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_SEVERAL = re.compile(r"(?:branch|called)_computations=\{([^}]*)\}")
_KERNELS = ("tpu_custom_call", "mosaic_gpu", "__gpu$xla.gpu.triton", "__cublas", "__cudnn")
_BITS = re.compile(r"[a-z]+(\d+)")
_FAST = re.compile(r"S\([1-9]")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One operation of a program.

    Attributes:
      name: its name, unique in the program.
      shape: the text of its result's shape, layouts included.
      opcode: what it does.
      operands: names of its operands.
      rest: the text of its attributes.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs, a reduction's own included."""
        found = _CALLED.findall(self.rest)
        for names in _SEVERAL.findall(self.rest):
            found += [name.strip().lstrip("%") for name in names.split(",")]
        return tuple(found)

    @property
    def op_name(self) -> str:
        """Where in the traced function it is from; empty if that is not known."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def channel(self) -> str | None:
        """The channel of a collective: pieces of one share it."""
        found = re.search(r"channel_id=(\d+)", self.rest)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      computations: instructions in the order of the schedule, by the computation's name.
      entry: the name of the computation that runs first.
    """

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str

    @functools.cached_property
    def instructions(self) -> dict[str, Instruction]:
        """All instructions by their names."""
        return {x.name: x for body in self.computations.values() for x in body}

    @functools.cached_property
    def homes(self) -> dict[str, str]:
        """The computation that each instruction is in, by the instruction's name."""
        return {x.name: name for name, body in self.computations.items() for x in body}

    @functools.cached_property
    def callers(self) -> dict[str, tuple[Instruction, str]]:
        """An instruction that runs each computation, and the computation which that one is in."""
        return {
            called: (x, name)
            for name, body in self.computations.items()
            for x in body
            for called in x.called
        }

    @functools.cached_property
    def channels(self) -> dict[str | None, int]:
        """In how many computations each channel is named."""
        named = [{x.channel for x in body} for body in self.computations.values()]
        return collections.Counter(channel for names in named for channel in names)

    def works(self, x: Instruction) -> bool:
        """Whether an instruction multiplies matrices or runs a kernel, itself or what it calls."""
        if x.opcode in ("convolution", "dot"):
            return True
        if x.opcode == "custom-call":
            return any(name in x.rest for name in _KERNELS)
        return x.opcode in ("fusion", "while", "call", "conditional") and any(
            self.works(y) for name in x.called for y in self.computations.get(name, ())
        )

    def trips(self, loop: Instruction) -> int | None:
        """Returns how often a `while` runs, or None if its text does not say."""
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(found[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
        assert condition is not None, loop
        constants = {
            x.name: int(value[1])
            for x in self.computations.get(condition[1], ())
            if x.opcode == "constant" and (value := re.match(r"\((-?\d+)\)", x.rest))
        }
        for x in self.computations.get(condition[1], ()):
            if x.opcode == "compare" and "direction=LT" in x.rest:
                return constants.get(x.operands[1])
        return None

    def times(self) -> tuple[dict[str, int], list[str]]:
        """Counts how often each computation runs in one run of the program.

        Returns:
          The counts by the computation's name; and the loops of which the text does not say how
          often they run, which are counted once.
        """
        found: dict[str, int] = {}
        unknown: list[str] = []

        def visit(name: str, count: int) -> None:
            found[name] = found.get(name, 0) + count
            for x in self.computations.get(name, ()):
                trips = self.trips(x) if x.opcode == "while" else 1
                if trips is None:
                    unknown.append(x.name)
                    trips = 1
                for called in x.called:
                    visit(called, count * trips)

        visit(self.entry, 1)
        return found, unknown


def parse(text: str) -> Program:
    """Reads a program from its text.

    Raises:
      ValueError: if there is no entry computation.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name = "", ""
    body: list[Instruction] = []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name, body = head[2], []
            entry = name if head[1] else entry
        elif line.startswith("}") and name:
            computations[name] = tuple(body)
            name = ""
        elif name and (found := _LINE.match(line)):
            body.append(_instruction(found[1], found[2]))
    if entry not in computations:
        raise ValueError("the program's text has no entry computation.")
    return Program(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
    shape, text = _split(text) if text.startswith("(") else text.split(" ", 1)
    opcode, _, text = text.strip().partition("(")
    inside, rest = _split("(" + text)
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    # A constant's value and a parameter's number stand where others have operands.
    return Instruction(
        name,
        shape,
        opcode,
        operands,
        inside + rest if opcode in ("constant", "parameter") else rest,
    )


def _split(text: str) -> tuple[str, str]:
    """Splits text behind the parenthesis that closes its first one."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: at + 1], text[at + 1 :]
    raise ValueError(f"a parenthesis is not closed in {text[:80]!r}")


class Array(NamedTuple):
    """An array of a shape's text.

    Attributes:
      bytes: its size, without what its layout pads it by.
      slow: its size in the device's large memory: 0 where it lies in fast memory.
    """

    bytes: int
    slow: int


def arrays(shape: str) -> list[Array]:
    """Returns the arrays of a shape's text."""
    found = []
    for dtype, sizes, layout in _ARRAY.findall(shape):
        bits = _BITS.match(dtype)  # a predicate has none, and takes a byte
        size = math.prod(int(n) for n in sizes.split(",") if n) * int(bits[1] if bits else 8) // 8
        found.append(Array(size, 0 if _FAST.search(layout) else size))
    return found


def bytes_of(shape: str) -> int:
    """Returns the bytes of all arrays of a shape."""
    return sum(array.bytes for array in arrays(shape))


def slow_bytes_of(shape: str) -> int:
    """Returns the bytes of those arrays of a shape that lie in the device's large memory."""
    return sum(array.slow for array in arrays(shape))
