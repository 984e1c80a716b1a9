"""What attention statistics are used for: telemetry, steadying, maps, the report."""

from attnjax.focus.heads import HeadStats
from attnjax.focus.telemetry import (
    Recorded,
    Watch,
    clear,
    describe,
    merged,
    read,
    recorded,
    unwatch,
    watch,
)
from attnjax.focus.warnings import Thresholds, Warned, Warnings

__all__ = [
    "HeadStats",
    "Recorded",
    "Thresholds",
    "Warned",
    "Warnings",
    "Watch",
    "clear",
    "describe",
    "merged",
    "read",
    "recorded",
    "unwatch",
    "watch",
]
