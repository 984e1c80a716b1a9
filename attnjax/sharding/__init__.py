"""Attention over a mesh, and where the parameters of a model belong on it."""

from attnjax.sharding.rules import TRANSFORMER, Rules, shardings

__all__ = ["TRANSFORMER", "Rules", "shardings"]
