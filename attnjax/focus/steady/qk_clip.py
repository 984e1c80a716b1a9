"""QK-clip: the projections of heads whose logits are too large are scaled down after the update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from attnjax.focus.steady.projections import (
    SIGMA_UNCLIPPABLE,
    Heads,
    leaf_name,
    owner,
    per_head,
)

# The largest tanh(logit / cap) that is taken at its word: nearer to 1, float32 no longer tells by
# how much the cap holds a logit down.
_SATURATED = 1 - 1e-6
_LEAST_BIASED = 0.5


class QKClipState(NamedTuple):
    """What the last update did.

    Attributes:
      factors: by dotted path, what the logits of each head were multiplied by, float32 `[N]`, or
        `[L, N]` of scanned layers; 1 where nothing was done.
    """

    factors: dict[str, Array]


def qk_clip(threshold: float, heads: Mapping[str, Heads]) -> optax.GradientTransformationExtraArgs:
    """Holds the largest logit of each head at a threshold, by scaling its projections.

    After the optimiser's step the query and key projections (and their biases) of every head whose
    largest logit exceeded the threshold are scaled so that the same inputs would give a largest
    logit of just the threshold. With as many key heads as query heads each side takes the square
    root of the factor; with fewer, whose keys several heads share, the queries take all of it.
    Other heads keep their updates to the bit.

        optimizer = optax.chain(optax.adamw(1e-3), qk_clip(100.0, clippable(model)))
        updates, state = optimizer.update(grads, state, params, max_logit={path: stats of it})

    It has to come last, where updates are what is added to the parameters. `update` takes
    `max_logit`: by dotted path the largest logit of each head in this step, `[N]`, over the whole
    batch (`AttentionStats.max_logit.max((0, 2))`). Modules of scanned layers give `[L, N]` under
    their path, or `[N]` for each layer under `<stack>.<number>.<rest>`. A head whose largest logit
    is not finite is left alone: a factor of 0 or NaN would destroy it.

    Logits that a soft cap bounds come near the threshold in several steps where they were at the
    cap. Position biases are not scaled: with those of ALiBi, none of which is above 0, the
    threshold holds as a bound; heads with relative biases come near it in several steps, and
    `clippable` refuses them unless asked.

    Source: Kimi Team, "Kimi K2: Open Agentic Intelligence" (2025), section 2.1, which uses a
    threshold of 100.

    Args:
      threshold: the largest logit that is allowed, positive.
      heads: what to clip, as `clippable(model)` gives it.

    Returns:
      The transformation; its state tells the factors of the last update.

    Raises:
      ValueError: if the threshold is not positive and finite, or not below a module's soft cap;
        and in `update`, if parameters or logits are missing or of the wrong shape.
      NotImplementedError: in `init` and `update`, if a module is sigma-reparametrised.
    """
    if not (threshold > 0 and math.isfinite(threshold)):
        raise ValueError(f"threshold: expected a positive finite number, got {threshold!r}.")
    if not heads:
        raise ValueError("heads: expected at least one module, got none; see clippable(model).")
    for path, one in heads.items():
        if one.soft_cap is not None and threshold >= one.soft_cap:
            raise ValueError(
                f"threshold: expected less than {one.soft_cap}, the soft cap of {path}, which no "
                f"logit can exceed; got {threshold}. Lower it, or leave this module out."
            )
    limits = {path: jnp.full(one.shape, threshold, jnp.float32) for path, one in heads.items()}

    def init(params: Any) -> QKClipState:
        _check_found(params, heads)
        return QKClipState({path: jnp.ones(one.shape, jnp.float32) for path, one in heads.items()})

    def update(
        updates: Any,
        state: QKClipState,
        params: Any = None,
        *,
        max_logit: Mapping[str, Array] | None = None,
        **_: Any,
    ) -> tuple[Any, QKClipState]:
        if params is None:
            raise ValueError("qk_clip: expected params in update(updates, state, params, ...).")
        if max_logit is None:
            raise ValueError(
                "qk_clip: expected max_logit={module path: [N]} in update(...), got none. With "
                "optax.chain, pass it to the chain's update."
            )
        factors = clip_factors(max_logit, limits, heads)
        return scale_heads(updates, params, factors, heads), QKClipState(factors)

    return optax.GradientTransformationExtraArgs(init, update)


def clip_factors(
    max_logit: Mapping[str, Array], threshold: Mapping[str, Array], heads: Mapping[str, Heads]
) -> dict[str, Array]:
    """Returns what brings the logits of each head down to its threshold.

    Args:
      max_logit: largest logits by dotted path, as in `qk_clip`.
      threshold: likewise the largest that is allowed, positive; infinity for a head to leave alone.
      heads: what to clip.

    Returns:
      By dotted path, factors of the product of query and key, float32 `[N]` or `[L, N]`: in (0, 1)
      where the largest logit is finite and above the threshold, else 1. At least 0.5 for heads with
      relative biases.

    Raises:
      ValueError: if something is missing or of the wrong shape.
    """
    factors = {}
    for path, one in heads.items():
        largest = per_head("max_logit", max_logit, path, one)
        limit = per_head("threshold", threshold, path, one)
        over = jnp.isfinite(largest) & (largest > limit)
        wanted, found = jnp.where(over, limit, 1.0), jnp.where(over, largest, 1.0)
        if one.soft_cap is not None:
            wanted, found = (
                jnp.arctanh(jnp.minimum(x / one.soft_cap, _SATURATED)) for x in (wanted, found)
            )
        factor = jnp.minimum(wanted / found, 1.0)
        if one.biased:  # large may be the biases alone: do not take all from the rest at once
            factor = jnp.maximum(factor, _LEAST_BIASED)
        factors[path] = jnp.where(over, factor, 1.0)
    return factors


def scale_heads(
    updates: Any, params: Any, factors: Mapping[str, Array], heads: Mapping[str, Heads]
) -> Any:
    """Changes updates so that the query and key projections end up scaled.

    Args:
      updates: what is to be added to the parameters; a pytree of nested dicts or an `nnx.State`.
      params: the parameters, of the same structure.
      factors: by dotted path, what logits shall be multiplied by, positive, `[N]` or `[L, N]`.
      heads: where these projections are.

    Returns:
      The updates, those of heads with a factor of 1 unchanged to the bit.

    Raises:
      ValueError: if a module has no projections in `params`.
      NotImplementedError: if a module is sigma-reparametrised.
    """
    _check_found(params, heads)

    def scale(path: tuple[Any, ...], update: Array, param: Array) -> Array:
        if (found := owner(path, heads)) is None:
            return update
        module, part = found
        one, factor = heads[module], factors[module]
        alone = one.num_heads != one.num_kv_heads
        if alone and part.startswith("key"):
            return update
        share = factor if alone else jnp.sqrt(factor)
        # Heads are the last axis but one, of kernels and biases alike; layers are the first.
        middle = (1,) * (param.ndim - factor.ndim - 1)
        shape = (*factor.shape[:-1], *middle, one.num_heads, 1)
        after = share.reshape(shape) * (param + update).astype(jnp.float32)
        scaled = (after - param.astype(jnp.float32)).astype(update.dtype)
        return jnp.where((factor < 1).reshape(shape), scaled, update)

    return jax.tree_util.tree_map_with_path(scale, updates, params)


def _check_found(params: Any, heads: Mapping[str, Heads]) -> None:
    """Raises if a module's projections are not among the parameters, or cannot be scaled."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = {leaf_name(path) for path, _ in leaves}
    for module in heads:
        if names & {f"{module}.query.gamma", f"{module}.key.gamma"}:
            raise NotImplementedError(
                f"{module}: QK-clip can't hold its logits, for {SIGMA_UNCLIPPABLE}."
            )
    found = {x for path, _ in leaves if (x := owner(path, heads)) is not None}
    for module in heads:
        for part in ("query.kernel", "key.kernel"):
            if (module, part) not in found:
                some = ", ".join(
                    jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves[:3]
                )
                raise ValueError(
                    f"heads: expected {module}.{part} among the parameters, which have {some}, ..."
                )
