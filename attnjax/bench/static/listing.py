"""Reads the TPU compiler's listing of a kernel: bundles, operations, regions that branches skip.

Written for what libtpu 0.0.52 prints under `--xla_jf_dump_llo_text`. A line is one bundle: all its
operations start in one cycle. Names are in static single assignment: `%s42_s7` is value 42, kept in
scalar register 7.
"""

from __future__ import annotations

import dataclasses
import re

_BUNDLE = re.compile(r"^ *(?:0x)?[0-9a-f]+ +([A-Z]{2})? *: (>*) *\{", re.MULTILINE)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_EMPTY_REGION = re.compile(r"Start/End empty region (\d+)")
_OPERAND_INDEX = re.compile(r"index: (\d+), kind: input")
_OPERAND_SHAPE = re.compile(r"shape: (\w+\[[\d,]*\])")
_PREDICATE = re.compile(r" ?\((!?)%(\w+)(?:, ([^)]*))?\),?")
_RESULT = re.compile(r"%(\w+) = ([\w.]+) ?(.*)", re.DOTALL)
_HINT = re.compile(r"\[(?:resolvable|thread):[^\]]*\]")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation that computes, moves or tests scalars.

    Attributes:
      result: name of its value.
      name: the instruction, `sadd.s32` for one.
      arguments: operands as they are printed.
      predicate: name of the predicate it runs under, or None.
      negated: whether it runs where the predicate is false.
      otherwise: the value that the result has where it does not run, as printed, or None.
      text: all of it, for messages.
    """

    result: str
    name: str
    arguments: tuple[str, ...]
    predicate: str | None
    negated: bool
    otherwise: str | None
    text: str


@dataclasses.dataclass(frozen=True)
class Bundle:
    """What starts in one cycle.

    Attributes:
      depth: in how many loops it is.
      loop: whether it is the first of a loop's body.
      targets: numbers of the regions that end right before it.
      operations: its scalar operations.
    """

    depth: int
    loop: bool
    targets: tuple[int, ...]
    operations: tuple[Operation, ...]


@dataclasses.dataclass(frozen=True)
class Listing:
    """A kernel's machine code.

    Attributes:
      bundles: in the order of their addresses.
      operands: shape of each input by its index, `s32[16,16]` for one.
    """

    bundles: tuple[Bundle, ...]
    operands: dict[int, str]


def read(text: str) -> Listing:
    """Returns the bundles of a listing `*-final_bundles.txt`."""
    starts = list(_BUNDLE.finditer(text))
    if not starts:
        raise ValueError(f"expected a listing of bundles; got {text[:200]!r}.")
    operands: dict[int, str] = {}
    bundles = []
    for k, match in enumerate(starts):
        stop = starts[k + 1].start() if k + 1 < len(starts) else len(text)
        raw = text[match.end() : stop]
        plain = _COMMENT.sub("", raw)
        operations = []
        for piece in plain[: plain.rfind("}")].split(";;"):
            if "inlined_call_operand" in piece:
                index, shape = _OPERAND_INDEX.search(piece), _OPERAND_SHAPE.search(piece)
                if index and shape:
                    operands[int(index[1])] = shape[1]
            if (operation := _operation(piece.strip())) is not None:
                operations.append(operation)
        bundles.append(
            Bundle(
                depth=len(match[2]),
                loop=match[1] == "LB",
                targets=tuple(int(n) for n in _EMPTY_REGION.findall(raw)),
                operations=tuple(operations),
            )
        )
    return Listing(tuple(bundles), operands)


def _operation(text: str) -> Operation | None:
    """Returns a scalar operation, or None for one of the vector units."""
    match = _RESULT.match(text)
    if match is None:
        return None
    result, name, rest = match.groups()
    moves_data = name in ("sst", "sbr.rel", "sbr.abs", "dma.hbm_to_smem", "dma.vmem_to_smem")
    if not (result[0] in "sp" or moves_data):
        return None
    predicate, negated, otherwise = None, False, None
    if name != "inlined_call_operand.hbm" and (found := _PREDICATE.search(rest)):
        predicate, negated, otherwise = found[2], bool(found[1]), found[3]
        rest = rest[: found.start()] + " " + rest[found.end() :]
    if name.startswith("inlined_call_operand"):
        index = _OPERAND_INDEX.search(rest)
        arguments: tuple[str, ...] = (index[1],) if index else ()
        name = "inlined_call_operand"
    else:
        rest = _HINT.sub("", rest).strip()
        if name == "sst":
            address, value = rest.rsplit(" ", 1)
            arguments = (address.strip().rstrip(","), value)
        else:
            arguments = tuple(x.strip() for x in rest.split(",") if x.strip())
    return Operation(result, name, arguments, predicate, negated, otherwise, text)
