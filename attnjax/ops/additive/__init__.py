"""Softmax attention with additive scores."""
