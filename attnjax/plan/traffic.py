"""How much a compiled program reads from a device's memory and writes to it."""

from __future__ import annotations

from collections.abc import Iterator

from attnjax.plan import hlo

_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("while", "conditional", "call", "partition-id", "replica-id", "optimization-barrier"),
}
_RUN = ("while", "conditional", "call")


def traffic(program: hlo.Program) -> int:
    """Returns the bytes that one run of a program moves between memory and chip.

    Every instruction of the schedule reads its operands and writes its results once: of an array of
    which it takes or changes a slice only that slice, of what lies in fast memory nothing. Kernels
    may read a block of theirs more than once, so this is a lower bound.
    """
    times, _ = program.times()
    total = 0
    for name, count in times.items():
        caller = program.callers.get(name)
        if caller is None or caller[0].opcode in _RUN:
            body = program.computations.get(name, ())
            total += count * sum(_moved(program, x) for x in body)
    return total


def _moved(program: hlo.Program, x: hlo.Instruction) -> int:
    if x.opcode in _FREE or x.opcode.endswith(("-done", "-update")):
        return 0
    if x.opcode == "fusion":
        inner = program.computations[x.called[0]]
        return _read(program, x, inner) + _written(x, inner)
    if x.opcode == "dynamic-slice":
        return 2 * hlo.slow_bytes_of(x.shape)
    if x.opcode == "dynamic-update-slice":
        return 2 * hlo.slow_bytes_of(program.instructions[x.operands[1]].shape)
    if x.opcode.endswith("-start"):
        # The result repeats the operands, and adds what it makes.
        return hlo.slow_bytes_of(x.shape)
    read = sum(hlo.slow_bytes_of(program.instructions[name].shape) for name in x.operands)
    return read + hlo.slow_bytes_of(x.shape)


def _read(program: hlo.Program, x: hlo.Instruction, inner: tuple[hlo.Instruction, ...]) -> int:
    total = 0
    for n, name in enumerate(x.operands):
        whole = hlo.slow_bytes_of(program.instructions[name].shape)
        users = [u for y in inner if _is_parameter(y, n) for u in _users(inner, y)]
        if users and all(user.opcode == "dynamic-slice" for user, _ in users):
            whole = min(whole, sum(hlo.bytes_of(user.shape) for user, _ in users))
        elif users and all(_changes(user, used) for user, used in users):
            whole = 0
        total += whole
    return total


def _written(x: hlo.Instruction, inner: tuple[hlo.Instruction, ...]) -> int:
    here = {y.name: y for y in inner}
    root = inner[-1]
    makers = root.operands if root.opcode == "tuple" else (root.name,)
    every = hlo.arrays(x.shape)
    if len(every) != len(makers):
        return hlo.slow_bytes_of(x.shape)
    total = 0
    for array, name in zip(every, makers, strict=True):
        maker, written = _behind(here[name], here), array.slow
        if maker.opcode == "dynamic-update-slice":
            written = min(written, hlo.bytes_of(here[maker.operands[1]].shape))
        total += written
    return total


def _users(
    inner: tuple[hlo.Instruction, ...], value: hlo.Instruction
) -> Iterator[tuple[hlo.Instruction, str]]:
    """Yields what uses a value, and the name under which it does, looking through bitcasts."""
    for x in inner:
        if value.name in x.operands:
            if x.opcode == "bitcast":
                yield from _users(inner, x)
            else:
                yield x, value.name


def _behind(x: hlo.Instruction, here: dict[str, hlo.Instruction]) -> hlo.Instruction:
    """Returns what is behind bitcasts."""
    return _behind(here[x.operands[0]], here) if x.opcode == "bitcast" else x


def _changes(user: hlo.Instruction, name: str) -> bool:
    """Whether an instruction changes a slice of a value in place, and does no more with it."""
    return (
        user.opcode == "dynamic-update-slice"
        and user.operands[0] == name
        and name not in user.operands[1:]
    )


def _is_parameter(x: hlo.Instruction, number: int) -> bool:
    return x.opcode == "parameter" and x.rest.startswith(f"({number})")
