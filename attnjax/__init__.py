"""Accelerator-first attention for JAX: any mask, any score change, and where each head looks."""

from attnjax.api import attention
from attnjax.dropout import Dropout
from attnjax.masks import (
    Causal,
    Dense,
    Full,
    Lengths,
    Mask,
    Prefix,
    Segments,
    Strided,
    Where,
    Window,
)
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.scores import (
    ScoreMod,
    activated,
    alibi,
    bias,
    relative_bias,
    score_mod,
    soft_cap,
    temperature,
)

__all__ = [
    "AttentionStats",
    "Causal",
    "Dense",
    "Dropout",
    "Full",
    "Lengths",
    "Mask",
    "Prefix",
    "ScoreMod",
    "Segments",
    "Strided",
    "Where",
    "Window",
    "activated",
    "alibi",
    "attention",
    "bias",
    "relative_bias",
    "score_mod",
    "soft_cap",
    "temperature",
]
