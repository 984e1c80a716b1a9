"""Attention over a mesh, and where the parameters of a model belong on it."""
