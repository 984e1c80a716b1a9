"""`--focus every=50`: when a run records where its heads look."""

from __future__ import annotations

from dataclasses import dataclass

EVERY = 50
"""Steps from one record to the next where `--steady auto` is given without `--focus`."""


@dataclass(frozen=True)
class FocusConfig:
    """When and how a run records where its heads look.

    Raises:
        ValueError: a number is out of its range.
    """

    every: int | None = None
    """Steps from one record to the next, the first step besides; None for no records."""

    def __post_init__(self) -> None:
        """Rejects values that cannot mean anything."""
        if self.every is not None and self.every < 1:
            raise ValueError(f"focus: every must be at least 1, got {self.every}")

    def due(self, step: int) -> bool:
        """Whether the step with this number, from 1, is recorded."""
        return self.every is not None and (step == 1 or step % self.every == 0)


def parse_focus(text: str) -> FocusConfig:
    """Reads what `--focus` takes, such as every=50.

    Raises:
        ValueError: it cannot be read.
    """
    name, equals, value = text.partition("=")
    if name != "every" or not equals or not value.isdecimal():
        raise ValueError(f"focus must read every=STEPS, such as every=50; got {text!r}")
    return FocusConfig(int(value))
