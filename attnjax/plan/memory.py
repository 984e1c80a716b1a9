"""What a compiled step needs of a device's memory, by what it is for."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax

from attnjax.plan import hlo

_TOO_MUCH = re.compile(
    r"Ran out of memory.*?\(([\d.]+)([BKMGT])\) exceeds available HBM \(([\d.]+)([BKMGT])\)", re.S
)
_ALIASES = ("bitcast", "copy-done", "optimization-barrier", "async-done")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
      kinds: what each kind takes; they add up to `total`.
      total: all of it: what the compiler says of the arguments, the results that do not take an
        argument's place, the temporaries and the code.
      compiled: whether the compiler made a program of it. If not, it refused because `total`, as
        its message gives it, is more than there is.
    """

    kinds: Mapping[str, int]
    total: int
    compiled: bool


def of_compiled(compiled: Any, arguments: Mapping[str, Any], program: hlo.Program | None) -> Memory:
    """Returns what a compiled step needs.

    Args:
      compiled: a `jax.stages.Compiled`.
      arguments: pytrees by kind, as in `Workload`.
      program: its text, from which activations are told from other temporaries; None if there is
        none.

    Returns:
      Its memory, by kind of argument; `layouts` is what the device's layouts pad them by.
    """
    said = compiled.memory_analysis()
    kinds = argument_bytes(arguments)
    kinds["layouts"] = said.argument_size_in_bytes - sum(kinds.values())
    temporaries = said.temp_size_in_bytes
    kept = 0 if program is None else min(kept_bytes(program), temporaries)
    kinds["activations kept for the backward pass"] = kept
    kinds["temporaries"] = temporaries - kept
    kinds["results"] = said.output_size_in_bytes - said.alias_size_in_bytes
    kinds["code"] = said.generated_code_size_in_bytes
    return Memory({k: n for k, n in kinds.items() if n}, sum(kinds.values()), compiled=True)


def of_refusal(message: str, arguments: Mapping[str, Any]) -> Memory | None:
    """Returns what a step would need that the compiler refused for lack of memory.

    Args:
      message: what the compiler said.
      arguments: pytrees by kind, as in `Workload`.

    Returns:
      Its memory; or None if it was refused for another reason.
    """
    found = _TOO_MUCH.search(message)
    if found is None:
        return None
    total = int(float(found[1]) * 1024 ** "BKMGT".index(found[2]))
    kinds = argument_bytes(arguments)
    kinds["activations, temporaries and results"] = total - sum(kinds.values())
    return Memory(kinds, total, compiled=False)


def argument_bytes(arguments: Mapping[str, Any]) -> dict[str, int]:
    """Returns the bytes of a device's part of the arguments, by kind."""
    found: dict[str, int] = {}
    for name, tree in arguments.items():
        kind = name.partition(":")[0]
        found[kind] = found.get(kind, 0) + sum(_part(x) for x in jax.tree.leaves(tree))
    return found


def _part(x: Any) -> int:
    shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, x.dtype))
        shape = x.shape
    return math.prod(shape) * x.dtype.itemsize


def kept_bytes(program: hlo.Program) -> int:
    """Returns the bytes that the forward pass leaves for the backward pass, arguments aside.

    The backward pass begins with the first matrix product, kernel or loop of them, in the order of
    the schedule, that JAX traced from a transposed function; where it is inside a loop over parts
    of a batch, inside that. What the program keeps in the device's fast memory is not counted.

    Args:
      program: a compiled step; one without a backward pass keeps nothing.
    """
    for name in program.times()[0]:
        caller = program.callers.get(name)
        if caller is not None and caller[0].opcode != "while":
            continue
        body = program.computations.get(name, ())
        working = [n for n, x in enumerate(body) if program.works(x)]
        at = next((n for n in working if "transpose(" in body[n].op_name), None)
        if at is not None and any("jvp(" in body[n].op_name for n in working if n < at):
            return _live(body, at)
    return 0


def _live(body: tuple[hlo.Instruction, ...], at: int) -> int:
    """Returns the bytes of what instructions before `at` computed and others from there on use."""
    here = {x.name: x for x in body}
    before = {x.name for x in body[:at]}
    roots = {
        root
        for x in body[at:]
        for name in x.operands
        if name in before
        for root in _roots(here, name)
    }
    return sum(_bytes(here, *root) for root in roots)


def _roots(
    here: Mapping[str, hlo.Instruction],
    name: str,
    index: int | None = None,
    *,
    written: bool = False,
) -> list[tuple[str, int | None]]:
    """Returns which instructions made the buffers of a value.

    Arguments are left out, and so is what nothing was computed into yet: space for later, zeros.
    """
    x = here[name]
    if x.opcode in ("parameter", "constant"):
        return []
    if x.opcode == "get-tuple-element":
        place = re.search(r"index=(\d+)", x.rest)
        assert place is not None, x
        return _roots(here, x.operands[0], int(place[1]), written=written)
    if x.opcode == "tuple":
        chosen = x.operands if index is None else x.operands[index : index + 1]
        return [root for operand in chosen for root in _roots(here, operand, written=written)]
    if x.opcode == "while":
        # A loop works in place: an element is where the one that it began with was.
        return _roots(here, x.operands[0], index, written=True)
    if x.opcode in _ALIASES:
        index = 0 if x.opcode == "copy-done" else index
        return _roots(here, x.operands[0], index, written=written)
    empty = x.opcode == "broadcast" or "AllocateBuffer" in x.rest
    return [] if empty and not written else [(name, index)]


def _bytes(here: Mapping[str, hlo.Instruction], name: str, index: int | None) -> int:
    every = hlo.arrays(here[name].shape)
    return sum(x.slow for x in (every if index is None else every[index : index + 1]))
