"""Attention operations: for each, a reference, its implementations and their dispatch."""
