"""Flax NNX modules: parameters, projections, and one call of an operation."""

from attnjax.nn.pooling import AttentionPooling

__all__ = ["AttentionPooling"]
