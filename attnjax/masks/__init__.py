"""Masks: which query may attend to which key."""

from attnjax.masks.algebra import And, Dense, Full, Mask, Not, Or, as_mask, evaluate, walk
from attnjax.masks.blocks import EMPTY, FULL, PARTIAL
from attnjax.masks.leaves import Causal, Lengths, Prefix, Segments, Strided, Where, Window

__all__ = [
    "EMPTY",
    "FULL",
    "PARTIAL",
    "And",
    "Causal",
    "Dense",
    "Full",
    "Lengths",
    "Mask",
    "Not",
    "Or",
    "Prefix",
    "Segments",
    "Strided",
    "Where",
    "Window",
    "as_mask",
    "evaluate",
    "walk",
]
