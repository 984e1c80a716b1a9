"""What `attnjax.explain` returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from attnjax.ops.softmax.cost import Cost

EMPTY_NOTE = "an axis is empty: the result is known without computing"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a call would be computed. Print it to read it.

    Attributes:
      implementation: the name of the chosen implementation.
      reasons: for every other implementation, why it was not chosen.
      cost: blocks visited, FLOPs, bytes and temporaries.
      notes: what else to know of this call.
      tiles: the sizes of blocks and where they are from; empty if the implementation has none to
        choose.
    """

    implementation: str
    reasons: Mapping[str, str]
    cost: Cost
    notes: tuple[str, ...] = ()
    tiles: str = ""

    def __str__(self) -> str:
        """Returns the plan as a short table."""
        cost, blocks = self.cost, self.cost.blocks
        if blocks.visited is None:
            visited = f"up to {blocks.total:,} (decided by the mask's arrays when it runs)"
        else:
            visited = f"{blocks.visited:,} of {blocks.total:,}, {blocks.full:,} without the mask"
        lines = [
            f"implementation  {self.implementation}",
            *(f"  not {name}: {reason}" for name, reason in self.reasons.items()),
            *([f"block sizes     {self.tiles}"] if self.tiles else []),
            f"blocks per head {visited}",
            f"FLOPs           {cost.flops_forward:.3g} forward, {cost.flops_backward:.3g} backward",
            f"bytes moved     {_bytes(cost.bytes_moved)} at least, forward",
            f"temporaries     about {_bytes(cost.temporaries_forward)} forward, "
            f"{_bytes(cost.temporaries_backward)} with backward",
            *(f"note            {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def user_notes(problem: Any) -> tuple[str, ...]:
    """Returns what to know of a call in which functions of the caller take part, if they do."""
    if not problem.user_functions:
        return ()
    return (
        "a function of yours takes part: outside jax.jit every call compiles anew, because what "
        "the function closes over may have changed",
    )


def _bytes(count: int) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024  # type: ignore[assignment]
    return f"{count:.4g} TiB"
