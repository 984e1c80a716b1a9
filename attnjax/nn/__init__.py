"""Flax NNX modules: parameters, projections, and one call of an operation."""

from attnjax.nn.interop import attention_fn
from attnjax.nn.pooling import AttentionPooling

__all__ = ["AttentionPooling", "attention_fn"]
