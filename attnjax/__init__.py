"""Accelerator-first attention for JAX: any mask, any score change, and where each head looks."""

import importlib
from types import ModuleType

from attnjax.additive import additive_attention, explain_additive
from attnjax.api import attention, explain
from attnjax.decoding import decode, explain_decode
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
from attnjax.ops.decode.layout import Contiguous, Paged, Ring
from attnjax.ops.decode.quantize import quantize_kv
from attnjax.ops.softmax.plan import Plan
from attnjax.ops.softmax.stats import AttentionStats
from attnjax.platform import emulate
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
from attnjax.sharding.partition import Partition

__all__ = [
    "AttentionStats",
    "Causal",
    "Contiguous",
    "Dense",
    "Dropout",
    "Full",
    "Lengths",
    "Mask",
    "Paged",
    "Partition",
    "Plan",
    "Prefix",
    "Ring",
    "ScoreMod",
    "Segments",
    "Strided",
    "Where",
    "Window",
    "activated",
    "additive_attention",
    "alibi",
    "attention",
    "bias",
    "decode",
    "emulate",
    "explain",
    "explain_additive",
    "explain_decode",
    "quantize_kv",
    "relative_bias",
    "score_mod",
    "soft_cap",
    "temperature",
]


def __getattr__(name: str) -> ModuleType:
    """Imports `nn` and `models`, which need flax.nnx, and `autotune` when they are first used."""
    if name in ("autotune", "models", "nn"):
        return importlib.import_module(f"attnjax.{name}")
    raise AttributeError(f"module 'attnjax' has no attribute {name!r}")
