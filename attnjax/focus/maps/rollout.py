"""Rollout and flow of attention through layers, as products that never make an n-by-n array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from attnjax.focus.maps.lines import check_chosen
from attnjax.focus.maps.readings import look
from attnjax.focus.maps.sums import Gathered, Received, check_vectors
from attnjax.focus.maps.weights import Weights, fixed
from attnjax.numerics import MASKED
from attnjax.typing import is_concrete

Towards = Literal["inputs", "outputs"]


def rollout_step(
    found: Weights,
    vectors: Float[Array, "B T d"],
    *,
    towards: Towards = "inputs",
    share: float | Array = 0.5,
    renormalise: bool = True,
) -> Float[Array, "B T d"]:
    """Multiplies vectors by the mixing matrix of one layer of self-attention.

    The matrix is `M = share * A + (1 - share) * I`, A being the mean of the heads' weights, and I
    the residual connection; then each row is divided by its sum. It is never made: memory is
    O(T * d). Layers that are scanned are scanned here, too:

        def step(vectors, layer):
            found = maps.weights(layer.q, layer.k, mask=attnjax.Causal())
            return maps.rollout_step(found, vectors), None

        reached, _ = jax.lax.scan(step, start, layers, reverse=True)

    Args:
      found: the weights of the layer; T = S.
      vectors: `[B, T, d]`.
      towards: `inputs` multiplies by the transposed matrix, from what counts at the layer's outputs
        to what counts at its inputs; `outputs` by the matrix, from its inputs to its outputs.
      share: the part of attention beside the residual connection, from 0 to 1.
      renormalise: whether rows are divided by their sums, which are less than 1 where a learned
        sink takes a part or a query sees nothing. Without, `share=0.5` gives half of `A + I`, which
        is what Chefer et al. multiply gradient-weighted maps by.

    Returns:
      The product, float32. Gradients stop here.

    Raises:
      ValueError: if queries and keys differ in number, or an argument is wrong.
    """
    T, S = found.sizes["T"], found.sizes["S"]
    if T != S:
        raise ValueError(
            f"found: expected self-attention, T = S, got T={T} and S={S}. Cross-attention has no "
            "residual connection from keys to queries; multiply by it with maps.Gathered or "
            "maps.Received in maps.look."
        )
    _check_towards(towards)
    if jnp.ndim(share) or (is_concrete(share) and not 0 <= share <= 1):
        raise ValueError(f"share: expected a number from 0 to 1, got {share!r}.")
    check_vectors("vectors", vectors, found, "T")
    found, vectors, share = fixed((found, vectors, share))
    vectors = jnp.asarray(vectors, found.problem.accumulation_dtype)
    rest = 1 - share
    if towards == "inputs":
        if renormalise:
            vectors = _divide(vectors, share * _row_sums(found) + rest)
        (mixed,) = look(found, Received(vectors, together=True))
        return share * mixed + rest * vectors
    (mixed,) = look(found, Gathered(vectors, together=True))
    mixed = share * mixed + rest * vectors
    return _divide(mixed, share * _row_sums(found) + rest) if renormalise else mixed


def rollout(
    layers: Sequence[Weights],
    start: Float[Array, "B T d"],
    *,
    towards: Towards = "inputs",
    share: float | Array = 0.5,
    renormalise: bool = True,
) -> Float[Array, "B T d"]:
    """Multiplies vectors by the attention rollout of several layers.

    Rollout is the product `M_L ... M_1` of the mixing matrices of `rollout_step`, from the last
    layer to the first. Only products of it with d vectors are made, in O(T * d): whole rows of it
    by `rollout_rows`, all columns of a random or low-rank probe by `start`. Source: Abnar and
    Zuidema, "Quantifying Attention Flow in Transformers" (2020), where share is 0.5.

    Args:
      layers: the weights of each layer, the first layer first. Each adds to what is compiled; of
        many layers in one array use `rollout_step` in `jax.lax.scan`.
      start: `[B, T, d]`: of the last layer's positions for `inputs`, of the first's for `outputs`.
      towards: `inputs` for products of the transposed rollout, `outputs` for those of itself.
      share: as in `rollout_step`, and so is the next.
      renormalise: likewise.

    Returns:
      The product, float32.

    Raises:
      ValueError: if an argument is wrong.
    """
    return flow(layers, start, towards=towards, share=share, renormalise=renormalise)[-1]


def rollout_rows(
    layers: Sequence[Weights],
    positions: Int[Array, "R"],
    *,
    share: float | Array = 0.5,
    renormalise: bool = True,
) -> Float[Array, "B R T"]:
    """Returns chosen rows of the attention rollout: how much each input counts for an output.

    Args:
      layers: the weights of each layer, the first layer first.
      positions: of the outputs, integers `[R]`; traced ones out of range give NaN.
      share: as in `rollout_step`, and so is the next.
      renormalise: likewise.

    Returns:
      float32; with `renormalise`, rows sum to 1.

    Raises:
      ValueError: if an argument is wrong.
    """
    last = _check_layers(layers)[-1]
    B, T = last.sizes["B"], last.sizes["T"]
    chosen = check_chosen("positions", positions, "T", T)
    start = jax.nn.one_hot(chosen, T, axis=0)
    start = jnp.where((chosen >= 0) & (chosen < T), start, jnp.nan)
    start = jnp.broadcast_to(start, (B, *start.shape))
    end = rollout(layers, start, share=share, renormalise=renormalise)
    return jnp.swapaxes(end, 1, 2)


def flow(
    layers: Sequence[Weights],
    start: Float[Array, "B T d"],
    *,
    towards: Towards = "inputs",
    share: float | Array = 0.5,
    renormalise: bool = True,
) -> Float[Array, "L+1 B T d"]:
    """Returns how much passes through each position on its way through the layers.

    Positions of all layers are the nodes of a network whose edges are the entries of the mixing
    matrices of `rollout_step`. What starts at a position is passed on in proportion to its edges:
    this is a flow that respects their capacities and loses nothing, found by products in O(T * d),
    and what arrives is the rollout. It is not the maximum flow of Abnar and Zuidema (2020), which
    may divide unevenly, is no product, and has to be solved anew for every pair of positions. Of
    that, what arrives here is a lower bound: from one unit at output `i`,
    `flow[-1, j] <= max_flow(i, j) <= min(1, sum of column j of the first layer's matrix)`.

    Args:
      layers: the weights of each layer, the first layer first.
      start: as in `rollout`, and so are the others.
      towards: likewise.
      share: likewise.
      renormalise: likewise.

    Returns:
      float32: the start, then what has passed one layer more each.

    Raises:
      ValueError: if an argument is wrong.
    """
    layers = _check_layers(layers)
    _check_towards(towards)
    check_vectors("start", start, layers[0], "T")
    passed = [jnp.asarray(start, layers[0].problem.accumulation_dtype)]
    for layer in reversed(layers) if towards == "inputs" else layers:
        passed.append(
            rollout_step(layer, passed[-1], towards=towards, share=share, renormalise=renormalise)
        )
    return jnp.stack(passed)


def _check_towards(towards: Any) -> None:
    if towards not in ("inputs", "outputs"):
        raise ValueError(f"towards: expected 'inputs' or 'outputs', got {towards!r}.")


def _check_layers(layers: Any) -> tuple[Weights, ...]:
    layers = tuple(layers) if isinstance(layers, Sequence) else ()
    if not layers or not all(isinstance(layer, Weights) for layer in layers):
        raise ValueError(
            "layers: expected a sequence of what maps.weights returned, one for each layer."
        )
    return layers


def _row_sums(found: Weights) -> Float[Array, "B T 1"]:
    """Returns the sum of each row of the mean of the heads."""
    size = found.sizes
    if not found.plain:
        (sums,) = look(found, Gathered(jnp.ones((size["B"], size["S"], 1)), together=True))
        return sums
    sinks, logsumexp = found.problem.sinks, found.logsumexp
    sums = jnp.where(logsumexp == MASKED, 0.0, 1.0)
    if sinks is not None:
        shift = jnp.where(logsumexp == MASKED, 0, logsumexp)
        sums = jnp.where(logsumexp == MASKED, 0, -jnp.expm1(sinks[:, None] - shift))
    return jnp.mean(sums, axis=1)[..., None]


def _divide(x: Array, by: Array) -> Array:
    """Divides, where rows without any weight stay 0."""
    return jnp.where(by == 0, 0, x / jnp.where(by == 0, 1, by))
