"""Checks of what attention layers are given."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from attnjax.nn.positions import Positions


def check_heads(features: int, num_heads: int, num_kv_heads: int, head_dim: int | None) -> None:
    """Raises ValueError if the sizes of a layer do not divide."""
    if num_heads < 1 or num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(
            "num_heads: expected a positive multiple of num_kv_heads, got "
            f"num_heads={num_heads}, num_kv_heads={num_kv_heads}."
        )
    if head_dim is None and features % num_heads:
        raise ValueError(
            f"features: expected a multiple of num_heads={num_heads}, or a head_dim, "
            f"got features={features}."
        )


def check_sequence(name: str, x: Any, features: int) -> None:
    """Raises ValueError unless `x` is an array `[batch, time, features]`."""
    if not hasattr(x, "shape") or len(x.shape) != 3 or x.shape[-1] != features:
        got = x.shape if hasattr(x, "shape") else type(x).__name__
        raise ValueError(f"{name}: expected an array [batch, time, {features}], got {got}.")


def check_explicit(name: str, scheme: Positions) -> None:
    """Raises ValueError unless a scheme takes positions."""
    if not scheme.explicit:
        raise ValueError(
            f"{name}: expected None with {type(scheme).__name__}, which counts distances along the "
            "arrays; hide padding by the mask instead."
        )


def check_positions(name: str, positions: Any, B: int, T: int, scheme: Positions) -> None:
    """Raises ValueError unless positions are integers `[T]` or `[B, T]` that a scheme takes."""
    check_explicit(name, scheme)
    dtype = jnp.asarray(positions).dtype
    fits = jnp.shape(positions) in ((T,), (1, T), (B, T))
    if not fits or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"{name}: expected integers [T={T}] or [B={B}, T={T}], got shape "
            f"{jnp.shape(positions)}, dtype {dtype}."
        )
