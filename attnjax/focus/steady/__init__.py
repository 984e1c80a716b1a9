"""Remedies for attention that becomes unsteady in training; each is usable alone, in any loop."""

from attnjax.focus.steady.penalties import entropy_penalty, z_loss
from attnjax.focus.steady.projections import Heads, all_heads, clippable
from attnjax.focus.steady.qk_clip import QKClipState, clip_factors, qk_clip, scale_heads

__all__ = [
    "Heads",
    "QKClipState",
    "all_heads",
    "clip_factors",
    "clippable",
    "entropy_penalty",
    "qk_clip",
    "scale_heads",
    "z_loss",
]
