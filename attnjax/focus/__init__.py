"""What attention statistics are used for: telemetry, steadying, maps, the report."""

from attnjax.focus.heads import HeadStats
from attnjax.focus.telemetry import (
    Records,
    Watch,
    clear,
    describe,
    merged_records,
    read,
    records,
    unwatch,
    watch,
)
from attnjax.focus.warnings import Thresholds, Warned, Warnings

__all__ = [
    "HeadStats",
    "Records",
    "Thresholds",
    "Warned",
    "Warnings",
    "Watch",
    "clear",
    "describe",
    "merged_records",
    "read",
    "records",
    "unwatch",
    "watch",
]
