"""Losses over tokens, without the logits of all positions at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from attnjax.masks import Mask
from attnjax.models.vocabulary import check_tokens
from attnjax.nn.spreading import place_sequence
from attnjax.sharding.partition import Partition, names

# Logits of so many positions of a sequence are held at a time.
BLOCK = 2048


def cross_entropy(
    logits: Float[Array, "*B V"], targets: Int[Array, "*B"], *, smoothing: float = 0.0
) -> Float[Array, "*B"]:
    """Returns how surprising each target is, in nats: minus its log-probability.

    Source for smoothing: Szegedy et al., "Rethinking the Inception Architecture" (2016), section 7.

    Args:
      logits: unnormalised log-probabilities.
      targets: what came; the loss of a token beyond the vocabulary is NaN.
      smoothing: share of each target that is spread evenly over the whole vocabulary, in [0, 1).

    Returns:
      float32, one loss for each target.

    Raises:
      ValueError: if shapes or dtypes do not fit, or the share is out of range.
    """
    if logits.shape[:-1] != targets.shape or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(
            f"targets: expected integers {list(logits.shape[:-1])}, one for each row of logits, "
            f"got shape {list(targets.shape)}, dtype {targets.dtype}."
        )
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing: expected a number in [0, 1), got {smoothing!r}.")
    logits = logits.astype(jnp.float32)
    # Before the sum of exponentials, so that what is left of large logits is exact.
    logits -= jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    total = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    if smoothing:
        chosen = (1 - smoothing) * chosen + smoothing * jnp.mean(logits, axis=-1)
    return total - chosen


def next_token_loss(
    model: Any,
    tokens: Int[Array, "B T"],
    targets: Int[Array, "B T"],
    *,
    weights: Float[Array, "B T"] | None = None,
    smoothing: float = 0.0,
    mask: Mask | Array | None = None,
    positions: Int[Array, "*B T"] | None = None,
    block: int = BLOCK,
) -> Float[Array, ""]:
    """Returns the mean cross-entropy of a language model.

    Logits are computed, and computed again for gradients, for `block` positions at a time: memory
    is `B * block * V` instead of `B * T * V`.

    Args:
      model: has `hidden` and `logits`, as `LanguageModel`.
      tokens: what is read.
      targets: what comes next.
      weights: of each target in the mean, for example 0 for padding; None is 1 for each. Where all
        are 0, so is the loss.
      smoothing: as in `cross_entropy`.
      mask: as in the model's call.
      positions: likewise.
      block: positions whose logits are held at a time, for each device that a sequence is spread
        over.

    Raises:
      ValueError: if an argument is wrong.
    """
    if weights is not None and weights.shape != targets.shape:
        raise ValueError(
            f"weights: expected shape {list(targets.shape)}, the targets', got "
            f"{list(weights.shape)}."
        )
    hidden: Any = model.hidden(tokens, mask=mask, positions=positions)
    partition = model.decoder.stack.partition
    total, _ = _by_parts(model.logits, hidden, targets, weights, smoothing, block, partition)
    if weights is None:
        return total / targets.size
    count = jnp.sum(weights, dtype=jnp.float32)
    return total / jnp.where(count == 0, 1, count)


def token_losses(
    logits: Callable[[Array], Array],
    hidden: Float[Array, "B T F"],
    targets: Int[Array, "B T"],
    *,
    smoothing: float = 0.0,
    block: int = BLOCK,
    partition: Partition | None = None,
) -> Float[Array, "B T"]:
    """Returns the cross-entropy of each target, the logits computed for a part of them at a time.

    Args:
      logits: `logits(hidden [..., F]) -> [..., V]`, as `LanguageModel.logits`.
      hidden: what it takes.
      targets: what came.
      smoothing: as in `cross_entropy`.
      block: positions whose logits are held at a time, for each device that a sequence is spread
        over.
      partition: how the sequence is spread over the mesh in context.

    Returns:
      float32.

    Raises:
      ValueError: if shapes do not fit, or `block` is below 1.
    """
    _, losses = _by_parts(logits, hidden, targets, None, smoothing, block, partition)
    return losses


def _by_parts(
    logits: Callable[[Array], Array],
    hidden: Array,
    targets: Array,
    weights: Array | None,
    smoothing: float,
    block: int,
    partition: Partition | None,
) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
    """Returns the weighted sum of the losses, and each of them; what is not used costs nothing."""
    check_tokens("targets", targets)
    if targets.shape != hidden.shape[:2]:
        raise ValueError(
            f"targets: expected shape {list(hidden.shape[:2])}, the tokens', got "
            f"{list(targets.shape)}."
        )
    if block < 1:
        raise ValueError(f"block: expected at least 1, got {block}.")
    (B, T), shards = targets.shape, _shards(partition)
    if T % shards:
        raise ValueError(
            f"tokens: expected a length that is a multiple of {shards}, the devices that sequences "
            f"are spread over, got {T}."
        )
    own = T // shards
    parts = -(-own // block)
    size = -(-own // parts)
    if weights is None and parts * size > own:
        weights = jnp.ones(targets.shape, jnp.float32)

    def cut(x: Array) -> Array:
        """Cuts the positions of every device into parts, parts first."""
        x = x.reshape(B, shards, own, *x.shape[2:])
        rest = [(0, 0)] * (x.ndim - 3)
        x = jnp.pad(x, [(0, 0), (0, 0), (0, parts * size - own), *rest])
        return jnp.moveaxis(x.reshape(B, shards, parts, size, *x.shape[3:]), 2, 0)

    @jax.checkpoint
    def add(total: Array, part: tuple[Array, Array, Array | None]) -> tuple[Array, Array]:
        x, target, weight = jax.tree.map(lambda a: place_sequence(a, partition), part)
        losses = cross_entropy(logits(x), target, smoothing=smoothing)
        # A target that does not count need not be a token.
        counted = losses if weight is None else jnp.where(weight == 0, 0, losses * weight)
        return total + jnp.sum(counted), losses

    total, found = jax.lax.scan(add, jnp.float32(0), jax.tree.map(cut, (hidden, targets, weights)))
    losses = jnp.moveaxis(found, 0, 2).reshape(B, shards, -1)[:, :, :own].reshape(B, T)
    return total, losses


def _shards(partition: Partition | None) -> int:
    """Over how many devices of the mesh in context a sequence is spread."""
    if partition is None or partition.sequence is None:
        return 1
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes[name] for name in names(partition.sequence))
