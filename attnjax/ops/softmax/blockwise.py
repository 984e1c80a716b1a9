"""Placeholder."""

from attnjax.ops.softmax.reference import attend
