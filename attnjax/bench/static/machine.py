"""Executes the scalar part of a TPU kernel's machine code, to count how often each bundle runs.

The compiler's own static profile takes every branch on data in SMEM as untaken. Here the scalar
operations run, on the block schedule that the kernel would be given, so that loops and branches go
as on the device. Vector values stay unknown; a branch that depends on one is an error.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from attnjax.bench.static.listing import Bundle, Listing, Operation
from attnjax.bench.static.scalars import ADDRESS, Value, arithmetic, signed

# Bundles after a branch that run whether or not it is taken.
DELAY_SLOTS = 4
_LIMIT = 200_000_000
_OPERAND = 1 << 60
_TARGET = re.compile(r"\$region(\d+)")
_POINTER = re.compile(r"#(allocation\w+)")
_OFFSET = re.compile(r"[+] *(\$0x[0-9a-f]+|%\w+|\d+)")

_Step = Callable[[list[Value]], None]


class Machine:
    """A listing made ready to run.

    Attributes:
      listing: the code.
    """

    def __init__(self, listing: Listing):
        self.listing = listing
        self._names: dict[str, int] = {}
        self._allocations: dict[str, int] = {}
        self._memory: dict[int, Value] = {}
        self._words: Mapping[int, Sequence[int]] = {}
        self._unknown: dict[str, str] = {}
        self._phis: dict[int, list[tuple[int, int, int]]] = {}
        self._steps: dict[int, list[_Step]] = {}
        self._branches: dict[int, tuple[Operation, int]] = {}
        ends = {n: k for k, bundle in enumerate(listing.bundles) for n in bundle.targets}
        for k, bundle in enumerate(listing.bundles):
            self._prepare(k, bundle, ends)

    def run(self, scalars: Sequence[np.ndarray] = ()) -> np.ndarray:
        """Returns how often each bundle runs.

        Args:
          scalars: contents of the leading operands, those that the kernel has in SMEM.

        Raises:
          NotImplementedError: where a branch depends on data that only the device knows.
        """
        self._words = {i: _smem_words(x) for i, x in enumerate(scalars)}
        self._memory.clear()
        values: list[Value] = [None] * len(self._names)
        marks = sorted({*self._steps, *self._branches, *self._phis})
        ranges: Counter[tuple[int, int]] = Counter()
        total = len(self.listing.bundles)
        position = np.searchsorted(marks, np.arange(total + 1)).tolist()
        start, again, spent = 0, False, 0
        while start < total:
            if phis := self._phis.get(start):
                fresh = [values[back if again else first] for _, first, back in phis]
                for (result, _, _), value in zip(phis, fresh, strict=True):
                    values[result] = value
            stop, target, cursor = total, total, position[start]
            while cursor < len(marks) and marks[cursor] < stop:
                k = marks[cursor]
                cursor += 1
                if k != start and k in self._phis:
                    # A loop entered from above.
                    stop = target = k
                    break
                for step in self._steps.get(k, ()):
                    step(values)
                if k in self._branches and self._taken(self._branches[k][0], values):
                    stop, target = k + 1 + DELAY_SLOTS, self._branches[k][1]
            ranges[start, stop] += 1
            spent += stop - start
            if spent > _LIMIT:
                raise NotImplementedError(f"more than {_LIMIT} bundles; profile a smaller shape.")
            again = target < stop
            start = target
        counts = np.zeros(total + 1, np.int64)
        for (first, last), times in ranges.items():
            counts[first] += times
            counts[last] -= times
        return np.cumsum(counts)[:-1]

    def _prepare(self, k: int, bundle: Bundle, ends: Mapping[int, int]) -> None:
        steps = []
        defined = {operation.result: operation for operation in bundle.operations}
        for operation in _by_dependence(bundle.operations, defined):
            if operation.name == "sphi":
                if not bundle.loop:
                    raise NotImplementedError(f"a merge outside of a loop: {operation.text}")
                first, back = (self._slot(x.removeprefix("%")) for x in operation.arguments)
                self._phis.setdefault(k, []).append((self._slot(operation.result), first, back))
            elif operation.name.startswith("sbr"):
                self._branches[k] = operation, self._target(k, operation, ends)
            elif (step := self._compile(operation)) is not None:
                steps.append(step)
        if steps:
            self._steps[k] = steps
        if bundle.loop:
            self._phis.setdefault(k, [])

    def _target(self, k: int, operation: Operation, ends: Mapping[int, int]) -> int:
        region = _TARGET.search(operation.text)
        if region is None:
            raise NotImplementedError(f"a branch without a target: {operation.text}")
        if (end := ends.get(int(region[1]))) is not None:
            return end
        # The one that is not the end of a region is the start of the loop that the branch closes.
        bundles = self.listing.bundles
        depth = max(bundles[k].depth, bundles[k - 1].depth)
        return max(j for j in range(k) if bundles[j].loop and bundles[j].depth == depth)

    def _taken(self, operation: Operation, values: list[Value]) -> bool:
        if operation.predicate is None:
            return True
        value = values[self._slot(operation.predicate)]
        if value is None:
            raise NotImplementedError(
                f"the branch {operation.text!r} depends on data that only the device knows; give "
                "the contents of the operands in SMEM."
            )
        return bool(value) != operation.negated

    def _slot(self, name: str) -> int:
        return self._names.setdefault(name, len(self._names))

    def _reader(self, text: str) -> Callable[[list[Value]], Value]:
        """Returns what reads an operand: a value, a number, or the address of an allocation."""
        if pointer := _POINTER.search(text):
            base = self._allocations.setdefault(pointer[1], len(self._allocations) + 1)
            base *= ADDRESS
            offset = _OFFSET.search(text)
            if offset is None:
                return lambda values: base
            if offset[1][0] == "%":
                return _sum(base, self._slot(offset[1][1:]))
            constant = base + int(offset[1].removeprefix("$"), 0)
            return lambda values: constant
        if text.startswith("[smem:"):
            inner = re.findall(r"%(\w+)|\$?(0x[0-9a-f]+|\d+)", text)
            slots = [self._slot(name) for name, _ in inner if name]
            constant = sum(int(number, 0) for _, number in inner if number)

            def address(values: list[Value]) -> Value:
                parts = [values[slot] for slot in slots]
                known = [x for x in parts if x is not None]
                return constant + sum(known) if len(known) == len(parts) else None

            return address
        if text.startswith("%"):
            slot = self._slot(text[1:])
            return lambda values: values[slot]
        number = int(text, 0) if re.fullmatch(r"-?(0x)?[0-9a-f]+", text) else None
        wrapped = None if number is None else signed(number)
        return lambda values: wrapped

    def _compile(self, operation: Operation) -> _Step | None:
        name = operation.name
        slot = self._slot(operation.result)
        if name == "inlined_call_operand":
            if not operation.arguments:
                return _assign(slot, lambda values: None)
            number = int(operation.arguments[0])
            if "<no memory space>" in operation.text:
                # Handed over in a register, as the bounds of a dynamic grid are.
                return _assign(slot, lambda values: next(iter(self._words.get(number, ())), None))
            return _assign(slot, lambda values: _OPERAND + number)
        if name.startswith(("vst", "shalt", "dma.done", "vsync", "sfence")):
            return None
        readers = [self._reader(x) for x in operation.arguments]
        if name == "sst":
            action: _Step = self._store(*readers)
        elif name.startswith("dma"):
            action = self._copy(readers[0], readers[2])
        elif name == "sld":
            memory = self._memory

            def load(values: list[Value]) -> Value:
                place = readers[0](values)
                return None if place is None else memory.get(place)

            action = _assign(slot, load)
        else:
            action = _assign(slot, arithmetic(name, readers))
        if operation.predicate is None:
            return action
        predicate, negated = self._slot(operation.predicate), operation.negated
        otherwise = self._reader(operation.otherwise) if operation.otherwise else None

        def guarded(values: list[Value]) -> None:
            condition = values[predicate]
            if condition is not None and bool(condition) != negated:
                action(values)
            elif name == "sst" or name.startswith("dma"):
                if condition is None:
                    raise NotImplementedError(f"an unknown condition: {operation.text!r}")
            elif condition is None or otherwise is None:
                values[slot] = None
            else:
                values[slot] = otherwise(values)

        return guarded

    def _store(
        self, address: Callable[[list[Value]], Value], value: Callable[[list[Value]], Value]
    ) -> _Step:
        memory = self._memory

        def store(values: list[Value]) -> None:
            place = address(values)
            if place is None:
                raise NotImplementedError("a store to an address that only the device knows.")
            memory[place] = value(values)

        return store

    def _copy(
        self, source: Callable[[list[Value]], Value], target: Callable[[list[Value]], Value]
    ) -> _Step:
        memory = self._memory

        def copy(values: list[Value]) -> None:
            start, place = source(values), target(values)
            if start is None or place is None:
                raise NotImplementedError("a copy between addresses that only the device knows.")
            for k, word in enumerate(self._words.get(start - _OPERAND, ())):
                memory[place + k] = word

        return copy


def _by_dependence(
    operations: Sequence[Operation], defined: Mapping[str, Operation]
) -> list[Operation]:
    """Returns the operations of a bundle such that values come before their uses.

    Merges at the top of a loop read what the last round left, and come first.
    """
    ordered: dict[str, Operation] = {}

    def visit(operation: Operation) -> None:
        if operation.result in ordered:
            return
        if operation.name != "sphi":
            for name in re.findall(r"%(\w+)", operation.text)[1:]:
                if name in defined and name != operation.result:
                    visit(defined[name])
        ordered[operation.result] = operation

    for operation in sorted(operations, key=lambda x: x.name != "sphi"):
        visit(operation)
    return list(ordered.values())


def _assign(slot: int, compute: Callable[[list[Value]], Value]) -> _Step:
    def assign(values: list[Value]) -> None:
        values[slot] = compute(values)

    return assign


def _sum(base: int, slot: int) -> Callable[[list[Value]], Value]:
    def total(values: list[Value]) -> Value:
        offset = values[slot]
        return None if offset is None else base + offset

    return total


def _smem_words(array: np.ndarray) -> list[int]:
    """Returns an operand's 32-bit words as they lie in SMEM."""
    if array.ndim <= 1:
        if array.dtype.itemsize != 4:
            raise NotImplementedError(f"an operand in SMEM of type {array.dtype}[{array.shape}]")
        return [int(x) for x in array.ravel().view(np.int32)]
    rows, columns = array.shape[-2:]
    pack = 4 // array.dtype.itemsize
    height = 1 if pack == 1 else 8
    padded = np.zeros(
        (*array.shape[:-2], -(-rows // height) * height, -(-columns // 128) * 128), array.dtype
    )
    padded[..., :rows, :columns] = array
    tiles = padded.reshape(
        -1, padded.shape[-2] // height, height // pack, pack, padded.shape[-1] // 128, 128
    )
    # Tiles row by row; in a tile, words hold `pack` rows, lowest byte first.
    words = np.ascontiguousarray(tiles.transpose(0, 1, 4, 2, 5, 3)).view(np.int32)
    return [int(x) for x in words.ravel()]
